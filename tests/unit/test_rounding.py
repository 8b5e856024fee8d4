"""A live Megatron model's weights rounded in the blocks of HF's matrices, wherever their rows lie."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from worker.integration import live_tensors
from worker.mapping.blocks import Address, Block, Task
from worker.verification.rounding import Rounding, round_megatron
from worker.verification.tensors import quantized_of

COLUMNS, BLOCK = 96, 128
FC1, QKV = Address("linear_fc1", (0,)), Address("linear_qkv", (0,))


def shard(address: Address, first: int, data: torch.Tensor) -> Any:
    return SimpleNamespace(place=SimpleNamespace(address=address, offset=(first, 0)), data=data)


def task(name: str, *blocks: Block) -> Task:
    rows = sum(block.rows for block in blocks)
    return Task(target=Address(name), dtype="F32", shape=(rows, COLUMNS), blocks=blocks)


def in_fp8(weight: torch.Tensor) -> torch.Tensor:
    codes, scales = quantized_of(weight, BLOCK)
    spread = scales.repeat_interleave(BLOCK, 0)[: len(weight)].repeat_interleave(BLOCK, 1)[:, :COLUMNS]
    return codes.float() * spread


def test_blocks_are_those_of_hfs_matrices() -> None:
    torch.manual_seed(0)
    gate, up, qkv = torch.randn(200, COLUMNS), torch.randn(200, COLUMNS), torch.randn(64, COLUMNS)
    was = [one.clone() for one in (gate, up, qkv)]
    tasks = (
        task("gate", Block(FC1, 0, 200)),
        task("up", Block(FC1, 200, 200)),
        task("q", Block(QKV, 0, 16), Block(QKV, 32, 16)),
        task("k", Block(QKV, 16, 16), Block(QKV, 48, 16)),
    )
    shards = [shard(FC1, 200, up), shard(FC1, 0, gate), shard(QKV, 0, qkv)]

    with mock.patch.object(live_tensors, "live_shards", return_value=shards):
        round_megatron(None, Rounding(block=BLOCK, names=("gate", "up", "q")), tasks)

    assert torch.equal(gate, in_fp8(was[0]))
    assert torch.equal(up, in_fp8(was[1]))
    q = torch.cat([was[2][:16], was[2][32:48]])
    assert torch.equal(torch.cat([qkv[:16], qkv[32:48]]), in_fp8(q))
    assert torch.equal(qkv[16:32], was[2][16:32])
    assert not torch.equal(gate, was[0])
