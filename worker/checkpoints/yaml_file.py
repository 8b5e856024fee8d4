"""A YAML file that a trainer left: plain values, and no object of any other class."""

from pathlib import Path
from typing import cast

from ..jobs.errors import BadInputError


def read_yaml_object(path: Path, expected: str) -> dict[str, object]:
    """Its mapping. BadInputError where there is none, or a tag that would make an object."""
    import yaml  # only some checkpoints have such a file

    try:
        value: object = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        found = f"no plain YAML ({' '.join(str(error).split())[:200]})"
        raise _bad(path, found, expected) from error
    if not isinstance(value, dict):
        raise _bad(path, "no mapping", expected)
    return cast("dict[str, object]", value)


def _bad(path: Path, found: str, expected: str) -> BadInputError:
    return BadInputError("bad_config", str(path), found=found, expected=expected, next_step="Mend it, or move it away.")
