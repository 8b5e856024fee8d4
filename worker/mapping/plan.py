"""Planning: a model's bindings and the tensors that are there become tasks, both ways, checked before any byte."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..jobs.errors import BadInputError
from .bindings import Binding, Model, Part, bindings, copies, drop_reason
from .blocks import Address, Block, Left, Permutation, Plan, Task, TensorInfo, Tensors
from .quantization import refuse_quantized

COPIED_DTYPES = ("BF16", "F16", "F32")

_NO_MODEL_STATE = re.compile(r"(^|\.)(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state)(\.|$)")
"""Tensors that a trainer saves beside the model's."""


def plan_import(model: Model, tensors: Tensors, vocab_size: int | None = None) -> Plan:
    """HF tensors -> Megatron tasks. BadInputError on a tensor that is unknown, missing, misshapen or mixed in dtype.

    `vocab_size` is that of the padded vocabulary, where it is to be written padded.
    """
    refuse_quantized(model.hf)
    bound = bindings(model)
    claimed = {part.source.name for binding in bound for part in binding.parts}
    repeated = {name: of for name, of in copies(model).items() if name in tensors}
    dropped = tuple(_left(model, name, repeated) for name in tensors if name not in claimed)
    for binding in bound:
        for part in binding.parts:
            _check_shape("HF tensor", part.source.name, (*part.stack, *part.shape), tensors)
    tasks = tuple(_padded(_import_task(binding, tensors), binding, vocab_size) for binding in bound)
    _check_dtypes(bound, tensors)
    _check_stacks(tasks)
    filled = {binding.target.name: binding.why_filled for binding in bound if binding.why_filled}
    return Plan(
        tasks=tasks,
        dropped=dropped,
        filled=tuple(Left(name=name, why=why) for name, why in filled.items()),
        must_be_equal=tuple(repeated.items()),
    )


def plan_export(model: Model, tensors: Tensors) -> Plan:
    """Megatron tensors -> HF tasks, in HF's order. The same errors, and one for a shape that is not the config's."""
    bound = bindings(model)
    targets = {binding.target.name for binding in bound}
    dropped = tuple(_left_behind(model, name) for name in tensors if name not in targets)
    for binding in bound:
        expected = (*binding.stack, *binding.shape)
        _check_shape("Megatron tensor", binding.target.name, expected, tensors, padded=binding.padded)
    zeros = tuple(Block(binding.target, 0, binding.shape[0]) for binding in bound if binding.why_filled)
    tasks = {str(task.target): task for task in _export_tasks(bound, tensors)}
    tasks |= {name: replace(tasks[of], target=Address(name)) for name, of in copies(model).items()}
    ordered = tuple(sorted(tasks.values(), key=_hf_order))
    _check_stacks(ordered)
    return Plan(tasks=ordered, dropped=dropped, must_be_zero=zeros)


def _import_task(binding: Binding, tensors: Tensors) -> Task:
    if binding.permutation:
        [part] = binding.parts
        blocks = (Block(part.source, 0, part.shape[0]),)
    else:
        blocks = tuple(Block(binding.parts[row.part].source, row.start, row.rows) for row in binding.row_blocks)
    return Task(
        target=binding.target,
        dtype=tensors[binding.like].dtype,
        shape=binding.shape,
        stack=binding.stack,
        blocks=_joined(blocks),
        permutation=binding.permutation,
    )


def _padded(task: Task, binding: Binding, vocab_size: int | None) -> Task:
    if vocab_size is None or not binding.padded:
        return task
    return replace(task, shape=(vocab_size, *task.shape[1:]), padding_rows=vocab_size - task.shape[0])


def _export_tasks(bound: Iterable[Binding], tensors: Tensors) -> Iterable[Task]:
    """The bindings read backwards: each HF tensor's rows, from its first to its last, of whatever holds them."""
    parts: dict[Address, Part] = {}
    rows: defaultdict[Address, list[tuple[int, Block]]] = defaultdict(list)
    for binding in bound:
        if binding.permutation:
            yield _permuted_export(binding, binding.permutation, tensors)
            continue
        position = 0
        for block in binding.row_blocks:
            part = binding.parts[block.part]
            parts[part.source] = part
            rows[part.source].append((block.start, Block(binding.target, position, block.rows)))
            position += block.rows
    for source, part in parts.items():
        blocks = tuple(block for _, block in sorted(rows[source], key=lambda row: row[0]))
        dtype = _one_dtype(source, blocks, tensors)
        yield Task(target=source, dtype=dtype, shape=part.shape, stack=part.stack, blocks=_joined(blocks))


def _permuted_export(binding: Binding, permutation: Permutation, tensors: Tensors) -> Task:
    [part] = binding.parts
    return Task(
        target=part.source,
        dtype=tensors[binding.target.name].dtype,
        shape=part.shape,
        stack=part.stack,
        blocks=(Block(binding.target, 0, binding.shape[0]),),
        permutation=permutation.inverse(),
    )


