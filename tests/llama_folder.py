"""A random Llama as an HF checkpoint, its tensors all different, written without torch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_VOCABULARY = 1000


def write_llama(
    folder: Path, *, layers: int, hidden: int, more: dict[str, object] | None = None, without: str | None = None
) -> None:
    """In float32: 1 MB for 2 layers of 64, 5 MB for 4 layers of 128, 26 MB for 6 layers of 256."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | (more or {})))
    chance = np.random.default_rng(layers * hidden)
    tensors = {
        name: chance.standard_normal(shape, dtype=np.float32)
        for name, shape in _shapes(layers, hidden)
        if name != without
    }
    save_file(tensors, folder / "model.safetensors")


def _shapes(layers: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (_VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (_VOCABULARY, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}self_attn.q_proj.weight", (hidden, hidden)
        yield f"{prefix}self_attn.k_proj.weight", (hidden // 2, hidden)
        yield f"{prefix}self_attn.v_proj.weight", (hidden // 2, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (4 * hidden, hidden)
        yield f"{prefix}mlp.up_proj.weight", (4 * hidden, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, 4 * hidden)
