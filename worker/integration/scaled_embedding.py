"""Embeddings that enter the model scaled."""

from functools import partial

import torch


def scale_output(embedding: torch.nn.Module, scale: float) -> None:
    """From now on scale what `embedding` answers. As in HF, the factor has the embedding's precision (bf16: 55.5)."""
    embedding.register_forward_hook(partial(_scale, scale=scale))


def _scale(embedding: torch.nn.Module, inputs: object, output: torch.Tensor, *, scale: float) -> torch.Tensor:
    return output * torch.tensor(scale, dtype=output.dtype).item()
