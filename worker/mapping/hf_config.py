"""An HF config in any of its forms: the content of config.json, where it lies, or transformers' own object."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, cast

from ..jobs.errors import BadInputError
from .hf_source import hub_source
from .record import Record


class TransformersConfig(Protocol):
    """What is used of `transformers.PretrainedConfig`."""

    def to_dict(self) -> dict[str, Any]:
        """Every field, defaults filled in."""
        ...


HFConfig = Mapping[str, object] | str | PathLike[str] | TransformersConfig


def read_hf_config(hf_config: HFConfig) -> tuple[Record, str]:
    """Its fields, and its source: hub id and revision where it says them, or the path. BadInputError on no config."""
    if isinstance(hf_config, Mapping):
        return _named(hf_config, None)
    if isinstance(hf_config, str | PathLike):
        return _in_file(Path(hf_config))
    return _named(hf_config.to_dict(), getattr(hf_config, "_commit_hash", None))


def _named(fields: Mapping[str, object], revision: str | None) -> tuple[Record, str]:
    name = fields.get("_name_or_path")
    if not isinstance(name, str) or not name:
        return Record(fields, "HF config"), "HF config"
    return Record(fields, f"HF config of {name}"), name if Path(name).exists() else hub_source(name, revision)


def _in_file(path: Path) -> tuple[Record, str]:
    file = path / "config.json" if path.is_dir() else path
    try:
        fields: object = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _no_config(file, str(error)) from error
    if not isinstance(fields, dict):
        raise _no_config(file, f"a JSON {type(fields).__name__}")
    return Record(cast("dict[str, object]", fields), str(file)), str(path)


def _no_config(file: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_config", f"HF config {file}", found=found, expected="a config.json", next_step="Check the path."
    )
