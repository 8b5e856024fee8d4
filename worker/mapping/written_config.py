"""A written model_config.json as Megatron's values, without upstream's classes: what an export derives from."""

from collections.abc import Mapping

from ..jobs.errors import BadInputError
from .family import Family
from .record import Record
from .registry import family_named

_NESTED = "transformer"
_EXTRA = "extra_checkpoint_metadata"


def read_written(data: Mapping[str, object], origin: str) -> tuple[Family, Record]:
    """The family that the import recorded, and the outer, transformer and undeclared values in one record."""
    outer = Record(data, origin)
    transformer, extra = outer.section(_NESTED), outer.section(_EXTRA)
    if transformer is None or extra is None or extra.get("family") is None:
        raise BadInputError(
            "bad_config",
            origin,
            found="no transformer section, or no family in extra_checkpoint_metadata",
            expected="a model_config.json that a Ferry import left",
            next_step="Give the HF config instead: `ferry export ... --hf-config DIR`.",
        )
    undeclared, only_hf = (extra.section(name) or Record({}, origin) for name in ("undeclared", "only_hf"))
    flat = {name: value for name, value in data.items() if name not in (_NESTED, _EXTRA)}
    values = {**flat, **transformer.values, **undeclared.values, **only_hf.values}
    return family_named(extra.text("family"), origin), Record(values, origin)
