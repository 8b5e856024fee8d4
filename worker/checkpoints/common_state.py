"""What a training run saved beside a `torch_dist` checkpoint's tensors: its command line, its adapter's config."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from .plain_values import plain_attributes
from .refusal import bad_checkpoint
from .torch_archive import ArchiveError, read_archive
from .torch_dist import TorchDistFolder

_FILE = "common.pt"
_OBJECT = "common_state/shard_0_1"

CONTENT: dict[str, bool] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
"""The content metadata of what we write: by it Megatron's loaders know which keys to ask for."""
PER_LAYER: dict[str, bool] = {"non_homogeneous_layers": True}
"""What it says beside of layers with keys of their own."""


def saved_args(weights: TorchDistFolder) -> Mapping[str, object]:
    """Megatron's `args` as plain values, read inert; empty where there are none."""
    return plain_attributes(_common(weights).get("args"))


def saved_peft(weights: TorchDistFolder) -> Mapping[str, object] | None:
    """What our trainers' adapter checkpoints say of the adapter; None where there is nothing."""
    found = _common(weights).get("peft")
    return cast("dict[str, object]", found) if isinstance(found, dict) else None


def saved_content(weights: TorchDistFolder) -> Mapping[str, object]:
    """By which keys the model was saved, as its writer says; empty where it says nothing."""
    found = _common(weights).get("content_metadata")
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def common_file(weights: TorchDistFolder) -> Path:
    """The file that holds it."""
    if (weights.folder / _FILE).exists() or _OBJECT not in weights.objects:
        return weights.folder / _FILE
    return weights.folder / weights.objects[_OBJECT].file


def common_files(weights: TorchDistFolder) -> tuple[Path, ...]:
    """The same, where there is one."""
    return tuple(path for path in (common_file(weights),) if path.exists())


def _common(weights: TorchDistFolder) -> Mapping[str, object]:
    """Megatron-Core before 0.19 wrote `common.pt`, and its loader prefers that file where it is there."""
    common = _file(weights) if (weights.folder / _FILE).exists() else weights.object(_OBJECT)
    if isinstance(common, list):  # 0.19 stores every object as the one item of a list
        [common] = cast("list[object]", common)[:1] or [None]
    return cast("dict[str, object]", common) if isinstance(common, dict) else {}


def _file(weights: TorchDistFolder) -> object:
    path = weights.folder / _FILE
    with path.open("rb") as file:
        try:
            return read_archive(file.fileno(), 0, os.fstat(file.fileno()).st_size).value
        except ArchiveError as error:
            raise bad_checkpoint(path, f"a form that cannot be read ({error})", "a zip of torch.save") from error
