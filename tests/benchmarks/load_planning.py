"""What a rank computes before it reads: Qwen3-235B's import as Megatron plans to load it, by upstream's means and ours.

`python -m tests.benchmarks.load_planning [--upstream] [--layer-keys per-layer] [--layers 94] [--profile]` from the
repository's root. Prints CPU seconds by phase and what would be read; asserts nothing. Weights are holes, models are on
the meta device; every rank is played by a process of its own whose groups speak to nobody. Upstream's way takes minutes
at all 94 layers where they share their keys: the comparison of all ranks' shards with one another among them.
"""

import argparse
import cProfile
import json
import logging
import pstats
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from tests.large_stand_ins import QWEN3_235B, write_stand_in
from worker.checkpoints.extents import Literal
from worker.handlers import import_checkpoint
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ImportSpec
from worker.jobs.spec_fields import LayerKeys
from worker.mapping.family import megatron_values
from worker.mapping.record import Record
from worker.mapping.registry import family_of
from worker.verification.kernels import stand_in_for_kernels


@dataclass(frozen=True)
class Sizes:
    """Of a job; the rank that is played is one in the middle."""

    tp: int = 1
    pp: int = 1
    ep: int = 1
    etp: int = 1

    @property
    def world(self) -> int:
        """As few ranks as have these sizes."""
        return self.pp * max(self.tp, self.ep * self.etp)

    def __str__(self) -> str:
        return f"TP{self.tp} PP{self.pp} EP{self.ep} ETP{self.etp}"


EP8 = Sizes(ep=8)
OTHERS = (
    Sizes(ep=16),
    Sizes(ep=64),
    Sizes(tp=2, ep=8),
    Sizes(tp=2, ep=4, etp=2),
    Sizes(tp=8, ep=8),
    Sizes(tp=8, ep=8, etp=8),
    Sizes(pp=2, ep=8),
)


