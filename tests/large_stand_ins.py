"""The largest open models as header-only checkpoints: real configs, names, shapes and dtypes; every tensor a hole.

`python -m tests.large_stand_ins NAME FOLDER` writes one.
"""

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tests.quantized_folders import FP8, INT4
from worker.checkpoints.dtypes import BY_SAFETENSORS
from worker.mapping.bindings import Model, bindings, copies
from worker.mapping.record import Record
from worker.mapping.registry import family_of

_SHARD_BYTES = 4_500_000_000

_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": _YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
    "quantization_config": FP8,
}

KIMI_K2: dict[str, Any] = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "first_k_dense_replace": 1,
    "max_position_embeddings": 262144,
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": _YARN | {"factor": 64.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
    "quantization_config": INT4,
}

LLAMA_405B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 16384,
    "initializer_range": 0.02,
    "intermediate_size": 53248,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 128,
    "num_hidden_layers": 126,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}

LLAMA_8B: dict[str, Any] = LLAMA_405B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}

QWEN3_235B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 94,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}

STAND_INS = {
    "deepseek-v3": DEEPSEEK_V3,
    "kimi-k2": KIMI_K2,
    "llama-405b": LLAMA_405B,
    "qwen3-235b": QWEN3_235B,
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes = b""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * BY_SAFETENSORS[self.dtype].item_bytes


def write_stand_in(folder: Path, config: dict[str, Any]) -> None:
    """Some kilobytes on the disk, hundreds of gigabytes by their headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in _stored(config):
        if filled + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        weight_map |= {tensor.name: name for tensor in shard}
        _write_shard(folder / name, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _stored(config: dict[str, Any]) -> Iterator[_Tensor]:
    """What the files of such a model hold, in no special order."""
    record = Record({name: value for name, value in config.items() if name != "quantization_config"}, "stand-in")
    family = family_of(record)
    model = Model(family=family, hf=record, mcore=family.to_mcore(record))
    method = config.get("quantization_config", {}).get("quant_method")
    seen: set[str] = set()
    for binding in bindings(model):
        for part in binding.parts:
            if part.source.name not in seen:
                seen.add(part.source.name)
                yield from _as_stored(part.source.name, part.shape, method)
    shapes = {part.source.name: part.shape for binding in bindings(model) for part in binding.parts}
    for copy, of in copies(model).items():
        yield from _as_stored(copy, shapes[of], method)


def _as_stored(name: str, shape: tuple[int, ...], method: str | None) -> Iterator[_Tensor]:
    linear = name.endswith("proj.weight") or "kv_a_proj_with_mqa" in name
    if method == "fp8" and linear:
        yield _Tensor(name, "F8_E4M3", shape)
        yield _Tensor(f"{name}_scale_inv", "F32", (-(-shape[0] // 128), -(-shape[1] // 128)))
    elif method == "compressed-tensors" and ".experts." in name:
        yield _Tensor(f"{name}_packed", "I32", (shape[0], shape[1] // 8))
        yield _Tensor(f"{name}_scale", "BF16", (shape[0], shape[1] // 32))
        yield _Tensor(f"{name}_shape", "I64", (2,), struct.pack("<2q", *shape))
    else:
        yield _Tensor(name, "F32" if "e_score_correction_bias" in name else "BF16", shape)


def _write_shard(path: Path, tensors: list[_Tensor]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for tensor in tensors:
            if tensor.data:
                file.seek(8 + len(text) + header[tensor.name]["data_offsets"][0])
                file.write(tensor.data)


if __name__ == "__main__":
    write_stand_in(Path(sys.argv[2]), STAND_INS[sys.argv[1]])
