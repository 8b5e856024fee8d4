"""Gemma 3, its text models: Gemma 2 with q and k norms for softcaps, and a rope base of its own under windows."""

from dataclasses import dataclass, field

from ..attention import KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Renamed
from ..hf_fields import NULLS
from ..record import Record
from ..rope import Rope
from ..sizes import sizes
from ..softcap import Softcap
from ..windows import FULL, SLIDING
from .gemma import GEMMA_IGNORED, TanhGelu, gemma_shape, tied_by_default
from .gemma2 import SANDWICHED_WEIGHTS, AttentionScale, EveryNthLayerFull
from .llama import ATTENTION_BIASES, DROPS, MLP_FILLS, QK_NORMS

_LONGEST = 131072
_GLOBAL, _LOCAL = Rope(default_theta=1_000_000.0), Rope(default_theta=10_000.0)


@dataclass(frozen=True, slots=True)
class RopeByLayerType:
    """Full layers have a base and a scaling; windowed layers another base, unscaled.

    transformers 5 says it in `rope_parameters` by layer type, older ones in `rope_theta`, `rope_scaling` and
    `rope_local_base_freq`.
    """

    hf: tuple[str, ...] = field(default=(*_GLOBAL.hf, "rope_local_base_freq"), init=False)
    mcore: tuple[str, ...] = field(default=(*_GLOBAL.mcore, "local_rotary_base"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        full = _GLOBAL.to_mcore(_one_rope(config, FULL, "rope_theta", config.get("rope_scaling")))
        local = Record(_LOCAL.to_mcore(_one_rope(config, SLIDING, "rope_local_base_freq", None)), config.origin)
        if full["position_embedding_type"] != "rope":
            raise config.unsupported("rope_parameters", "no yarn", "Ferry's builder has no yarn with two bases.")
        if local.values != _LOCAL.to_mcore(Record({"rope_theta": local.get("rotary_base")}, config.origin)):
            raise config.unsupported("rope_parameters", f"no scaling for {SLIDING}", "Only full layers are scaled.")
        return full | {"local_rotary_base": float(local.number("rotary_base"))}

    def to_hf(self, values: Record) -> dict[str, object]:
        local = {"rope_type": "default", "rope_theta": float(values.number("local_rotary_base"))}
        return {"rope_parameters": {FULL: _GLOBAL.to_hf(values)["rope_parameters"], SLIDING: local}}


def _one_rope(config: Record, layer_type: str, theta: str, scaling: object) -> Record:
    """One layer type's rope as if it were the config's only one."""
    by_type = config.section("rope_parameters")
    if by_type is not None and not by_type.values.keys() <= {FULL, SLIDING}:
        raise config.wrong("rope_parameters", f"ropes for {FULL!r} and {SLIDING!r}")
    parameters = None if by_type is None else by_type.section(layer_type)
    flat = {
        "rope_theta": config.get(theta),
        "rope_scaling": scaling,
        "rope_parameters": None if parameters is None else dict(parameters.values),
        "max_position_embeddings": config.positive("max_position_embeddings", _LONGEST),
    }
    return Record(flat, f"{config.origin}: {layer_type}")


GEMMA3 = Family(
    name="gemma3",
    page="worker/mapping/families/gemma3.py",
    model_types=("gemma3_text",),
    architectures=("Gemma3ForCausalLM",),
    features=("GQA", "q and k norms", "two rope bases", "norms after attention and MLP", "windows by layer"),
    fields=(
        *gemma_shape(TanhGelu("hidden_activation", "hidden_act")),
        KeyValueHeads(default=4),
        Renamed("max_position_embeddings", "seq_length", int, _LONGEST),
        RopeByLayerType(),
        AttentionScale(),
        Softcap("final_logit_softcapping", "final_logit_softcap"),
        EveryNthLayerFull(every=6, pattern=("sliding_window_pattern",)),
        Fixed({"sandwich_norms": True, "qk_layernorm": True}),
    ),
    ignored=(
        *GEMMA_IGNORED,
        Ignored("attn_logit_softcapping", "HF's attention keeps it and hands it to no kernel", other=3.0),
        Ignored("_sliding_window_pattern", "written beside layer_types, which HF reads"),
    ),
    nulls=(*NULLS, "final_logit_softcapping", "layer_types"),
    sizes=sizes,
    rules=(*SANDWICHED_WEIGHTS, *QK_NORMS, *ATTENTION_BIASES),
    fills=MLP_FILLS,
    drops=tied_by_default(DROPS),
    model="variant",
)
