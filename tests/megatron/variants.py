"""On a rank: our variant of Megatron's model with a random HF model's weights, copied by hand; logits of both."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock
from zlib import crc32

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.activations import fast_gelu
from megatron.core.fusions import fused_softmax
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import random
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, distributed
from torch.nn import functional

from worker.integration.variant_norms import AllHeadsRMSNorm
from worker.integration.variants import VariantGPTModelConfig
from worker.verification.off_cuda import megatron_on

from .model import forward, set_parallelism

Values = dict[str, Any]


def both_logits(hf: Values, transformer: Values, outer: Values, impl: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and HF's, [batch, length, vocabulary]."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf), attn_implementation="eager").eval()
    weights = _random_weights(model, transformer.get("layernorm_zero_centered_gamma", False))
    tokens = torch.arange(2 * 96).reshape(2, 96) * 17 % hf["vocab_size"]
    set_parallelism(1, 1)
    with megatron_on("cpu"), torch.no_grad():
        ours = build(hf, transformer, outer, impl)
        ours.load_state_dict(_by_hand(weights, hf, ours.state_dict()), strict=False)
        answer = forward(ours.eval(), tokens)
        assert answer is not None
        return answer.numpy(), model(tokens).logits.numpy()


def build(hf: Values, transformer: Values, outer: Values, impl: str) -> Any:
    """Our model of these sizes."""
    gemma = hf["model_type"].startswith("gemma")
    config = TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        kv_channels=hf.get("head_dim"),
        layernorm_epsilon=hf["rms_norm_eps"],
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=fast_gelu if gemma else functional.silu,
        bias_activation_fusion=False,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        transformer_impl=impl,
        moe_grouped_gemm=impl != "local" and "num_moe_experts" in transformer,
        **transformer,
    )
    outer = {"position_embedding_type": "rope", "share_embeddings_and_output_weights": True} | outer
    model_config = VariantGPTModelConfig(
        transformer=config, vocab_size=hf["vocab_size"], seq_length=128, parallel_output=False, **outer
    )
    return model_config.get_builder_cls()(model_config).build_model(ProcessGroupCollection.use_mpu_process_groups())


def gradients(hf: Values, transformer: Values, outer: Values, recompute: Values) -> dict[str, np.ndarray]:
    """Of every parameter, for the sum of some logits; `recompute` says what the backward pass computes once more."""
    torch.manual_seed(0)
    set_parallelism(1, 1)
    with megatron_on("cpu"), _recomputing_on_cpu():
        model = build(hf, transformer | recompute, outer, "local")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        answer = forward(model.train(), torch.arange(2 * 32).reshape(2, 32))
        assert answer is not None
        answer[..., ::7].sum().backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if parameter.grad is not None}


def gradients_of_norms(hf: Values, transformer: Values, outer: Values, tp_size: int) -> dict[str, np.ndarray]:
    """As a trainer has them after its sums over ranks; with several, the sequence is cut between the layers."""
    set_parallelism(tp_size, 1)
    cut = {"tensor_model_parallel_size": tp_size, "sequence_parallel": tp_size > 1}
    with megatron_on("cpu"):
        model = build(hf, transformer | cut, outer, "local")
        for name, parameter in model.named_parameters():
            parameter.data = _cut(_drawn(name, parameter, tp_size), name, parameter, tp_size)
        answer = forward(model.train(), torch.arange(2 * 32).reshape(2, 32))
        assert answer is not None
        answer[..., : hf["vocab_size"]].square().mean().backward()
    norms = {name: parameter for name, parameter in model.named_parameters() if "norm" in name}
    for name, parameter in norms.items():
        if tp_size > 1 and (
            getattr(parameter, "sequence_parallel", False)
            or name.endswith(("q_layernorm.weight", "k_layernorm.weight"))
        ):
            distributed.all_reduce(parameter.grad)
    return {name: parameter.grad.numpy() for name, parameter in norms.items()}


def _drawn(name: str, parameter: Tensor, tp_size: int) -> Tensor:
    """The whole of a parameter, the same on all ranks and for all `tp_size`."""
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] *= tp_size  # pyright: ignore[reportAttributeAccessIssue]
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))


def _cut(whole: Tensor, name: str, parameter: Tensor, tp_size: int) -> Tensor:
    """This rank's part: of fc1, a part of the gate and one of the up projection."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    rank = parallel_state.get_tensor_model_parallel_rank()
    halves = whole.chunk(2) if "linear_fc1" in name else (whole,)
    return torch.cat([half.chunk(tp_size, parameter.partition_dim)[rank] for half in halves])  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _recomputing_on_cpu() -> Iterator[None]:
    """Megatron's recomputation puts CUDA's random states back, and runs outside of `megatron_on`: so do its masks."""
    with ExitStack() as stack:
        for name in ("_get_cuda_rng_state", "_set_cuda_rng_state"):
            stack.enter_context(mock.patch.object(random, name, return_value=None))
        for name in ("get_default_causal_mask", "get_sliding_window_causal_mask"):
            stack.enter_context(
                mock.patch.object(fused_softmax, name, partial(_made_on_cpu, getattr(fused_softmax, name)))
            )
        yield


