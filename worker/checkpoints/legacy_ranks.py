"""The rank folders of Megatron's older `torch` checkpoints, and what each rank's `torch.save` file holds."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ..jobs.errors import BadInputError
from .plain_values import plain_attributes
from .refusal import bad_checkpoint
from .torch_archive import Archive, ArchiveError, FoundTensor, read_archive

RANK_FILE = "model_optim_rng.pt"
_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?P<more>_\d+)?")
_VIRTUAL_STAGE = re.compile(r"model(\d*)")
_EXTRA_STATE = "_extra_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank's file: its tensors by local name, a mapping for each virtual pipeline stage."""

    path: Path
    tp_rank: int
    pp_rank: int
    stages: tuple[Mapping[str, FoundTensor], ...]
    args: Mapping[str, object]
    """Megatron's command line; empty where the file has none."""


def is_legacy(folder: Path) -> bool:
    """Whether this iteration folder has rank folders."""
    return next(_rank_folders(folder), None) is not None


def read_ranks(folder: Path) -> tuple[Rank, ...]:
    """Every rank, by pipeline and tensor rank. BadInputError where one is missing, or is cut by experts."""
    ranks = sorted(map(_read_rank, _rank_folders(folder)), key=lambda rank: (rank.pp_rank, rank.tp_rank))
    _refuse_cut_experts(ranks)
    _refuse_missing(folder, ranks)
    return tuple(ranks)


def _rank_folders(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("mp_rank_*") if path.is_dir())


def _read_rank(folder: Path) -> Rank:
    place = _FOLDER.fullmatch(folder.name)
    if place is None:
        raise bad_checkpoint(folder, "a folder of this name", "mp_rank_TT or mp_rank_TT_PPP")
    if place["more"]:
        raise _cut_experts(folder, "a third number in its name, which is an expert-parallel rank")
    path = folder / RANK_FILE
    archive = _open(path)
    value: object = archive.value
    if not isinstance(value, dict):
        raise bad_checkpoint(path, "a pickle of something else", "a dict with args and model")
    saved = cast("dict[str, object]", value)
    return Rank(
        path=path,
        tp_rank=int(place[1]),
        pp_rank=int(place[2] or 0),
        stages=tuple(_tensors(path, archive, model) for model in _models(path, saved)),
        args=plain_attributes(saved.get("args")),
    )


def _open(path: Path) -> Archive:
    try:
        with path.open("rb") as file:
            return read_archive(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise bad_checkpoint(path, "no such file", "this rank's shard", missing=True) from error
    except ArchiveError as error:
        raise bad_checkpoint(path, f"a form that cannot be read ({error})", "a zip of torch.save") from error


def _models(path: Path, saved: Mapping[str, object]) -> list[object]:
    """`model`, or `model0`, `model1`, ... of a virtual pipeline."""
    numbered = {int(match[1] or 0): name for name in saved if (match := _VIRTUAL_STAGE.fullmatch(str(name)))}
    if not numbered:
        raise bad_checkpoint(path, f"keys {sorted(map(str, saved))[:8]}", "a key 'model'")
    return [saved[numbered[number]] for number in sorted(numbered)]


def _tensors(path: Path, archive: Archive, model: object) -> dict[str, FoundTensor]:
    if not isinstance(model, dict):
        raise bad_checkpoint(path, "a model that is no state dict", "names and tensors")
    found: dict[str, FoundTensor] = {}
    for name, value in cast("dict[str, object]", model).items():
        if isinstance(value, dict):
            raise bad_checkpoint(path, f"nested tensors under {name!r}", "the flat names of a Megatron-Core model")
        # States of Transformer Engine's kernels; they are no part of the model.
        if not name.rpartition(".")[2].startswith(_EXTRA_STATE):
            found[name] = _find(path, archive, name, value)
    return found


def _find(path: Path, archive: Archive, name: str, value: object) -> FoundTensor:
    try:
        return archive.find(value)
    except ArchiveError as error:
        raise bad_checkpoint(
            path, f"tensor {name!r} in a form that cannot be read ({error})", "a plain tensor"
        ) from error


def _refuse_cut_experts(ranks: list[Rank]) -> None:
    for rank in ranks:
        ep_size = _size(rank.args, "expert_model_parallel_size", 1)
        if ep_size > 1:
            raise _cut_experts(rank.path.parent, f"expert_model_parallel_size {ep_size} in its args")
        tp_size = _size(rank.args, "tensor_model_parallel_size", 1)
        etp_size = _size(rank.args, "expert_tensor_parallel_size", tp_size)
        if rank.args.get("num_experts") and etp_size != tp_size:
            raise _cut_experts(rank.path.parent, f"expert_tensor_parallel_size {etp_size} in its args, TP {tp_size}")


def _refuse_missing(folder: Path, ranks: list[Rank]) -> None:
    found = {(rank.tp_rank, rank.pp_rank) for rank in ranks}
    args = ranks[0].args
    tp_size = _size(args, "tensor_model_parallel_size", max(tp_rank for tp_rank, _ in found) + 1)
    pp_size = _size(args, "pipeline_model_parallel_size", max(pp_rank for _, pp_rank in found) + 1)
    expected = {(tp_rank, pp_rank) for tp_rank in range(tp_size) for pp_rank in range(pp_size)}
    if found != expected or len(ranks) != len(found):
        names = ", ".join(sorted(rank.path.parent.name for rank in ranks))
        raise bad_checkpoint(folder, names, f"one folder a rank of TP {tp_size} and PP {pp_size}", missing=True)
    if len({len(rank.stages) for rank in ranks}) > 1:
        raise bad_checkpoint(folder, "ranks with different numbers of virtual stages", "the same on all")


def _size(args: Mapping[str, object], name: str, otherwise: int) -> int:
    size = args.get(name)
    return size if isinstance(size, int) else otherwise


def _cut_experts(folder: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_checkpoint",
        f"Megatron checkpoint {folder}",
        found=found,
        expected="ranks of TP and PP alone: a shard of this format does not say which experts it holds",
        next_step="Let Megatron load it at the same sizes and save it with `--ckpt-convert-format torch_dist`.",
    )
