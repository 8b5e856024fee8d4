"""Multi-head latent attention (DeepSeek): its ranks, head sizes, rope and tensors."""

from dataclasses import dataclass, field

from .fields import Fixed, Only, Renamed, same
from .layouts import Sizes
from .record import Record
from .rope import Rope
from .rules import HFTensor, Rule
from .sizes import common_sizes

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."
OF_MCORE = "decoder.layers.{layer}.self_attention."

LATENT_NORM_EPSILON = 1e-6
"""HF's classes give the norms of the latents this, whatever `rms_norm_eps` says."""


@dataclass(frozen=True, slots=True)
class QueryRank:
    """`q_lora_rank`: null means that queries are projected straight from the hidden state, without a norm between."""

    default: int = 1536
    hf: tuple[str, ...] = field(default=("q_lora_rank",), init=False)
    mcore: tuple[str, ...] = field(default=("q_lora_rank", "plain_query_projection"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        if full_rank_queries(config):
            return {"q_lora_rank": None, "plain_query_projection": True}
        return {"q_lora_rank": config.positive("q_lora_rank", self.default)}

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.get("q_lora_rank") is None and not values.boolean("plain_query_projection", False):
            why = "Upstream's model has a norm before the queries that HF's class lacks."
            raise values.unsupported("plain_query_projection", "true where q_lora_rank is null", why)
        return {"q_lora_rank": values.get("q_lora_rank")}


@dataclass(frozen=True, slots=True)
class OneLatentForAllHeads:
    """`num_key_value_heads`: keys and values of all heads come from one latent, so it is the number of heads."""

    hf: tuple[str, ...] = field(default=("num_key_value_heads",), init=False)
    mcore: tuple[str, ...] = field(default=(), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        heads = config.positive("num_attention_heads")
        if config.positive("num_key_value_heads", heads) != heads:
            raise config.unsupported("num_key_value_heads", str(heads), "Latent attention has no query groups.")
        return {}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"num_key_value_heads": values.positive("num_attention_heads")}


@dataclass(frozen=True, slots=True)
class RotaryHeadSize:
    """`head_dim`, from which HF's class takes its rotary frequencies where it is given: the rotated part's size."""

    hf: tuple[str, ...] = field(default=("head_dim",), init=False)
    mcore: tuple[str, ...] = field(default=(), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        rotated = config.positive("qk_rope_head_dim", 64)
        if config.positive("head_dim", rotated) != rotated:
            raise config.unsupported("head_dim", f"{rotated}, as qk_rope_head_dim", "Megatron-Core has one such size.")
        return {}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"head_dim": values.positive("qk_pos_emb_head_dim")}


@dataclass(frozen=True, slots=True)
class Epsilon:
    """`rms_norm_eps`; the norms of the latents keep their own, which Megatron's layers do not tell apart."""

    hf: tuple[str, ...] = field(default=("rms_norm_eps",), init=False)
    mcore: tuple[str, ...] = field(default=("layernorm_epsilon", "latent_norm_epsilon"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        epsilon = config.number("rms_norm_eps", LATENT_NORM_EPSILON)
        own = {} if epsilon == LATENT_NORM_EPSILON else {"latent_norm_epsilon": LATENT_NORM_EPSILON}
        return {"layernorm_epsilon": epsilon, **own}

    def to_hf(self, values: Record) -> dict[str, object]:
        epsilon = values.number("layernorm_epsilon")
        if values.number("latent_norm_epsilon", epsilon) != LATENT_NORM_EPSILON:
            expected = str(LATENT_NORM_EPSILON)
            raise values.unsupported("latent_norm_epsilon", expected, "HF's class has no other for these norms.")
        return {"rms_norm_eps": epsilon}


@dataclass(frozen=True, slots=True)
class LatentRope:
    """Rope of the part of each head that carries positions; plain, or yarn in unprefixed fields of its own."""

    default_theta: float = 10000.0
    mcore: tuple[str, ...] = field(
        default=(
            "position_embedding_type",
            "rope_type",
            "rotary_base",
            "rotary_percent",
            "rotary_scaling_factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
        ),
        init=False,
    )

    @property
    def hf(self) -> tuple[str, ...]:
        return self._rope.hf

    @property
    def _rope(self) -> Rope:
        return Rope(default_theta=self.default_theta)

    def to_mcore(self, config: Record) -> dict[str, object]:
        values = Record(self._rope.to_mcore(config), config.origin)
        common: dict[str, object] = {
            "position_embedding_type": "rope",
            "rotary_base": values.get("rotary_base"),
            "rotary_percent": 1.0,
        }
        if values.text("position_embedding_type") == "yarn":
            self._refuse_unlike_megatron(config)
            return common | {"rope_type": "yarn", **{ours: values.get(name) for ours, name in _YARN.items()}}
        if values.boolean("rope_scaling") or values.get("seq_len_interpolation_factor") is not None:
            why = "Megatron-Core's latent attention knows no other rope."
            raise config.unsupported("rope_scaling", "null, or of type 'yarn'", why)
        # Megatron scales the softmax by these even without yarn: at 1 they do nothing.
        return common | {"rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale_all_dim": 1.0}

    def to_hf(self, values: Record) -> dict[str, object]:
        names = {name: values.get(ours) for ours, name in _YARN.items()}
        yarn = values.text("rope_type") == "yarn"
        kind: dict[str, object] = {"position_embedding_type": "yarn" if yarn else "rope", **(names if yarn else {})}
        return self._rope.to_hf(Record({"rotary_base": values.get("rotary_base"), **kind}, values.origin))

    def _refuse_unlike_megatron(self, config: Record) -> None:
        """HF scales the softmax by `mscale_all_dim` alone; Megatron's latent attention takes both mscales or none."""
        options = config.section("rope_parameters") or config.section("rope_scaling")
        assert options is not None  # yarn was read from it
        if options.get("attention_factor") is not None:
            raise options.unsupported("attention_factor", "null", "Megatron-Core derives it from mscale.")
        if options.get("truncate") is False:
            raise options.unsupported("truncate", "true", "Megatron-Core's latent attention always truncates.")
        if options.get("mscale_all_dim") and not options.get("mscale"):
            raise options.unsupported("mscale", "a number beside mscale_all_dim", "Megatron-Core needs both, or none.")


_YARN = {
    "rotary_scaling_factor": "yarn_rotary_scaling_factor",
    "original_max_position_embeddings": "yarn_original_max_position_embeddings",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
    "mscale": "yarn_mscale",
    "mscale_all_dim": "yarn_mscale_all_dim",
}

LATENT_ATTENTION = (
    OneLatentForAllHeads(),
    QueryRank(),
    same("kv_lora_rank", int, 512),
    Renamed("qk_nope_head_dim", "qk_head_dim", int, 128),
    Renamed("qk_rope_head_dim", "qk_pos_emb_head_dim", int, 64),
    same("v_head_dim", int, 128),
    Epsilon(),
    LatentRope(),
    Only("attention_bias", False, "Megatron-Core's latent projections have no biases."),
    Fixed(
        {
            "multi_latent_attention": True,
            "qk_layernorm": True,
            "add_bias_linear": False,
            "add_qkv_bias": False,
            "apply_rope_fusion": False,  # upstream fuses it for yarn alone, and in another order of rows
        }
    ),
)


def low_rank_queries(config: Record) -> bool:
    """Queries come from a latent of their own."""
    return config.get("q_lora_rank") is not None or "q_lora_rank" not in config.values


def full_rank_queries(config: Record) -> bool:
    """Queries are projected straight from the hidden state."""
    return not low_rank_queries(config)


ATTENTION_WEIGHTS = (
    Rule(
        hf=(HFTensor(LAYER + "input_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.input_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "q_proj.weight", ("q_rows", "hidden")),),
        mcore=OF_MCORE + "linear_q_proj.weight",
        when=full_rank_queries,
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "q_a_proj.weight", ("q_rank", "hidden")),),
        mcore=OF_MCORE + "linear_q_down_proj.weight",
        when=low_rank_queries,
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "q_a_layernorm.weight", ("q_rank",)),),
        mcore=OF_MCORE + "linear_q_up_proj.layer_norm_weight",
        when=low_rank_queries,
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "q_b_proj.weight", ("q_rows", "q_rank")),),
        mcore=OF_MCORE + "linear_q_up_proj.weight",
        when=low_rank_queries,
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "kv_a_proj_with_mqa.weight", ("kv_rank_and_position", "hidden")),),
        mcore=OF_MCORE + "linear_kv_down_proj.weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "kv_a_layernorm.weight", ("kv_rank",)),),
        mcore=OF_MCORE + "linear_kv_up_proj.layer_norm_weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "kv_b_proj.weight", ("kv_rows", "kv_rank")),),
        mcore=OF_MCORE + "linear_kv_up_proj.weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "o_proj.weight", ("hidden", "v_rows")),),
        mcore=OF_MCORE + "linear_proj.weight",
    ),
)


def latent_sizes(values: Record) -> Sizes:
    """The named sizes of the rules above, and of what lies around attention."""
    heads = values.positive("num_attention_heads")
    key, position = values.positive("qk_head_dim"), values.positive("qk_pos_emb_head_dim")
    value = values.positive("v_head_dim")
    return {
        **common_sizes(values),
        "q_rank": values.integer("q_lora_rank", 0),
        "kv_rank": values.positive("kv_lora_rank"),
        "kv_rank_and_position": values.positive("kv_lora_rank") + position,
        "q_rows": heads * (key + position),
        "kv_rows": heads * (key + value),
        "v_rows": heads * value,
    }
