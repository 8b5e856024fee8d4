"""Linear layers, split over tensor-parallel ranks as Megatron asks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed
from torch.nn import functional

from .extra_state import ExtraState
from .norms import layer_norm, norm_weight, root_mean_square_norm

Initializer = Callable[[torch.Tensor], object]


def _local_sizes(inputs: int, outputs: int, mode: str | None, ranks: int) -> tuple[int, int]:
    match mode:
        case "column":
            return inputs, outputs // ranks
        case "row":
            return inputs // ranks, outputs
        case _:
            return inputs, outputs


def _weight(
    shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.types.Device, init: Initializer | None
) -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
    if init and not weight.is_meta:
        init(weight)
    return weight


class Linear(ExtraState):
    """Parameters `weight` and, where asked, `bias`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tp_group: "distributed.ProcessGroup | None" = None,
        tp_size: int = 1,
        init_method: Initializer | None = None,
        bias: bool = True,
        return_bias: bool = False,
        parallel_mode: str | None = None,
        params_dtype: torch.dtype | None = None,
        device: torch.types.Device = None,
        **unused: object,
    ) -> None:
        super().__init__()
        self.parallel_mode, self.tp_group, self.tp_size = parallel_mode, tp_group, tp_size
        self.use_bias, self.return_bias = bias, return_bias
        self.in_features, self.out_features = _local_sizes(in_features, out_features, parallel_mode, tp_size)
        self.weight = _weight((self.out_features, self.in_features), params_dtype, device, init_method)
        zeros = torch.zeros(self.out_features, dtype=params_dtype, device=device) if bias else None
        self.bias = None if zeros is None else torch.nn.Parameter(zeros)

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> object:
        y = functional.linear(x, self.weight)
        if self.parallel_mode == "row" and self.tp_size > 1:
            distributed.all_reduce(y, group=self.tp_group)
        if self.return_bias:
            return y, self.bias
        return y if self.bias is None else y + self.bias


class LayerNormLinear(Linear):
    """A norm and the layer after it: `layer_norm_weight` beside `weight`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        zero_centered_gamma: bool = False,
        params_dtype: torch.dtype | None = None,
        device: torch.types.Device = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, params_dtype=params_dtype, device=device, **options)
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        self.return_layernorm_output = False
        self.layer_norm_weight = norm_weight(in_features, zero_centered_gamma, params_dtype, device)
        if normalization == "LayerNorm":
            zeros = torch.zeros(in_features, dtype=params_dtype, device=device)
            self.layer_norm_bias = torch.nn.Parameter(zeros)

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None) -> object:
        weight = self.layer_norm_weight.float() + (1.0 if self.zero_centered_gamma else 0.0)
        if self.normalization == "LayerNorm":
            normed = layer_norm(x, weight, self.layer_norm_bias, self.eps)
        else:
            normed = root_mean_square_norm(x, weight, self.eps)
        answer = super().forward(normed)
        if not self.return_layernorm_output:
            return answer
        return (*answer, normed) if self.return_bias else (answer, normed)


class GroupedLinear(ExtraState):
    """One layer per expert: `weight0`, `weight1`, ..."""

    fp8, fp8_calibration = False, False

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        tp_size: int = 1,
        init_method: Initializer | None = None,
        bias: bool = True,
        return_bias: bool = False,
        parallel_mode: str | None = None,
        params_dtype: torch.dtype | None = None,
        device: torch.types.Device = None,
        **unused: object,
    ) -> None:
        super().__init__()
        self.fp8_meta = {"fp8_checkpoint": False}
        self.num_gemms, self.use_bias, self.return_bias = num_gemms, bias, return_bias
        self.in_features, self.out_features = _local_sizes(in_features, out_features, parallel_mode, tp_size)
        for expert in range(num_gemms):
            shape = (self.out_features, self.in_features)
            self.register_parameter(f"weight{expert}", _weight(shape, params_dtype, device, init_method))
            if bias:
                zeros = torch.zeros(self.out_features, dtype=params_dtype, device=device)
                self.register_parameter(f"bias{expert}", torch.nn.Parameter(zeros))

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Nothing is quantized."""

    def forward(self, x: torch.Tensor, m_splits: Sequence[int], is_first_microbatch: bool | None = None) -> object:
        weights = [getattr(self, f"weight{expert}") for expert in range(self.num_gemms)]
        biases = [getattr(self, f"bias{expert}") if self.use_bias else None for expert in range(self.num_gemms)]
        added = [None] * self.num_gemms if self.return_bias else biases
        rows = torch.split(x, list(m_splits))
        y = torch.cat([functional.linear(*expert) for expert in zip(rows, weights, added, strict=True)])
        return (y, biases) if self.return_bias else y
