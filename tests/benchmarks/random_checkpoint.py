"""A random Llama of any size as an HF checkpoint, written as raw bytes: no tensor library, no model."""

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

_ITEM_BYTES = 2
_PATTERN = os.urandom(8 * 2**20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The shape of a Llama with untied embeddings, in bf16. The defaults have 1.5 billion parameters."""

    layers: int = 16
    hidden: int = 2048
    ffn: int = 8192
    heads: int = 32
    groups: int = 8
    head: int = 64
    vocabulary: int = 128256
    shards: int = 3

    @property
    def config(self) -> dict[str, object]:
        """What config.json says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(prod(shape) * _ITEM_BYTES for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in HF's order."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in self._of_layer():
                yield f"model.layers.{layer}.{name}.weight", shape
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def _of_layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        queries, keys = self.heads * self.head, self.groups * self.head
        yield "input_layernorm", (self.hidden,)
        yield "self_attn.q_proj", (queries, self.hidden)
        yield "self_attn.k_proj", (keys, self.hidden)
        yield "self_attn.v_proj", (keys, self.hidden)
        yield "self_attn.o_proj", (self.hidden, queries)
        yield "post_attention_layernorm", (self.hidden,)
        yield "mlp.gate_proj", (self.ffn, self.hidden)
        yield "mlp.up_proj", (self.ffn, self.hidden)
        yield "mlp.down_proj", (self.hidden, self.ffn)


def make(folder: Path, size: Size, pattern: bytes = _PATTERN) -> None:
    """Write the checkpoint, its data `pattern` over and over, unless it is there.

    config.json comes last: with it the rest is whole.
    """
    config = folder / "config.json"
    text = json.dumps(size.config)
    if config.exists() and config.read_text() == text:
        return
    config.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {name: file for file, tensors in _shards(size).items() for name, _ in tensors}
    for file, tensors in _shards(size).items():
        _write(folder / file, tensors, pattern)
    index = {"metadata": {"total_size": size.nbytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.write_text(text)


def _shards(size: Size) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """File names -> tensors, in order, of about the same size."""
    shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    done = 0
    for name, shape in size.tensors():
        number = min(size.shards, 1 + done * size.shards // size.nbytes)
        shards.setdefault(f"model-{number:05d}-of-{size.shards:05d}.safetensors", []).append((name, shape))
        done += prod(shape) * _ITEM_BYTES
    return shards


def _write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], pattern: bytes) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        start, end = end, end + prod(shape) * _ITEM_BYTES
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(pattern)):
            file.write(pattern[: end - start])
