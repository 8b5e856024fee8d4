"""Random Megatron adapters of small models, saved by torch's own DCP, and what they add, worked out by hand."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

ATTENTION, MLP = "self_attention.", "mlp."
Tensors = dict[str, torch.Tensor]
GQA = {"heads": 4, "groups": 2, "head": 16, "hidden": 48, "ffn": 48, "layers": 2}
"""Of the case `gqa`."""


def shapes(sizes: dict[str, int] = GQA) -> dict[str, tuple[int, int]]:
    """[rows, columns] of Megatron's linear layers."""
    qkv = (sizes["heads"] + 2 * sizes["groups"]) * sizes["head"]
    return {
        f"{ATTENTION}linear_qkv": (qkv, sizes["hidden"]),
        f"{ATTENTION}linear_proj": (sizes["hidden"], sizes["heads"] * sizes["head"]),
        f"{MLP}linear_fc1": (2 * sizes["ffn"], sizes["hidden"]),
        f"{MLP}linear_fc2": (sizes["hidden"], sizes["ffn"]),
    }


def fused(rank: int, *, dora: bool = False, seed: int = 0, names: list[str] | None = None) -> Tensors:
    """LoRA's tensors, all layers in one stack, as Megatron-Bridge names them."""
    torch.manual_seed(seed)
    tensors: Tensors = {}
    for name, (rows, columns) in shapes().items():
        if names is None or name.rpartition(".")[2] in names:
            key = f"decoder.layers.{name}.adapter."
            tensors[f"{key}linear_in.weight"] = 0.1 * torch.randn(2, rank, columns)
            tensors[f"{key}linear_out.weight"] = 0.1 * torch.randn(2, rows, rank)
            if dora:
                tensors[f"{key}weight_magnitude"] = 1 + torch.rand(2, rows)
    return tensors


def save(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A checkpoint with a tracker file and our `peft_config.json`."""
    write_tensors(folder / "iter_0000007", tensors)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    if config:
        (folder / "peft_config.json").write_text(json.dumps(config))
    return folder


def write_tensors(folder: Path, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def read_tensors(folder: Path) -> Tensors:
    """What lies there, by torch's own DCP."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    into = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(into, checkpoint_id=folder, no_dist=True)
    return into


def split(name: str, matrix: torch.Tensor, sizes: dict[str, int] = GQA) -> Tensors:
    """Rows of a Megatron layer as HF's modules have them, group by group and half by half."""
    leaf = name.rpartition(".")[2]
    if leaf == "linear_fc1":
        gate, up = matrix.chunk(2)
        return {"mlp.gate_proj": gate, "mlp.up_proj": up}
    if leaf == "linear_qkv":
        each = sizes["heads"] // sizes["groups"]
        grouped = matrix.reshape(sizes["groups"], each + 2, sizes["head"], *matrix.shape[1:])
        return {
            "self_attn.q_proj": grouped[:, :each].flatten(0, 2),
            "self_attn.k_proj": grouped[:, each].flatten(0, 1),
            "self_attn.v_proj": grouped[:, each + 1].flatten(0, 1),
        }
    return {{"linear_proj": "self_attn.o_proj", "linear_fc2": "mlp.down_proj"}[leaf]: matrix}


def deltas(tensors: Tensors, scale: float) -> Tensors:
    """By HF module: scale * B @ A of every layer, in fp64."""
    found: Tensors = {}
    for key in [key for key in tensors if key.endswith("adapter.linear_in.weight")]:
        name = key.removeprefix("decoder.layers.").removesuffix(".adapter.linear_in.weight")
        b = tensors[key.replace("linear_in", "linear_out")]
        for layer, product in enumerate(scale * b.double() @ tensors[key].double()):
            for module, rows in split(name, product).items():
                found[f"model.layers.{layer}.{module}"] = rows
    return found
