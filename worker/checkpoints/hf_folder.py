"""The files of an HF folder beside its weights: config, generation config, tokenizer, chat template."""

from pathlib import Path
from typing import cast

from ..jobs.errors import BadInputError
from .folder_kinds import kind_of
from .plain_json import loads

CONFIG = "config.json"
_CARRIED_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_MAX_CARRIED_BYTES = 256 * 2**20


def read_config(folder: Path) -> dict[str, object]:
    """config.json as it stands. BadInputError where it is missing or no JSON object."""
    path = folder if folder.is_file() else folder / CONFIG
    return read_json_object(path, "an HF config")


def read_json_object(path: Path, expected: str) -> dict[str, object]:
    """A JSON object of names and values. BadInputError where there is none."""
    try:
        value: object = loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        kind = kind_of(path.parent)
        found = f"no such file: {path.parent} is {kind}" if kind else "no such file"
        raise _bad(path, found, expected, missing=True) from error
    except ValueError as error:
        raise _bad(path, f"no valid JSON ({error})", expected) from error
    if not isinstance(value, dict):
        raise _bad(path, f"a JSON {type(value).__name__}", expected)
    return cast(dict[str, object], value)


def side_files(folder: Path) -> dict[str, Path]:
    """What is carried along as found: name inside the folder -> path. Weights, their index and code are not."""
    found = [path for suffix in _CARRIED_SUFFIXES for path in folder.glob(f"*{suffix}")]
    found += (folder / "additional_chat_templates").glob("*.jinja")
    for path in found:
        if path.is_symlink() and not path.exists():
            raise _bad(path, "a link that leads nowhere", "a file of the checkpoint", missing=True)
    return {str(path.relative_to(folder)): path for path in sorted(found) if path.is_file() and _is_side_file(path)}


def _is_side_file(path: Path) -> bool:
    ours = path.name == "manifest.json" or path.name.endswith(".index.json")
    return not ours and path.stat().st_size <= _MAX_CARRIED_BYTES


def _bad(path: Path, found: str, expected: str, *, missing: bool = False) -> BadInputError:
    return BadInputError(
        "missing_file" if missing else "bad_config",
        str(path),
        found=found,
        expected=expected,
        next_step="Check the path and the file.",
    )
