"""On a rank: weight streams between an HF folder and a live model."""

from pathlib import Path

import torch

from worker.integration import hf_to_mcore, load_model_config, mcore_to_hf

from .cpu import megatron_on
from .model import build, load

Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def filled(root: Path, source: Path, **sizes: int) -> tuple[dict[str, Bits], dict[str, Bits]]:
    """This rank's state of the model at `root`: loaded by Megatron, and filled from the HF folder `source`."""
    with megatron_on("cpu"):
        loaded = build(root, sizes.get("tp_size", 1), sizes.get("pp_size", 1), None, sizes.get("ep_size", 1))
        load(loaded, root)
        streamed = build(root, sizes.get("tp_size", 1), sizes.get("pp_size", 1), None, sizes.get("ep_size", 1))
        hf_to_mcore([streamed], source)
    return _state(loaded), _state(streamed)


def streamed(root: Path, **sizes: int) -> list[tuple[str, Bits]]:
    """What the loaded model's stream of HF tensors gives on this rank."""
    with megatron_on("cpu"):
        model = build(root, sizes.get("tp_size", 1), sizes.get("pp_size", 1), None, sizes.get("ep_size", 1))
        load(model, root)
        return [(name, _bits(tensor)) for name, tensor in mcore_to_hf([model], load_model_config(root))]


def _state(model: torch.nn.Module) -> dict[str, Bits]:
    return {name: _bits(value) for name, value in model.state_dict().items() if "_extra_state" not in name}


def _bits(tensor: torch.Tensor) -> Bits:
    plain = tensor.detach().contiguous()
    return plain.dtype, tuple(plain.shape), plain.view(torch.uint8).numpy().tobytes()
