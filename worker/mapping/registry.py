"""Every family there is, in one readable tuple; a new one is a page and a line here."""

from ..jobs.errors import BadInputError
from .families.deepseek_v2 import DEEPSEEK_V2
from .families.deepseek_v3 import DEEPSEEK_V3
from .families.gemma import GEMMA
from .families.gemma2 import GEMMA2
from .families.gemma3 import GEMMA3
from .families.glm4_moe import GLM4_MOE
from .families.gpt_oss import GPT_OSS
from .families.llama import LLAMA
from .families.minimax_m2 import MINIMAX_M2
from .families.mistral import MISTRAL
from .families.mixtral import MIXTRAL
from .families.nemotron import NEMOTRON
from .families.nemotron_h import NEMOTRON_H
from .families.olmoe import OLMOE
from .families.qwen2 import QWEN2
from .families.qwen3 import QWEN3
from .families.qwen3_moe import QWEN3_MOE
from .families.qwen3_next import QWEN3_NEXT
from .family import Family
from .record import Record

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    QWEN3_NEXT,
    MIXTRAL,
    GEMMA,
    GEMMA2,
    GEMMA3,
    OLMOE,
    MINIMAX_M2,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE,
    GPT_OSS,
    NEMOTRON,
    NEMOTRON_H,
)

_PARTS_OF = {
    "gemma3": "Gemma 3 with its vision tower: save its language model alone, as Gemma3ForCausalLM (gemma3_text).",
}
"""Models that hold one of ours among other parts, and how to take it out."""


def family_of(config: Record) -> Family:
    """The family of an HF config, by `model_type`."""
    model_type = config.text("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    if model_type in _PARTS_OF:
        raise config.unsupported("model_type", "a text model", _PARTS_OF[model_type])
    raise _unknown(f"{config.origin}: field 'model_type'", model_type)


def family_named(name: str, origin: str) -> Family:
    """The family that `origin` (a model_config.json) names."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise _unknown(f"{origin}: family", name)


def _unknown(thing: str, found: str) -> BadInputError:
    return BadInputError(
        "unknown_family",
        thing,
        found=repr(found),
        expected=" or ".join(family.name for family in FAMILIES),
        next_step="`ferry families` lists what is supported.",
    )