def _made_on_cpu(make: Callable[..., Tensor], *args: Any) -> Tensor:
    with megatron_on("cpu"):
        return make(*args)


def norm_of_cut_heads(heads: int) -> list[bool]:
    """Whether a norm cut over two ranks gives the output and all gradients of one over all heads at once."""
    set_parallelism(2, 1)
    group = ProcessGroupCollection.use_mpu_process_groups().tp
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=heads, kv_channels=8)
    generator = torch.Generator().manual_seed(0)
    x, weight, toll = (
        torch.randn(size, generator=generator) for size in ((5, 2, heads, 8), (8 * heads,), (5, 2, heads, 8))
    )
    whole, all_weights = x.clone().requires_grad_(), weight.clone().requires_grad_()
    reference = torch.rms_norm(whole.flatten(-2), (8 * heads,), all_weights, config.layernorm_epsilon).view_as(x)
    (reference * toll).sum().backward()

    mine = slice(heads // 2 * group.rank(), heads // 2 * (group.rank() + 1))
    rows = slice(8 * mine.start, 8 * mine.stop)
    norm = AllHeadsRMSNorm(config, heads, group)
    norm.weight.data = weight[rows]
    cut = x[:, :, mine].clone().requires_grad_()
    ours = norm(cut)
    (ours * toll[:, :, mine]).sum().backward()

    pairs = (
        (ours, reference[:, :, mine]),
        (cut.grad, whole.grad[:, :, mine]),
        (norm.weight.grad, all_weights.grad[rows]),
    )
    return [bool(torch.allclose(*pair, atol=1e-5)) for pair in pairs]


def _random_weights(model: torch.nn.Module, zero_centered: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = model.state_dict()
    for name, tensor in weights.items():
        noise = 0.3 * torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise + (0.0 if zero_centered else 1.0) if "norm" in name else noise)
    return weights


def _by_hand(hf: dict[str, Tensor], sizes: Values, ours: dict[str, Any]) -> dict[str, Any]:
    """HF's weights under our model's names, for each layer as the model has it."""
    state: dict[str, Any] = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
        "output_layer.weight": hf["lm_head.weight"],
    }
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        named = {name.removeprefix(prefix): tensor for name, tensor in hf.items() if name.startswith(prefix)}
        state |= {f"decoder.layers.{layer}.{name}": tensor for name, tensor in _layer(named, sizes).items()}
    missing = [name for name, value in ours.items() if isinstance(value, Tensor) and name not in state]
    assert all("_extra_state" in name for name in missing), missing
    return {name: tensor for name, tensor in state.items() if name in ours}


def _layer(hf: dict[str, Tensor], sizes: Values) -> dict[str, Tensor]:
    """One layer, under the names of both layer specs."""
    after_attention = hf.get("pre_feedforward_layernorm.weight", hf["post_attention_layernorm.weight"])
    state = {
        "self_attention.linear_qkv.weight": _query_groups(hf, sizes["num_key_value_heads"]),
        "self_attention.linear_proj.weight": hf["self_attn.o_proj.weight"],
        "input_layernorm.weight": hf["input_layernorm.weight"],
        "self_attention.linear_qkv.layer_norm_weight": hf["input_layernorm.weight"],
        "pre_mlp_layernorm.weight": after_attention,
        "mlp.linear_fc1.layer_norm_weight": after_attention,
    }
    if "pre_feedforward_layernorm.weight" in hf:
        state["self_attention.linear_proj.post_layernorm.weight"] = hf["post_attention_layernorm.weight"]
        state["mlp.linear_fc2.post_layernorm.weight"] = hf["post_feedforward_layernorm.weight"]
    if "self_attn.q_norm.weight" in hf:
        state["self_attention.q_layernorm.weight"] = hf["self_attn.q_norm.weight"]
        state["self_attention.k_layernorm.weight"] = hf["self_attn.k_norm.weight"]
    return state | (_experts(hf) if "mlp.gate.weight" in hf else _mlp(hf))


def _query_groups(hf: dict[str, Tensor], groups: int) -> Tensor:
    q, k, v = (hf[f"self_attn.{name}_proj.weight"] for name in "qkv")
    return torch.cat([torch.cat(parts) for parts in zip(*(x.chunk(groups) for x in (q, k, v)), strict=True)])


def _mlp(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "mlp.linear_fc1.weight": torch.cat([hf["mlp.gate_proj.weight"], hf["mlp.up_proj.weight"]]),
        "mlp.linear_fc2.weight": hf["mlp.down_proj.weight"],
    }


def _experts(hf: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {"mlp.router.weight": hf["mlp.gate.weight"]}
    if "mlp.e_score_correction_bias" in hf:
        state["mlp.router.expert_bias"] = hf["mlp.e_score_correction_bias"]
    for number, (fc1, fc2) in enumerate(zip(hf["mlp.experts.gate_up_proj"], hf["mlp.experts.down_proj"], strict=True)):
        state |= {
            f"mlp.experts.local_experts.{number}.linear_fc1.weight": fc1,
            f"mlp.experts.linear_fc1.weight{number}": fc1,
        }
        state |= {
            f"mlp.experts.local_experts.{number}.linear_fc2.weight": fc2,
            f"mlp.experts.linear_fc2.weight{number}": fc2,
        }
    return state