def write_import(folder: Path, config: dict[str, Any], layer_keys: LayerKeys) -> Path:
    """The iteration folder of an import whose weights are holes."""
    write_stand_in(folder / "hf", config)
    spec = ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore"), layer_keys=layer_keys)
    conversion = import_checkpoint.prepare(spec, LocalPaths())
    for name, data in conversion.small_files.items():
        (folder / "mcore" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mcore" / name).write_bytes(data)
    for target in conversion.files:
        with (folder / "mcore" / target.path).open("wb") as file:
            file.truncate(target.size)
            for span in target.spans:
                file.seek(span.offset)
                file.write(b"".join(extent.data for extent in span.extents if isinstance(extent, Literal)))
    return folder / "mcore" / "release"


def rank_state(config: dict[str, Any], sizes: Sizes, folder: Path) -> dict[str, Any]:
    """What that rank of Megatron asks for; its tensors all share some memory that nothing touches."""
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.process_groups_config import ProcessGroupCollection
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from worker.integration import for_this_host
    from worker.mapping.model_config import build
    from worker.verification.off_cuda import megatron_on

    distributed.init_process_group("fake", store=FakeStore(), rank=sizes.world // 2, world_size=sizes.world)
    parallel_state.initialize_model_parallel(
        sizes.tp,
        sizes.pp,
        expert_model_parallel_size=sizes.ep,
        expert_tensor_parallel_size=sizes.etp,
        create_gloo_process_groups=False,
    )
    record = Record(config, "stand-in")
    family = family_of(record)
    made: Any = for_this_host(build(megatron_values(family, family.to_mcore(record), "stand-in")))
    made.transformer.perform_initialization = made.transformer.use_cpu_initialization = False
    made.transformer.tensor_model_parallel_size = sizes.tp
    made.transformer.sequence_parallel = sizes.tp > 1
    made.transformer.pipeline_model_parallel_size = sizes.pp
    made.transformer.expert_model_parallel_size = sizes.ep
    made.transformer.expert_tensor_parallel_size = sizes.etp
    made.should_pad_vocab = False
    made.finalize()
    with megatron_on("meta"), torch.device("meta"):
        model = made.get_builder_cls()(made).build_model(ProcessGroupCollection.use_mpu_process_groups())
        recorded: Any = dist_checkpointing.load_content_metadata(str(folder))
        state = {"model": model.sharded_state_dict(metadata=recorded)}
    values = list(nested_values(state))
    largest = max(value.data.nbytes for value in values if isinstance(value.data, torch.Tensor))
    memory = torch.empty(largest, dtype=torch.uint8)
    for value in values:
        if isinstance(value, ShardedObject):
            value.data = None
        else:
            value.allow_shape_mismatch = False  # it would be zeroed
            value.data = memory[: value.data.nbytes].view(value.data.dtype).view(value.data.shape)
    return state


@contextmanager
def timed(phases: dict[str, float], functions: dict[str, tuple[Any, str]]) -> Iterator[None]:
    """CPU seconds of each function, by phase."""

    def watched(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                phases[phase] += time.process_time() - started

        return run

    with ExitStack() as stack:
        for phase, (owner, name) in functions.items():
            stack.enter_context(mock.patch.object(owner, name, watched(phase, getattr(owner, name))))
        yield


def plan_upstream(state: dict[str, Any], folder: Path) -> dict[str, float]:
    """`dist_checkpointing.load` up to its first tensor: seconds by phase, bytes read and wanted."""
    from megatron.core.dist_checkpointing.strategies import torch as strategies
    from torch.distributed._shard.sharded_tensor import api as sharded_tensor
    from torch.distributed._shard.sharding_spec import api as sharding_spec
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.planner import LoadItemType
    from torch.futures import Future

    counts: dict[str, float] = defaultdict(float)
    ordinary = FileSystemReader.read_data

    def counted(reader: Any, plan: Any, planner: Any) -> Any:
        for item in plan.items:
            if item.type is LoadItemType.TENSOR:
                stored = planner.metadata.state_dict_metadata[item.storage_index.fqn]
                counts["bytes read"] += reader.storage_data[item.storage_index].length
                counts["bytes wanted"] += prod(item.lengths) * stored.properties.dtype.itemsize
        objects = type(plan)([item for item in plan.items if item.type is LoadItemType.BYTE_IO])
        with timed(counts, {"objects": (planner, "load_bytes")}):
            ordinary(reader, objects, planner)
        answer: Future[None] = Future()
        answer.set_result(None)
        return answer

    functions = {
        "metadata": (FileSystemReader, "read_metadata"),
        "conversion to torch's classes": (strategies, "mcore_to_pyt_state_dict"),
        "in it all ranks' shards compared in pairs": (sharded_tensor, "validate_non_overlapping_shards_metadata"),
        "and once more for their sharding spec": (sharding_spec, "validate_non_overlapping_shards_metadata"),
        "DCP load planning": (strategies.MCoreLoadPlanner, "create_local_plan"),
    }
    with mock.patch.object(FileSystemReader, "read_data", counted), timed(counts, functions):
        load(state, folder)
    return dict(counts)


def plan_directly(state: dict[str, Any], folder: Path) -> dict[str, float]:
    """The same by our strategy."""
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

    from worker.checkpoints.torch_dist import TorchDistFolder
    from worker.integration import direct_load

    counts: dict[str, float] = defaultdict(float)

    def counted(reads: Any) -> None:
        wanted = sum(read.part.numel * read.dtype.itemsize for read in reads)
        counts["bytes read"] = counts["bytes wanted"] = wanted

    functions = {
        "metadata": (TorchDistFolder, "open"),
        "objects, by upstream": (TorchDistLoadShardedStrategy, "load"),
        "our planning": (direct_load, "_reads"),
    }
    with timed(counts, functions), mock.patch.object(direct_load, "_fill", counted):
        load(state, folder, direct_load.DirectLoadStrategy())
    return dict(counts)


def load(state: dict[str, Any], folder: Path, strategy: Any = None) -> None:
    """Upstream's entry, less what needs the other ranks and what would need the weights (gate and up joined)."""
    from megatron.core.dist_checkpointing import serialization

    with mock.patch.object(serialization, "apply_factory_merges", return_value={}):
        serialization.load(state, str(folder), strategy, validate_access_integrity=False)


def play(config: dict[str, Any], sizes: Sizes, folder: Path, way: str, profile: bool) -> None:
    """As the rank: print what its way of loading takes."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    stand_in_for_kernels()
    state = rank_state(config, sizes, folder)
    profiler = cProfile.Profile(time.process_time)
    started = time.process_time()
    if profile:
        profiler.enable()
    counts = {"upstream": plan_upstream, "ours": plan_directly}[way](state, folder)
    profiler.disable()
    counts["all before the first tensor"] = time.process_time() - started
    read, wanted = counts.pop("bytes read"), counts.pop("bytes wanted")
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in counts.items())
    print(f"{sizes!s:20} {way:9} {phases}; {wanted / 1e9:.1f} GB asked for, read {read / wanted:.2f}x", flush=True)
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(12)


def main() -> None:
    """Write the import, then play the ranks one after the other."""
    parser = argparse.ArgumentParser(prog="load_planning", description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=QWEN3_235B["num_hidden_layers"])
    parser.add_argument("--upstream", action="store_true", help="upstream's way at EP8 too, the yardstick")
    parser.add_argument("--layer-keys", choices=get_args(LayerKeys), default="stacked", help="of the import")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = QWEN3_235B | {"num_hidden_layers": options.layers}
    if options.play:
        given = json.loads(options.play)
        folder = options.folder / "mcore" / "release"
        play(config, Sizes(**given["sizes"]), folder, given["way"], options.profile)
        return
    with tempfile.TemporaryDirectory(prefix="ferry-load-planning-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        if not (folder / "mcore").exists():
            size = (write_import(folder, config, options.layer_keys) / ".metadata").stat().st_size
            print(f"{options.layers} layers, keys {options.layer_keys}; .metadata of {size / 1e6:.1f} MB")
        runs = [
            (EP8, "ours"),
            *([(EP8, "upstream")] if options.upstream else []),
            *((other, "ours") for other in OTHERS),
        ]
        for sizes, way in runs:
            given = json.dumps({"sizes": vars(sizes), "way": way})
            own = [
                "--folder",
                str(folder),
                "--layers",
                str(options.layers),
                *(["--profile"] if options.profile else []),
            ]
            command = [sys.executable, "-m", "tests.benchmarks.load_planning", *own, "--play", given]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
