"""A setup's spec from a YAML file and from the command line, which wins."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import SetupSpec

from .locations import as_sent

_LOCATIONS = ("source", "target", "hf_config")
_NESTED = ("parallelism", "peft", "ddp")


def setup_spec(file: Path | None, given: Mapping[str, object]) -> SetupSpec:
    """`given` are fields by name, `parallelism.tp_size` for nested ones; None means not said."""
    values = {} if file is None else _read(file)
    for name, value in given.items():
        if value is None:
            continue
        outer, _, inner = name.partition(".")
        if inner:
            values[outer] = {**cast("dict[str, object]", values.get(outer) or {}), inner: value}
        else:
            values[name] = value
    for name in _LOCATIONS:
        if isinstance(values.get(name), str):
            values[name] = as_sent(str(values[name]))
    return SetupSpec.model_validate(values)


def _read(file: Path) -> dict[str, object]:
    import yaml  # only this command reads one

    try:
        found: object = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise _bad(file, (error.strerror or type(error).__name__).lower()) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad(file, f"no valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise _bad(file, "nothing" if found is None else f"no names and values, but {found!r}"[:200])
    values = cast("dict[str, object]", found)
    for name in _NESTED:
        if not isinstance(values.get(name) or {}, dict):
            raise _bad(file, f"{name}: {values[name]!r}")
    return values


def _bad(file: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"setup file {file}",
        found=found,
        expected="YAML with a setup's fields: source, target, profile, parallelism, ...",
        next_step="Mend the file, or give the fields as options.",
    )
