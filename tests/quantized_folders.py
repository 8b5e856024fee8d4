"""HF folders with quantized weights, made from plain ones, and the plain folders that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
MXFP4: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
INT4: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
        }
    },
}

Tensors = dict[str, torch.Tensor]
Quantize = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
"""(name, weight) -> what is stored for it, and what that stands for, in fp32."""


def write_quantized(
    plain: Path, quantized: Path, meant: Path, section: dict[str, Any], which: Callable[[str], bool], quantize: Quantize
) -> None:
    """`quantized` holds `which` of `plain`'s weights quantized; `meant` holds what they are then, in bf16."""
    tensors = load_file(plain / "model.safetensors")
    stored: Tensors = {}
    rounded: Tensors = {}
    for name, tensor in tensors.items():
        if which(name):
            parts, value = quantize(name, tensor)
            stored |= parts
            rounded[name] = value.to(torch.bfloat16).contiguous()
        else:
            stored[name] = rounded[name] = tensor
    config = json.loads((plain / "config.json").read_text())
    for folder, content, more in ((quantized, stored, {"quantization_config": section}), (meant, rounded, {})):
        folder.mkdir()
        save_file(content, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | more))


def fp8_blocks(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """DeepSeek-V3's: e4m3, a scale for each 128 x 128 block."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float().abs(), (0, -columns % 128, 0, -rows % 128))
    scale = padded.reshape(-(-rows // 128), 128, -1, 128).amax(dim=(1, 3)) / 448
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    codes = (weight.float() / spread).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}, codes.float() * spread


def mxfp4_experts(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """gpt-oss's: any codes and exponents will do, since their values are the weight; `weight` [experts, in, out]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    experts, rows, columns = weight.shape
    chance = torch.Generator().manual_seed(experts * rows * columns)
    blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), dtype=torch.uint8, generator=chance)
    scales = torch.randint(115, 128, (experts, columns, rows // 32), dtype=torch.uint8, generator=chance)
    meant = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, meant


def int4_packed(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """compressed-tensors' pack-quantized, groups of 32 columns."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float().abs(), (0, -columns % 32))
    scale = (padded.reshape(rows, -1, 32).amax(dim=2) / 7).to(torch.bfloat16)
    spread = scale.float().repeat_interleave(32, 1)[:, :columns]
    codes = (weight.float() / spread).round().clamp(-8, 7).int().float()  # no -0.0: int4 has none
    words = torch.nn.functional.pad(codes + 8, (0, -columns % 8)).reshape(rows, -1, 8).to(torch.int64)
    packed = sum((words[..., place] << (4 * place) for place in range(8)), torch.zeros((), dtype=torch.int64))
    stored = {
        f"{name}_packed": packed.to(torch.uint32).view(torch.int32),
        f"{name}_scale": scale,
        f"{name}_shape": torch.tensor([rows, columns]),
    }
    return stored, codes * spread
