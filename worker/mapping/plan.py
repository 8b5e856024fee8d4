"""Planning: a model's bindings and the tensors that are there become tasks, both ways, checked before any byte."""

import re
from collections import defaultdict
from collections.abc import Iterable

from ..jobs.errors import BadInputError
from .bindings import Binding, Model, Part, bindings, drop_reason
from .blocks import Address, Block, Left, Plan, Task, TensorInfo, Tensors

COPIED_DTYPES = ("BF16", "F16", "F32")

_NO_MODEL_STATE = re.compile(r"(^|\.)(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state)(\.|$)")
"""Tensors that a trainer saves beside the model's."""


def plan_import(model: Model, tensors: Tensors) -> Plan:
    """HF tensors -> Megatron tasks. BadInputError on a tensor that is unknown, missing, misshapen or mixed in dtype."""
    bound = tuple(bindings(model))
    claimed = {part.name for binding in bound for part in binding.parts}
    dropped = tuple(_left(model, name) for name in tensors if name not in claimed)
    for binding in bound:
        for part in binding.parts:
            _check_part(part, tensors)
    tasks = tuple(_import_task(binding, tensors) for binding in bound)
    _check_stacks(tasks)
    filled = {binding.target.name: binding.why_filled for binding in bound if binding.why_filled}
    return Plan(tasks=tasks, dropped=dropped, filled=tuple(Left(name=n, why=w) for n, w in filled.items()))


def plan_export(model: Model, tensors: Tensors) -> Plan:
    """Megatron tensors -> HF tasks, in HF's order. The same errors, and one for a shape that is not the config's."""
    bound = tuple(bindings(model))
    targets = {binding.target.name for binding in bound}
    dropped = tuple(_left_behind(model, name) for name in tensors if name not in targets)
    for binding in bound:
        _check_target(binding, tensors)
    tasks = tuple(task for binding in bound for task in _export_tasks(binding, tensors))
    zeros = tuple(Block(binding.target, 0, binding.shape[0]) for binding in bound if binding.why_filled)
    return Plan(tasks=tuple(sorted(tasks, key=_hf_order)), dropped=dropped, must_be_zero=zeros)


def _import_task(binding: Binding, tensors: Tensors) -> Task:
    blocks = tuple(Block(Address(binding.parts[row.part].name), row.start, row.rows) for row in binding.row_blocks)
    return Task(
        target=binding.target,
        dtype=tensors[binding.like].dtype,
        shape=binding.shape,
        stack=binding.stack,
        blocks=_joined(blocks),
    )


def _export_tasks(binding: Binding, tensors: Tensors) -> Iterable[Task]:
    """The binding read backwards: each HF tensor's rows, from its first to its last."""
    rows: defaultdict[int, list[tuple[int, Block]]] = defaultdict(list)
    position = 0
    for block in binding.row_blocks:
        rows[block.part].append((block.start, Block(binding.target, position, block.rows)))
        position += block.rows
    for number, part in enumerate(binding.parts):
        ordered = tuple(block for _, block in sorted(rows[number], key=lambda row: row[0]))
        dtype = tensors[binding.target.name].dtype
        yield Task(target=Address(part.name), dtype=dtype, shape=part.shape, blocks=_joined(ordered))


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


def _left(model: Model, name: str) -> Left:
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


def _check_part(part: Part, tensors: Tensors) -> None:
    info = tensors.get(part.name)
    if info is None:
        raise _missing("HF tensor", part.name, f"shape {list(part.shape)}")
    _check_dtype(part.name, info)
    if info.shape != part.shape:
        raise _misshapen("HF tensor", part.name, info.shape, part.shape)


def _check_target(binding: Binding, tensors: Tensors) -> None:
    name = binding.target.name
    expected = binding.shape if binding.stack is None else (binding.stack, *binding.shape)
    info = tensors.get(name)
    if info is None:
        raise _missing("Megatron tensor", name, f"shape {list(expected)}")
    _check_dtype(name, info)
    longer = binding.padded and info.shape[1:] == expected[1:] and info.shape[0] > expected[0]
    if info.shape != expected and not longer:
        raise _misshapen("Megatron tensor", name, info.shape, expected)


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
    """Megatron holds all layers of a stack in one tensor, which has one dtype."""
    first: dict[str, Task] = {}
    for task in tasks:
        other = first.setdefault(task.target.name, task)
        if other.dtype != task.dtype:
            raise BadInputError(
                "bad_tensor",
                f"tensor {task.blocks[0].source.name!r}" if task.blocks else f"tensor {task.target}",
                found=f"dtype {task.dtype}, while the same tensor of layer {other.target.index} is {other.dtype}",
                expected="one dtype in all layers, since Megatron stacks them",
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


def _hf_order(task: Task) -> tuple[int, list[int | str]]:
    """Embedding, layers by number, final norm, head: the order in which HF itself saves."""
    name = task.target.name
    place = 0 if "embed_tokens" in name else 1 if ".layers." in name else 2 if name.startswith("model.") else 3
    return place, [int(piece) if piece.isdigit() else piece for piece in name.split(".")]
