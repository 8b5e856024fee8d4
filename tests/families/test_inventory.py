"""What our import writes is exactly what Megatron itself would save and ask for: every key, every global shape."""

from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from tests.families.case import Case
from tests.families.selection import every_case, every_local_case
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.integration.checkpoint_names import saved_name


def written(root: Path) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes of the tensors and keys of the objects of our import, as PyTorch reads them."""
    entries = FileSystemReader(root / "release").read_metadata().state_dict_metadata
    tensors = {key: tuple(entry.size) for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    return tensors, {key for key, entry in entries.items() if isinstance(entry, BytesStorageMetadata)}


@every_case
def test_keys_and_shapes_are_those_of_the_layers_that_trainers_use(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, case: Case
) -> None:
    root = workshop.imported(case)
    [(tensors, objects)] = megatron_with_transformer_engine.run(
        "tests.megatron.inventory:inventory", root=root, transformer_impl="transformer_engine"
    )

    assert written(root) == (tensors, objects | {"common_state/shard_0_1"})


@every_local_case
def test_keys_and_shapes_hold_for_megatrons_local_layers(workshop: Workshop, megatron: Ranks, case: Case) -> None:
    root = workshop.imported(case)
    [(tensors, objects)] = megatron.run("tests.megatron.inventory:inventory", root=root, transformer_impl="local")

    our_tensors, our_objects = written(root)

    assert our_tensors == {saved_name(key, our_tensors): shape for key, shape in tensors.items()}
    assert objects <= our_objects
