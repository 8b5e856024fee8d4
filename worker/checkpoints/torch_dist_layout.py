"""A `torch_dist` checkpoint to be written: `.distcp` files laid out byte by byte, and the index that names them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from .dtypes import BY_SAFETENSORS
from .extents import Item, Literal, Span, TargetFile, Zeros
from .sharing import padding_before
from .torch_archive import object_archive, tensor_envelope
from .torch_dist import FORMAT, METADATA
from .torch_pickle import Call, Global, New, Pairs, write

_META = "torch.distributed.checkpoint.metadata"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
_DCP_VERSION = "1.0.0"


def lay_out_items(items: Iterable[Item], folder: str, file_bytes: int) -> tuple[TargetFile, ...]:
    """`__0_<i>.distcp` files of about `file_bytes`: each item an archive of its own, framed by literal bytes.

    Between them, zeros: so many that the next one's blocks are those of the file that it comes from.
    """
    files: list[list[Span]] = [[]]
    for item in items:
        end = files[-1][-1].offset + files[-1][-1].length if files[-1] else 0
        if end >= file_bytes:
            files.append([])
            end = 0
        before, after = tensor_envelope(_stored_shape(item), item.dtype, item.nbytes)
        if gap := padding_before(item.extents, end + len(before)):
            files[-1].append(Span(offset=end, extents=(Zeros(gap),)))
            end += gap
        files[-1] += (
            Span(offset=end, extents=(Literal(before),)),
            Span(offset=end + len(before), extents=item.extents, label=item.label),
            Span(offset=end + len(before) + item.nbytes, extents=(Literal(after),)),
        )
    return tuple(
        TargetFile(path=f"{folder}/__0_{number}.distcp", spans=tuple(spans)) for number, spans in enumerate(files)
    )


def lay_out_objects(objects: Mapping[str, object], folder: str) -> TargetFile:
    """One more `.distcp` file: small objects, each an archive of its own."""
    spans: list[Span] = []
    end = 0
    for name, value in objects.items():
        data = object_archive(value)
        spans.append(Span(offset=end, extents=(Literal(data),), label=name))
        end += len(data)
    return TargetFile(path=f"{folder}/__1_0.distcp", spans=tuple(spans))


def index_files(items: Sequence[Item], files: Iterable[TargetFile], objects: TargetFile) -> dict[str, bytes]:
    """`.metadata` and `metadata.json`, by name: what makes the `.distcp` files a checkpoint."""
    metadata = New(
        Global(_META, "Metadata"),
        {
            "state_dict_metadata": _tensors_and_objects(items, objects),
            "planner_data": None,
            "storage_data": Pairs((*_stored_items(items, files), *_stored_objects(objects))),
            "storage_meta": New(
                Global(_META, "StorageMeta"), {"checkpoint_id": None, "save_id": None, "load_id": None, "modules": []}
            ),
            "version": _DCP_VERSION,
        },
    )
    return {METADATA: write(metadata), FORMAT: json.dumps(_FORMAT).encode() + b"\n"}


def _stored_shape(item: Item) -> tuple[int, ...]:
    return (*(1 for _ in item.stack), *item.shape)


def _offsets(item: Item) -> tuple[int, ...]:
    return (*item.index, *(0 for _ in item.shape))


def _size(values: tuple[int, ...]) -> Call:
    return Call(Global("torch", "Size"), (values,))


def _stored_items(items: Sequence[Item], files: Iterable[TargetFile]) -> Iterable[tuple[object, object]]:
    """In the order of `items`, which is the order of the files' spans: before, data, after, now and then a gap."""
    triples = ((file, triple) for file in files for triple in zip(*[iter(_framed(file))] * 3, strict=True))
    for item, (file, (before, data, after)) in zip(items, triples, strict=True):
        length = before.length + data.length + after.length
        yield _index(item.name, _offsets(item)), _storage_info(file, before.offset, length)


def _framed(file: TargetFile) -> tuple[Span, ...]:
    """All but the gaps."""
    return tuple(span for span in file.spans if span.label or not isinstance(span.extents[0], Zeros))


def _stored_objects(objects: TargetFile) -> Iterable[tuple[object, object]]:
    for span in objects.spans:
        yield _index(str(span.label), None), _storage_info(objects, span.offset, span.length)


def _index(name: str, offsets: tuple[int, ...] | None) -> New:
    offset = None if offsets is None else _size(offsets)
    return New(Global(_META, "MetadataIndex"), {"fqn": name, "index": None, "offset": offset})


def _storage_info(file: TargetFile, offset: int, length: int) -> New:
    state = {"relative_path": file.path.rsplit("/", 1)[1], "offset": offset, "length": length}
    return New(Global("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)


def _tensors_and_objects(items: Sequence[Item], objects: TargetFile) -> dict[str, New]:
    by_name = groupby(sorted(items, key=lambda item: item.name), key=lambda item: item.name)
    tensors = {name: _tensor(tuple(group)) for name, group in by_name}
    return tensors | {str(span.label): New(Global(_META, "BytesStorageMetadata"), {}) for span in objects.spans}


def _tensor(items: tuple[Item, ...]) -> New:
    first = items[0]
    shape = (*first.stack, *first.shape)
    chunks = [
        New(
            Global(_META, "ChunkStorageMetadata"),
            {"offsets": _size(_offsets(item)), "sizes": _size(_stored_shape(item))},
        )
        for item in items
    ]
    state = {"properties": _properties(first.dtype), "size": _size(shape), "chunks": chunks}
    return New(Global(_META, "TensorStorageMetadata"), state)


def _properties(dtype: str) -> New:
    """dtype, layout, requires_grad, memory format (0: contiguous), pinned: TensorProperties.__getstate__."""
    layout = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
    memory_format = Call(Global(_META, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Global("torch", BY_SAFETENSORS[dtype].torch), layout, False, memory_format, False)
    return New(Global(_META, "TensorProperties"), state)
