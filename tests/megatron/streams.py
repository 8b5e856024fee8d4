"""On a rank: weight streams between an HF folder and a live model."""

from pathlib import Path
from typing import Any

import torch

from worker.integration import hf_to_mcore, load_model_config, mcore_to_hf

from .here import device, megatron_here, on_gpu, seed
from .model import build, load, set_parallelism

Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def filled(root: Path, source: Path, **sizes: int) -> tuple[dict[str, Bits], dict[str, Bits]]:
    """This rank's state of the model at `root`: loaded by Megatron, and filled from the HF folder `source`."""
    with megatron_here():
        loaded = _built(root, sizes)
        load(loaded, root)
        streamed = _built(root, sizes)
        hf_to_mcore([streamed], source)
    return _state(loaded), _state(streamed)


def streamed(root: Path, **sizes: int) -> list[tuple[str, Bits]]:
    """What the loaded model's stream of HF tensors gives on this rank."""
    with megatron_here():
        model = _built(root, sizes)
        load(model, root)
        return [(name, _bits(tensor)) for name, tensor in mcore_to_hf([model], load_model_config(root))]


def _built(root: Path, sizes: dict[str, int]) -> Any:
    tp_size, pp_size, ep_size = (sizes.get(name, 1) for name in ("tp_size", "pp_size", "ep_size"))
    if on_gpu():
        set_parallelism(tp_size, pp_size, ep_size)
        seed()
    return build(root, tp_size, pp_size, None, ep_size).to(device())


def _state(model: torch.nn.Module) -> dict[str, Bits]:
    return {name: _bits(value) for name, value in model.state_dict().items() if "_extra_state" not in name}


def _bits(tensor: torch.Tensor) -> Bits:
    plain = tensor.detach().cpu().contiguous()
    return plain.dtype, tuple(plain.shape), plain.view(torch.uint8).numpy().tobytes()
