"""The `model_config.json` of an import, as upstream's config object; and the same for a host that lacks its kernels."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..jobs.errors import BadInputError
from ..mapping.model_config import from_json_dict

if TYPE_CHECKING:
    from megatron.training.models.gpt import GPTModelConfig

MODEL_CONFIG = "model_config.json"


def load_model_config(source: Path | str | Mapping[str, object]) -> "GPTModelConfig":
    """The recorded config, from an import's folder, its `model_config.json` or that file's content.

    Upstream's `GPTModelConfig.from_dict` is not enough: it takes a JSON file's dtypes and enums for text, loses the
    activation, and leaves out the yarn values that `GPTModel` reads. Parallelism is the caller's to set.
    """
    if isinstance(source, Mapping):
        return from_json_dict(source)
    path = Path(source)
    return from_json_dict(_read(path / MODEL_CONFIG if path.is_dir() else path))


def for_this_host(config: "GPTModelConfig", *, fused: bool = True) -> "GPTModelConfig":
    """A copy that this host can build: what needs an absent library or device is switched off. `config` stays as it is.

    Where not `fused`, all that is fused or compiled for a GPU is off, whatever the host has; the layers stay.
    The mathematics and the names of the saved tensors stay the same.
    """
    adapted = deepcopy(config)
    for switch in _SWITCHES:
        if not switch.available() or (switch.fuses and not fused):
            setattr(adapted.transformer, switch.field, switch.otherwise)
    return adapted


@dataclass(frozen=True, slots=True)
class _Switch:
    """A transformer field, what it needs, and its value where that is missing."""

    field: str
    available: Callable[[], bool]
    otherwise: object
    fuses: bool = True
    """It is a kernel's, or compiled; the rest chooses layers."""


def _has(*modules: str) -> bool:
    return any(find_spec(module) for module in modules)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _fused_rope() -> bool:
    from megatron.core.models.common.embeddings import rope_utils

    return _cuda() and rope_utils.fused_apply_rotary_pos_emb is not None


def _fused_permutation() -> bool:
    from megatron.core.extensions import transformer_engine

    return _cuda() and getattr(transformer_engine, "fused_permute", None) is not None


_transformer_engine = partial(_has, "transformer_engine")

_SWITCHES = (
    _Switch("transformer_impl", _transformer_engine, "local", fuses=False),
    # The local RMSNorm is torch's own, which knows no persistent kernel.
    _Switch("persist_layer_norm", _transformer_engine, False),
    _Switch("tp_comm_overlap", _transformer_engine, False),
    _Switch("apply_rope_fusion", _fused_rope, False),
    _Switch("masked_softmax_fusion", partial(_has, "scaled_masked_softmax_cuda"), False),
    _Switch("gradient_accumulation_fusion", partial(_has, "fused_weight_gradient_mlp_cuda"), False),
    # Compiled by torch for the GPU; on a CPU they would need a C++ compiler.
    _Switch("bias_activation_fusion", _cuda, False),
    _Switch("bias_dropout_fusion", _cuda, False),
    _Switch("cross_entropy_loss_fusion", _cuda, False),
    _Switch("use_cpu_initialization", _cuda, True),
    _Switch("use_mamba_mem_eff_path", _cuda, False),
    # The local experts are a list of MLPs; their names in a checkpoint are the grouped ones'.
    _Switch("moe_grouped_gemm", _transformer_engine, False, fuses=False),
    _Switch("moe_permute_fusion", _fused_permutation, False),
    _Switch("moe_router_fusion", _fused_permutation, False),
    _Switch("moe_shared_expert_overlap", _cuda, False),
    _Switch("moe_token_dispatcher_type", _cuda, "allgather"),
)


def _read(path: Path) -> Mapping[str, object]:
    try:
        data: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if isinstance(data, dict):
        return cast("Mapping[str, object]", data)
    raise _unreadable(path, f"a JSON {type(data).__name__}")


def _unreadable(path: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_config",
        f"Megatron config {path}",
        found=found,
        expected="the model_config.json that an import leaves",
        next_step="Name the folder that an import wrote.",
    )
