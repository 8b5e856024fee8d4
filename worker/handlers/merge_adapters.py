"""The adapters of a merge: PEFT folders and Megatron checkpoints, each matched to the base."""

from dataclasses import replace
from pathlib import Path

from ..adapters.linears import linears
from ..adapters.matching import Matched, match
from ..adapters.peft_config import ADAPTER_CONFIG
from ..adapters.peft_folder import PeftFolder
from ..adapters.to_peft import peft_config, peft_tensors
from ..adapters.turned import TurnedLinears
from ..checkpoints.folder_kinds import kind_of
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.iterations import TRACKER, iteration_folder
from ..checkpoints.torch_dist import METADATA
from ..engine.convert import items_of
from ..engine.item_source import ItemSource
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model
from ..mapping.blocks import Left
from ..mapping.checkpoint_values import refuse_contradiction
from .adapter_base import HF, files_left_beside, name_left_beside
from .config import read_model
from .described import run_config_files, values_of_run
from .mcore_adapter import open_mcore_adapter
from .merge_base import OpenedBase


def match_adapter(path: Path, opened: OpenedBase) -> tuple[Matched, tuple[Left, ...]]:
    """What an adapter does to the base, and what of its folder is no part of it.

    BadInputError where it is no adapter, or not one of this base.
    """
    if (path / ADAPTER_CONFIG).exists():
        return match(PeftFolder.open(path), opened.base.known), ()
    if (path / TRACKER).exists() or (path / METADATA).exists():
        return _matched_megatron(path, opened)
    raise _no_adapter(path)


def _matched_megatron(path: Path, opened: OpenedBase) -> tuple[Matched, tuple[Left, ...]]:
    """Through its tensors under PEFT's names, which are rows of its own; what PEFT cannot name, as it is."""
    _refuse_other_sizes(path, opened.model)
    turned = TurnedLinears.of(opened.model)
    found = open_mcore_adapter(path, opened.model, (*linears(opened.model), *turned.layers))
    others, adapted = turned.apart(found.adapter)
    tensors = peft_tensors(others, found.weights)
    read = found.weights.files_of({name for one in found.adapter.layers for name in one.names})
    described_by = (*found.described_by, *_descriptions(path), *files_left_beside(path))
    folder = PeftFolder.of(
        path,
        peft_config(found.read.config, tensors.ranks, name_left_beside(path)),
        found.read.path,
        ItemSource.of(items_of(tensors.plan, found.weights), (*described_by, *read)),
    )
    matched = match(folder, opened.base.known)
    pairs = {**matched.pairs, **dict(turned.pairs(adapted, found.read.config, found.weights))}
    return replace(matched, pairs=pairs), tensors.plan.dropped


def _refuse_other_sizes(path: Path, model: Model) -> None:
    """BadInputError where the adapter's own description is of another model: shapes alone do not tell rows apart."""
    beside = path / HF
    values = [values_of_run(iteration_folder(path)), read_model(beside).mcore if (beside / CONFIG).exists() else None]
    try:
        refuse_contradiction(model, [record for record in values if record is not None])
    except BadInputError as error:
        raise BadInputError(
            "bad_config",
            f"adapter {path}",
            found=f"a description of another model than the base's: {error.info.found}",
            expected=error.info.thing,
            next_step="Merge it into the base it was trained on.",
        ) from error


def _descriptions(path: Path) -> tuple[Path, ...]:
    """The files that the adapter's own model is told from."""
    beside = path / HF / CONFIG
    return (*run_config_files(iteration_folder(path)), *((beside,) if beside.exists() else ()))


def _no_adapter(path: Path) -> BadInputError:
    found = kind_of(path) or f"neither {ADAPTER_CONFIG}, nor {TRACKER}, nor {METADATA}"
    return BadInputError(
        "missing_file",
        f"adapter {path}",
        found=found if path.is_dir() else "a file",
        expected="a PEFT folder, or a Megatron checkpoint of an adapter",
        next_step="Check the path of the adapter; a merge takes folders on the worker's own disks.",
    )
