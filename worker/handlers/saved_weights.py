"""The tensors of an iteration folder in either of Megatron's formats, as far as they may be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from ..checkpoints.common_state import common_files, saved_args
from ..checkpoints.legacy_torch import LegacyShards
from ..checkpoints.singleton_shards import SingletonShards, has_singletons
from ..checkpoints.source import Source
from ..checkpoints.torch_dist import METADATA, TorchDistFolder
from ..engine.reading import same_bytes
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model
from ..mapping.layer_sets import one_stack

_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"

SavedWeights = TorchDistFolder | LegacyShards


def open_saved(folder: Path, *, allow_pickle: bool) -> SavedWeights:
    """Read the index. BadInputError where it is a pickle that the operator has not allowed, or broken."""
    if (folder / METADATA).exists():
        return TorchDistFolder.open(folder)
    if not allow_pickle:
        raise _pickle_refused(folder)
    return LegacyShards.open(folder)


def args_of(saved: SavedWeights) -> Mapping[str, object]:
    """Megatron's command line as the run saved it; empty where it did not."""
    match saved:
        case TorchDistFolder():
            return saved_args(saved)
        case LegacyShards():
            return saved.args
        case _:
            assert_never(saved)


def args_files(saved: SavedWeights) -> tuple[Path, ...]:
    """The file that they stand in, where there is one."""
    match saved:
        case TorchDistFolder():
            return common_files(saved)
        case LegacyShards():
            return (saved.ranks[0].path,)
        case _:
            assert_never(saved)


def weights_of(saved: SavedWeights, model: Model) -> Source:
    """The tensors, by the names that `torch_dist` has for them."""
    match saved:
        case TorchDistFolder():
            return SingletonShards.of(saved) if has_singletons(saved.tensors) else saved
        case LegacyShards():
            merged = saved.merged(stacked=one_stack(model.mcore))
            if not model.mcore.get("share_embeddings_and_output_weights") or _OUTPUT not in merged.tensors:
                return merged
            _refuse_unshared(merged)
            return merged.without(_OUTPUT)
        case _:
            assert_never(saved)


def _refuse_unshared(weights: Source) -> None:
    """With tied embeddings the last pipeline stage saves a copy of the first one's."""
    embedding, output = (weights.tensors.get(name) for name in (_EMBEDDING, _OUTPUT))
    if embedding is None or embedding != output or not _same_rows(weights, embedding.shape[0]):
        raise BadInputError(
            "bad_tensor",
            f"Megatron tensor {_OUTPUT!r}",
            found=f"other values than {_EMBEDDING!r}",
            expected="a copy of it, since the config ties them",
            next_step="Give a config whose tie_word_embeddings is false: `ferry export ... --hf-config DIR`.",
        )


def _same_rows(weights: Source, rows: int) -> bool:
    return same_bytes(weights.rows(_EMBEDDING, (), 0, rows), weights.rows(_OUTPUT, (), 0, rows))


def _pickle_refused(folder: Path) -> BadInputError:
    return BadInputError(
        "bad_checkpoint",
        f"Megatron checkpoint {folder}",
        found="the older torch format, whose index is a pickle",
        expected="torch_dist, since pickles are not allowed here",
        next_step="If you trust its source: FERRY_ALLOW_PICKLE=1 for the workers, or `--local --allow-pickle`.",
    )
