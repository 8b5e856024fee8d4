"""DeepSeek-V2 and V2-Lite: latent attention, softmax-routed experts, groups judged by their best expert."""

from dataclasses import dataclass, field

from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layer_sets import dense_layers
from ..mla import ATTENTION_WEIGHTS, LATENT_ATTENTION, latent_sizes
from ..moe import MOE_CONSTRUCTION, DenseFirst, Groups, SharedExperts, on
from ..record import Record
from .deepseek_v3 import EXPERTS, WITHOUT_EPSILON, WITHOUT_ROPE_FUSION
from .llama import DROPS, EMBEDDINGS, MLP_WEIGHTS

_BEST_EXPERT = Groups(scores_summed=1)


@dataclass(frozen=True, slots=True)
class TopKMethod:
    """`greedy` chooses among all experts, `group_limited_greedy` among those of the best groups."""

    hf: tuple[str, ...] = field(default=("topk_method", *_BEST_EXPERT.hf), init=False)
    mcore: tuple[str, ...] = field(default=_BEST_EXPERT.mcore, init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        match config.text("topk_method", "greedy"):
            case "greedy":
                return {"moe_router_num_groups": None, "moe_router_group_topk": None}
            case "group_limited_greedy":
                return _BEST_EXPERT.to_mcore(config)
            case _:
                raise config.unsupported("topk_method", "'greedy' or 'group_limited_greedy'", "HF knows no other.")

    def to_hf(self, values: Record) -> dict[str, object]:
        grouped = values.get("moe_router_num_groups") is not None
        return {"topk_method": "group_limited_greedy" if grouped else "greedy", **_BEST_EXPERT.to_hf(values)}


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    page="worker/mapping/families/deepseek_v2.py",
    model_types=("deepseek_v2",),
    architectures=("DeepseekV2ForCausalLM",),
    features=("MLA", "MoE", "experts in groups", "shared experts", "rope: default, yarn"),
    fields=(
        *WITHOUT_EPSILON,
        *LATENT_ATTENTION,
        WITHOUT_ROPE_FUSION,
        Renamed("max_position_embeddings", "seq_length", int, 2048),
        Renamed("n_routed_experts", "num_moe_experts", int, 64, also=("num_local_experts",)),
        Renamed("num_experts_per_tok", "moe_router_topk"),
        Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 1407),
        Renamed("routed_scaling_factor", "moe_router_topk_scaling_factor", float, 1.0),
        Renamed("aux_loss_alpha", "moe_aux_loss_coeff", float, 0.001),
        SharedExperts(default=2),
        DenseFirst(),
        TopKMethod(),
        Fixed(
            {
                "moe_router_score_function": "softmax",
                "moe_router_pre_softmax": True,
                "moe_router_dtype": "fp32",
                "moe_shared_expert_overlap": True,
            }
        ),
        MOE_CONSTRUCTION,
        Only("norm_topk_prob", False, "HF's class never normalises the chosen experts' weights."),
        Only("scoring_func", "softmax", "HF's class knows no other."),
        Only("mlp_bias", False, "Megatron would give the experts biases too; no released model has any."),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("head_dim", "HF's class sets it to qk_rope_head_dim, whatever is written", other=16),
        Ignored("qk_head_dim", "HF's class sets it to the sum of both parts, whatever is written"),
        Ignored("ep_size", "a trainer's expert parallelism"),
        Ignored("seq_aux", "shapes the training loss, not the forward pass"),
        Ignored("auto_map", "names remote code; HF's own class is used"),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
    ),
    nulls=(*NULLS, "num_key_value_heads", "q_lora_rank", "n_group", "topk_group"),
    sizes=latent_sizes,
    rules=(*EMBEDDINGS, *ATTENTION_WEIGHTS, *on(dense_layers, MLP_WEIGHTS), *EXPERTS),
    drops=DROPS,
)
