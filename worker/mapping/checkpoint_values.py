"""Values that a trainer left beside its checkpoint: made complete, turned into a model, held against one."""

from collections.abc import Iterable, Mapping

from ..jobs.errors import BadInputError
from .bindings import Model
from .family_guess import guess_family
from .record import Record

_GROUPS = ("moe_router_num_groups", "moe_router_group_topk")
_ROW_ORDERS = ("moe_mlp_glu_interleave_size", "moe_shared_expert_glu_interleave_size")
_SIZES = ("num_layers", "hidden_size", "num_attention_heads")
_SIZES_OF_QUERY_GROUPS = ("num_query_groups", "kv_channels")
_SIZES_OF_DENSE = ("ffn_hidden_size",)
_SIZES_OF_EXPERTS = ("moe_ffn_hidden_size",)
_EXPERTS = "num_moe_experts"
"""Here no value is one too: a dense model."""


def completed(values: Mapping[str, object], origin: str) -> Record:
    """The values that are there, and what Megatron derives from them."""
    found = {name: value for name, value in values.items() if value is not None}
    if found.get("add_bias_linear"):
        found["add_qkv_bias"] = True
    if "num_moe_experts" in found and "ffn_hidden_size" in found:
        found.setdefault("moe_ffn_hidden_size", found["ffn_hidden_size"])
    if found.get("moe_router_group_topk") == found.get("moe_router_num_groups"):  # no group is left out
        found = {name: value for name, value in found.items() if name not in _GROUPS}
    return Record(found, origin)


def model_of(values: Record) -> Model:
    """The model that these values describe. BadInputError where its family, or its vocabulary, is not said."""
    _require_vocabulary(values)
    family = guess_family(values)
    hf = family.to_hf(values)
    return Model(family=family, hf=hf, mcore=family.to_mcore(hf))


def refuse_contradiction(model: Model, others: Iterable[Record]) -> None:
    """BadInputError where another description of the checkpoint has another size than the config that is used."""
    for other in others:
        for name in _compared(model.mcore):
            ours, theirs = model.mcore.get(name), other.get(name)
            if ours != theirs and (None not in (ours, theirs) or name == _EXPERTS):
                raise _contradiction(model, name, ours, other, f"{name} {theirs!r}")
        _refuse_other_vocabulary(model, other)
        _refuse_other_rows(model, other)


def _refuse_other_vocabulary(model: Model, other: Record) -> None:
    """HF's may be the larger one, since some released vocabularies are padded themselves; it never cuts rows off."""
    ours, theirs, padded = model.mcore.get("vocab_size"), other.get("vocab_size"), other.get("padded_vocab_size")
    if isinstance(ours, int) and isinstance(theirs, int) and ours < theirs:
        raise _contradiction(model, "vocab_size", ours, other, f"vocab_size {theirs}, which is more")
    if isinstance(ours, int) and isinstance(padded, int) and ours > padded:
        raise _contradiction(model, "vocab_size", ours, other, f"padded_vocab_size {padded}, which is less")


def _refuse_other_rows(model: Model, other: Record) -> None:
    """The same shapes may hold their rows in another order, which no check of shapes would see."""
    # Latent attention interleaves rotary pairs whatever this says.
    of_heads = () if model.mcore.get("multi_latent_attention") else ("rotary_interleaved",)
    for name in (*of_heads, *_ROW_ORDERS):
        theirs = other.get(name)
        if theirs and theirs != model.mcore.get(name):
            raise _contradiction(model, name, model.mcore.get(name), other, f"{name} {theirs!r}")


def _compared(values: Record) -> tuple[str, ...]:
    """The names that mean the same in every description of such a model."""
    of_attention = () if values.get("multi_latent_attention") else _SIZES_OF_QUERY_GROUPS
    of_mlp = _SIZES_OF_DENSE if values.get(_EXPERTS) is None else _SIZES_OF_EXPERTS
    return (*_SIZES, _EXPERTS, *of_attention, *of_mlp)


def _contradiction(model: Model, name: str, ours: object, other: Record, theirs: str) -> BadInputError:
    return BadInputError(
        "bad_config",
        f"{model.hf.origin}: Megatron's {name} {ours!r}",
        found=f"{theirs} in {other.origin}",
        expected="descriptions of one model to agree",
        next_step="Find out which one belongs to the checkpoint; give its config: `ferry export ... --hf-config DIR`.",
    )


def _require_vocabulary(values: Record) -> None:
    """A run may know only its padded vocabulary, which does not say how many rows are padding."""
    if values.get("vocab_size") is None:
        raise BadInputError(
            "bad_config",
            f"{values.origin}: field 'vocab_size'",
            found=f"nothing, beside padded_vocab_size {values.get('padded_vocab_size')}",
            expected="the size of the tokenizer's vocabulary, without padding",
            next_step="Give the HF config: `ferry export ... --hf-config DIR`.",
        )