def _one_dtype(source: Address, blocks: tuple[Block, ...], tensors: Tensors) -> str:
    dtypes = {block.source.name: tensors[block.source.name].dtype for block in blocks}
    if len(set(dtypes.values())) > 1:
        raise _mixed(f"Megatron tensors that make HF tensor {str(source)!r}", dtypes)
    return next(iter(dtypes.values()))


def _joined(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Neighbours that continue each other become one."""
    joined: list[Block] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if last and last.source == block.source and last.start + last.rows == block.start:
            joined[-1] = Block(last.source, last.start, last.rows + block.rows)
        else:
            joined.append(block)
    return tuple(joined)


def _left(model: Model, name: str, repeated: Mapping[str, str]) -> Left:
    if name in repeated:
        return Left(name=name, why=f"a copy of {repeated[name]}")
    why = drop_reason(model, name)
    if why is not None:
        return Left(name=name, why=why)
    raise BadInputError(
        "unknown_tensor",
        f"{model.family.name}: HF tensor {name!r}",
        found="no rule for it",
        expected="every tensor to be mapped, or dropped with a reason",
        next_step=f"Add a Rule, or a Drop with its reason, in {model.family.page}.",
    )


def _left_behind(model: Model, name: str) -> Left:
    if _NO_MODEL_STATE.search(name):
        return Left(name=name, why="a trainer's state, not the model's")
    raise BadInputError(
        "unknown_tensor",
        f"{model.family.name}: Megatron tensor {name!r}",
        found="no rule for it under this config",
        expected="every model tensor to be mapped",
        next_step=f"Check that the config belongs to this checkpoint; else add a Rule in {model.family.page}.",
    )


def _check_shape(side: str, name: str, expected: tuple[int, ...], tensors: Tensors, *, padded: bool = False) -> None:
    info = tensors.get(name)
    if info is None:
        raise _missing(side, name, f"shape {list(expected)}")
    _check_dtype(name, info)
    longer = padded and info.shape[1:] == expected[1:] and info.shape[0] > expected[0]
    if info.shape != expected and not longer:
        raise _misshapen(side, name, info.shape, expected)


def _check_dtypes(bound: Iterable[Binding], tensors: Tensors) -> None:
    """HF tensors that go into one Megatron tensor share a dtype: their bytes lie side by side there."""
    for binding in bound:
        dtypes = {part.source.name: tensors[part.source.name].dtype for part in binding.parts}
        if len(set(dtypes.values())) > 1:
            raise _mixed(f"HF tensors that make Megatron tensor '{binding.target}'", dtypes)


def _check_dtype(name: str, info: TensorInfo) -> None:
    if info.dtype not in COPIED_DTYPES:
        raise BadInputError(
            "bad_tensor",
            f"tensor {name!r}",
            found=f"dtype {info.dtype}",
            expected=" or ".join(COPIED_DTYPES),
            next_step="Dequantize or cast the checkpoint first.",
        )


def _check_stacks(tasks: tuple[Task, ...]) -> None:
    """All slices of a stack are one tensor, which has one dtype."""
    first: dict[str, Task] = {}
    for task in tasks:
        other = first.setdefault(task.target.name, task)
        if other.dtype != task.dtype:
            raise BadInputError(
                "bad_tensor",
                f"tensor {task.blocks[0].source.name!r}" if task.blocks else f"tensor {task.target}",
                found=f"dtype {task.dtype}, while slice {list(other.target.index)} of '{task.target}' is {other.dtype}",
                expected="one dtype in all layers and experts, since they are stacked in one tensor",
                next_step="Cast the checkpoint to one dtype first.",
            )


def _mixed(thing: str, dtypes: dict[str, str]) -> BadInputError:
    return BadInputError(
        "bad_tensor",
        thing,
        found=", ".join(f"{name} {dtype}" for name, dtype in dtypes.items()),
        expected="one dtype",
        next_step="Cast the checkpoint to one dtype first.",
    )


def _missing(side: str, name: str, expected: str) -> BadInputError:
    return BadInputError(
        "missing_tensor",
        f"{side} {name!r}",
        found="no such tensor in the checkpoint",
        expected=expected,
        next_step="Check that all files of the checkpoint are there and that its config belongs to it.",
    )


def _misshapen(side: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> BadInputError:
    return BadInputError(
        "bad_tensor",
        f"{side} {name!r}",
        found=f"shape {list(found)}",
        expected=f"shape {list(expected)} by its config",
        next_step="Check that the config belongs to this checkpoint.",
    )


def _hf_order(task: Task) -> tuple[int, list[tuple[bool, int, str]], tuple[int, ...]]:
    """Embedding, layers by number, final norm, head: the order in which HF itself saves."""
    name = task.target.name
    place = 0 if "embed" in name else 1 if ".layers." in name else 3 if name.startswith("lm_head") else 2
    pieces = [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in name.split(".")]
    return place, pieces, task.target.index
