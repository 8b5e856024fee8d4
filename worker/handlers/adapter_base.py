"""The model that an adapter belongs to: what its configs say, and where asked for its tensors under HF's names."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.peft_config import ADAPTER_CONFIG
from ..checkpoints.hf_folder import CONFIG, read_json_object
from ..checkpoints.iterations import asked_tracker, iteration_folder
from ..checkpoints.source import Source
from ..engine.convert import items_of
from ..engine.item_source import ItemSource
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..mapping.bindings import Model
from .config import read_model
from .described import Described, describe
from .hf_source import is_hf, open_hf, open_precise
from .megatron_source import open_checkpoint
from .saved_weights import args_files, args_of, open_saved

HF = "hf"
_NAME = "base_model_name_or_path"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A checkpoint's model, with its tensors as exact as they are known."""

    model: Model
    weights: Source
    described_by: tuple[Path, ...]


def base_model(base: Path, locations: Locations) -> Described:
    """Of an HF folder or a Megatron checkpoint, by configs alone."""
    if (base / CONFIG).exists():
        config = base / CONFIG
        return Described(model=read_model(base), carried={CONFIG: config}, config_json=None, described_by=(config,))
    folder = iteration_folder(base)
    saved = open_saved(folder, allow_pickle=locations.allow_pickle)
    described = describe(None, base, folder, args_of(saved))
    return replace(described, described_by=(*described.described_by, *asked_tracker(base), *args_files(saved)))


def open_base(place: Path, hf_config: Path | None, locations: Locations) -> OpenedModel:
    """The same with its tensors. BadInputError where anything is not understood."""
    if is_hf(place):
        return OpenedModel(model=open_hf(place).model, weights=open_precise(place), described_by=(place / CONFIG,))
    opened = open_checkpoint(place, hf_config, allow_pickle=locations.allow_pickle)
    weights = ItemSource.of(items_of(opened.plan, opened.weights))
    return OpenedModel(model=opened.described.model, weights=weights, described_by=opened.files)


def name_left_beside(source: Path) -> str | None:
    """The base of a Megatron adapter, as its import found it; None where there is nothing of it."""
    for left in files_left_beside(source):
        said = read_json_object(left, "a PEFT adapter's config").get(_NAME)
        return said if isinstance(said, str) and said else None
    return None


def files_left_beside(source: Path) -> tuple[Path, ...]:
    """The PEFT config that says so, if it is there."""
    left = source / HF / ADAPTER_CONFIG
    return (left,) if left.exists() else ()


def base_name(given: str | None, source: Path, base: Path | None) -> str:
    """What `base_model_name_or_path` is to say: as given, as an import left it beside `source`, or the base's path."""
    if given is not None:
        return given
    said = name_left_beside(source)
    if said or base is not None:
        return str(said or base)
    raise BadInputError(
        "bad_request",
        f"the base of adapter {source}",
        found="no name or path of it",
        expected=f"what {_NAME} is to say",
        next_step="Name it: `ferry adapter export ... --base DIR`, or `--base-name ORG/NAME`.",
    )
