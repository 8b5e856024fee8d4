"""Tiny random HF checkpoints of the Llama family, in awkward shapes, written by transformers itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

VOCABULARY = 257
_THETA = 10000.0
# hidden == intermediate, so that a transposed or swapped matrix still fits; heads that do not split the hidden size;
# an eps and weights large enough that the norms, attention and rope all show in the logits.
_SHAPE: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": _THETA},
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def _rope(kind: str, theta: float = _THETA, **options: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kind of checkpoint. `control` are config changes that the logits must show."""

    name: str
    family: Literal["llama", "mistral"] = "llama"
    changes: Mapping[str, object] = field(default_factory=dict[str, object])
    control: Mapping[str, object] = field(default_factory=lambda: _rope("default", 2 * _THETA))
    length: int = 96
    max_shard_size: str = "1GB"
    old_spelling: bool = False
    """config.json as transformers 4 wrote it: `rope_theta`, `rope_scaling`, `torch_dtype`."""

    def __str__(self) -> str:
        return self.name

    @property
    def tokens(self) -> list[list[int]]:
        """Two sequences that use the whole vocabulary, its last entry included."""
        return [[(17 * place * (row + 1) + 256 * row) % VOCABULARY for place in range(self.length)] for row in range(2)]

    @property
    def layers(self) -> int:
        """How many decoder layers it has."""
        layers = {**_SHAPE, **self.changes}["num_hidden_layers"]
        assert isinstance(layers, int)
        return layers


def _yarn(**options: float) -> dict[str, object]:
    return _rope("yarn", factor=4.0, original_max_position_embeddings=32, **options)


# Their original length is far beyond these sequences; the theta is small enough for the scaled waves to show.
_LLAMA3 = {"max_position_embeddings": 131072} | _rope(
    "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
_PLAIN = _rope("default")

VARIANTS = (
    Variant(name="gqa"),
    Variant(name="mha", changes={"num_key_value_heads": 4}),
    Variant(name="mqa", changes={"num_key_value_heads": 1}),
    Variant(name="head-dim-from-hidden", changes={"head_dim": None}),
    Variant(name="tied", changes={"tie_word_embeddings": True}),
    Variant(name="attention-bias", changes={"attention_bias": True}),
    Variant(name="mlp-bias", changes={"mlp_bias": True}),
    Variant(name="all-biases", changes={"attention_bias": True, "mlp_bias": True}),
    Variant(name="fractional-theta", changes=_rope("default", 1234.5), control=_rope("default", 1234.0)),
    Variant(name="eps", changes={"rms_norm_eps": 1e-2}, control={"rms_norm_eps": 1e-3}),
    Variant(name="bfloat16", changes={"dtype": "bfloat16"}),
    Variant(name="float16", changes={"dtype": "float16"}),
    Variant(name="sharded", max_shard_size="40KB"),
    Variant(name="llama3", changes=_LLAMA3, control=_PLAIN),
    Variant(name="llama3-old-spelling", changes=_LLAMA3, control=_PLAIN, old_spelling=True),
    Variant(name="linear", changes=_rope("linear", factor=4.0), control=_PLAIN),
    Variant(name="yarn", changes=_yarn(), control=_PLAIN),
    Variant(name="yarn-betas", changes=_yarn(beta_fast=20.0, beta_slow=2.0), control=_yarn()),
    Variant(name="yarn-not-truncated", changes=_yarn(truncate=False), control=_yarn()),
    Variant(name="yarn-attention-factor", changes=_yarn(attention_factor=1.5), control=_yarn()),
    Variant(name="yarn-mscales", changes=_yarn(mscale=0.7, mscale_all_dim=0.4), control=_yarn()),
    Variant(name="yarn-one-mscale", changes=_yarn(mscale=0.7), control=_PLAIN),
    Variant(name="mistral", family="mistral", changes={"sliding_window": None}),
    Variant(name="mistral-window", family="mistral", changes={"sliding_window": 17}, control={"sliding_window": 18}),
    Variant(
        name="mistral-yarn",
        family="mistral",
        changes={"sliding_window": 17, "num_key_value_heads": 1, "tie_word_embeddings": True} | _yarn(),
        control=_PLAIN,
    ),
)
BY_NAME = {variant.name: variant for variant in VARIANTS}


def write(variant: Variant, folder: Path) -> None:
    """A checkpoint with random weights, the same for the same variant."""
    from transformers import AutoModelForCausalLM

    config = _config(variant)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    _randomize(model)
    model.save_pretrained(folder, max_shard_size=variant.max_shard_size)
    if variant.old_spelling:
        _respell(folder / "config.json")


def logits(folder: Path, tokens: list[list[int]], **changes: object) -> "torch.Tensor":
    """HF's own logits [batch, length, vocabulary] in fp32, under its config with `changes`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits


def _config(variant: Variant) -> "PreTrainedConfig":
    from transformers import LlamaConfig, MistralConfig

    config_class = {"llama": LlamaConfig, "mistral": MistralConfig}[variant.family]
    return config_class(**{**_SHAPE, **variant.changes})


def _randomize(model: "PreTrainedModel") -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.3 * noise)


def _respell(config_json: Path) -> None:
    config: dict[str, Any] = json.loads(config_json.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    config_json.write_text(json.dumps(config, indent=2))
