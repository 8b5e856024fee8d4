"""A live model's checkpoint sections, and checkpoints at a path that the caller names."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed, nn

from ..checkpoints.common_state import CONTENT
from .checkpoint_names import content_of, keys_of, use_saved_names
from .chunks import chunks_of, stage_of
from .direct_load import DirectLoadStrategy

FORMATS = ("torch_dist",)


def generate_model_state_dict(
    model: Sequence[nn.Module] | nn.Module,
    model_sd_kwargs: Mapping[str, Any] | None = None,
    ckpt_format: str = "torch_dist",
    *,
    pg_collection: ProcessGroupCollection | None = None,
) -> dict[str, dict[str, Any]]:
    """`{"model": ..}`, or `{"model0": .., "model1": ..}` of several chunks: each chunk's `sharded_state_dict`.

    `model_sd_kwargs` go to it. ValueError on a format other than `torch_dist`.
    """
    if ckpt_format not in FORMATS:
        raise ValueError(f"ckpt_format: found {ckpt_format!r}, expected one of {', '.join(FORMATS)}. Use it.")
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    options = {"metadata": {**CONTENT, "dp_cp_group": groups.dp_cp}, **(model_sd_kwargs or {})}
    chunks = [cast(Any, stage_of(chunk)) for chunk in chunks_of(model)]
    sections = {section_name(number, len(chunks)): chunk for number, chunk in enumerate(chunks)}
    return {name: chunk.sharded_state_dict(**options) for name, chunk in sections.items()}


def section_name(number: int, chunks: int) -> str:
    """What a chunk's section is called: upstream numbers them only where there are several."""
    return "model" if chunks == 1 else f"model{number}"


def save_checkpoint(
    model: Sequence[nn.Module] | nn.Module,
    path: Path | str,
    *,
    optimizer: Any = None,
    common: Mapping[str, Any] | None = None,
    pg_collection: ProcessGroupCollection | None = None,
) -> None:
    """Write model, optimizer and `common` (iteration, counters, plain values) as `torch_dist` into the folder `path`.

    The folder itself holds the files: no `iter_N` is made and no tracker file is written. All ranks take part.
    ValueError where the folder is not empty.
    """
    state: dict[str, Any] = {"checkpoint_version": 3.0, "iteration": 0, **(common or {})}
    state |= generate_model_state_dict(model, pg_collection=pg_collection)
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(state, metadata=_optimizer_metadata(pg_collection))
    write(state, Path(path))


def load_checkpoint(
    model: Sequence[nn.Module] | nn.Module,
    path: Path | str,
    *,
    optimizer: Any = None,
    strict: bool = True,
    pg_collection: ProcessGroupCollection | None = None,
    fully_parallel_load: bool = False,
    load_strategy: Any = None,
) -> dict[str, Any]:
    """Load model and optimizer from the folder `path` at whatever parallelism they have now; the rest is answered.

    All ranks take part. Keys that differ are an error of `load_state_dict` where `strict`. `load_strategy` is one of
    upstream's or `DirectLoadStrategy()`, which is the default.
    """
    keys = keys_of(Path(path))
    asked = asking(content_of(Path(path), keys), pg_collection)
    state: dict[str, Any] = dict(generate_model_state_dict(model, asked, pg_collection=pg_collection))
    if optimizer is not None:
        metadata = {**_optimizer_metadata(pg_collection), **asked["metadata"]}
        state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=True, metadata=metadata)
    strategy = load_strategy or strategy_for(fully_parallel_load, pg_collection)
    loaded = read(state, Path(path), keys, strategy)
    load_sections(model, loaded, strict=strict)
    if optimizer is not None:
        optimizer.load_state_dict(loaded["optimizer"])
    return {name: value for name, value in loaded.items() if name != "optimizer" and not name.startswith("model")}


def write(state: dict[str, Any], path: Path) -> None:
    """A sharded state dict as `torch_dist`. ValueError where the folder is not empty."""
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"checkpoint {path}: found a folder with files, expected a new or empty one. Name another.")
    distributed.barrier()  # every rank has looked before any writes
    path.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(state, str(path), content_metadata=CONTENT)


def asking(content: Mapping[str, bool], pg_collection: ProcessGroupCollection | None = None) -> dict[str, Any]:
    """Arguments of `sharded_state_dict` with which a model asks for the keys of a checkpoint of this content."""
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    return {"metadata": {**CONTENT, **content, "dp_cp_group": groups.dp_cp}}


def read(state: dict[str, Any], path: Path, keys: Collection[str], strategy: Any = None) -> dict[str, Any]:
    """What `state` asks for, and a checkpoint's common values; `keys` are as one of upstream's layer specs has them."""
    use_saved_names(nested_values(state), keys)
    loaded = dist_checkpointing.load(state, str(path), strategy)
    return cast("dict[str, Any]", loaded)


def load_sections(model: Sequence[nn.Module] | nn.Module, loaded: Mapping[str, Any], *, strict: bool) -> None:
    """Give each chunk its section. One chunk takes any `model*`; KeyError where several chunks' sections lack."""
    chunks = chunks_of(model)
    for number, chunk in enumerate(chunks):
        name = section_name(number, len(chunks))
        if name not in loaded and len(chunks) == 1:
            name = next((key for key in loaded if key.startswith("model")), name)
        if name not in loaded and not stage_of(chunk).state_dict():
            continue  # a layout may leave a chunk without layers, and what it asks for is no section
        if name not in loaded:
            raise KeyError(
                f"checkpoint section of model chunk {number}: found {sorted(loaded)}, expected {name!r}. "
                "Load it at the virtual pipeline size that it is meant for."
            )
        stage_of(chunk).load_state_dict(loaded[name], strict=strict)


def strategy_for(fully_parallel: bool, pg_collection: ProcessGroupCollection | None) -> Any:
    """Ours; with `fully_parallel`, ranks that hold the same shard read parts of it and exchange them."""
    plain = DirectLoadStrategy()
    if not fully_parallel:
        return plain
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    return FullyParallelLoadStrategyWrapper(plain, groups.dp_cp)


def _optimizer_metadata(pg_collection: ProcessGroupCollection | None) -> dict[str, Any]:
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    return {**CONTENT, "dp_cp_group": groups.dp_cp, "distrib_optim_sharding_type": "fully_reshardable"}
