"""An adapter that says itself that it was trained on another base than the one that it is to be merged into."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ..adapters.base_names import contradict, is_cached
from ..adapters.matching import Matched
from ..adapters.merged_source import Base
from ..checkpoints.extents import is_computed
from ..checkpoints.hf_folder import CONFIG, read_json_object
from ..checkpoints.publish import MANIFEST
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..engine.reading import same_bytes
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations

_TENSORS, _ROWS = 16, 8
"""So much of two models is compared: tuning changes every row of what it changes."""


def refuse_other_base(matched: Matched, source: Path, base: Base, locations: Locations) -> None:
    """BadInputError where `base_model_name_or_path` is a folder of other weights, or contradicts the base's manifest.

    Nothing is refused for a name that merely is another one: folders are called what their owners like.
    """
    said = matched.folder.config.base_model_name_or_path
    if not said:
        return
    known = tuple(_known(source))
    folder = _folder(said, locations)
    if folder is not None and folder in (source, *(_folder(name, locations) for name in known)):
        return
    differing = None if folder is None else _differing(matched, folder, base)
    if differing is not None:
        raise _other_base(matched, source, f"a folder whose {differing!r} is another one")
    if folder is None:
        for name in known:
            if contradict(said, name):
                raise _other_base(matched, source, f"another model than {name}, which the base was made from")


def _known(source: Path) -> Iterator[str]:
    """What the base was made from, as its manifest says; and where it lies, if that tells."""
    if is_cached(str(source)):
        yield str(source)
    for folder in (source, source.parent):
        if (folder / MANIFEST).exists():
            spec = read_json_object(folder / MANIFEST, "a manifest").get("spec")
            origin = cast("dict[str, object]", spec).get("source") if isinstance(spec, dict) else None
            if isinstance(origin, str):
                yield origin
            return


def _folder(location: str, locations: Locations) -> Path | None:
    """A folder of HF's format that may be read; a hub's name is none."""
    try:
        path = locations.resolve_source(location)
    except (BadInputError, OSError, RuntimeError):
        return None
    return path if (path / CONFIG).is_file() else None


def _differing(matched: Matched, folder: Path, base: Base) -> str | None:
    """A tensor that the adapter touches, stored in the same way here and there, with other values."""
    try:
        theirs = SafetensorsFolder.open(folder)
    except BadInputError:
        return None
    shared = [name for name in matched.touched if base.precise.tensors.get(name) == theirs.tensors.get(name)]
    shared = [name for name in shared if name in theirs.tensors]
    for name in shared[:: max(1, len(shared) // _TENSORS)]:
        rows = min(_ROWS, theirs.tensors[name].shape[0])
        ours = base.precise.rows(name, (), 0, rows)
        if not any(map(is_computed, ours)) and not same_bytes(ours, theirs.rows(name, (), 0, rows)):
            return name
    return None


def _other_base(matched: Matched, source: Path, found: str) -> BadInputError:
    said = matched.folder.config.base_model_name_or_path
    return BadInputError(
        "unsupported_config_value",
        f"{matched.folder.described_by}: base_model_name_or_path {said!r}",
        found=found,
        expected=f"the base that the adapter was trained on, of which {source} would be a copy",
        next_step="Merge it into that base. If this one is meant, let base_model_name_or_path name it.",
    )
