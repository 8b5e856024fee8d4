"""GPT models with what Megatron-Core 0.19 lacks: a config class of ours, and the builder that its name leads to."""

from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, override

from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from ..jobs.errors import BadInputError
from .expert_groups import judge_groups
from .gated_norms import uncenter_gated_norms
from .latent_attention import set_latent_norm_epsilon, unnorm_queries
from .rotary_bases import TwoRotaryEmbeddings
from .scaled_embedding import scale_output
from .softcap import softcap_output
from .variant_layers import changes_layers, variant_layers


@dataclass(kw_only=True)
class VariantGPTModelConfig(GPTModelConfig):
    """Upstream's config and what our builder adds; with every default it is upstream's model."""

    builder: ClassVar[str] = f"{__name__}.VariantGPTModelBuilder"
    latent_norm_epsilon: float | None = None
    """Of the norms of latent attention's latents, where it is not `layernorm_epsilon`."""
    plain_query_projection: bool = False
    """Latent attention without a query rank projects queries without a norm of their own."""
    plain_gated_norms: bool = False
    """Norms of gated delta nets' outputs multiply by their weights, though other norms add one to theirs."""
    group_scores_summed: int | None = None
    """How many of a group's best scores judge it, where that is not `moe_router_topk // moe_router_group_topk`."""
    embedding_scale: float | None = None
    """Factor on the embeddings as they enter the first layer; rounded to their precision."""
    attention_logit_softcap: float | None = None
    """Attention scores are bounded smoothly to this size, before mask and softmax."""
    final_logit_softcap: float | None = None
    """The logits are bounded smoothly to this size."""
    local_rotary_base: float | None = None
    """Rope base of the layers that have `window_size`; they take no part in any rope scaling."""
    sandwich_norms: bool = False
    """A norm after attention and one after the MLP, before each joins the residual stream."""
    qk_norm_width: Literal["head", "full"] = "head"
    """What a norm of queries or keys spans: one head (upstream's `qk_layernorm`), or all heads at once.

    "full" makes those norms itself and takes `qk_layernorm` off: with it, upstream would sum their gradients over
    tensor-parallel ranks that hold different heads.
    """


class VariantGPTModelBuilder(GPTModelBuilder):
    """Builds upstream's `GPTModel` with our layers, then adds what lies outside the layers."""

    @override
    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """One pipeline stage, as upstream's builder; its arguments are upstream's. BadInputError on a contradiction."""
        config = cast(VariantGPTModelConfig, self._model_config)
        _refuse_contradictions(config)
        with_layers = copy(config)
        if changes_layers(config):
            with_layers.transformer_layer_spec = cast(Any, variant_layers)
        model = GPTModelBuilder(with_layers).build_model(pg_collection, pre_process, post_process, vp_stage)
        adapt(model, config)
        return model


def adapt(model: GPTModel, config: VariantGPTModelConfig) -> None:
    """Add to a stage of upstream's model what `config` asks for outside the layers."""
    if config.plain_query_projection:
        unnorm_queries(model)
    if config.latent_norm_epsilon is not None:
        set_latent_norm_epsilon(model, config.latent_norm_epsilon)
    if config.plain_gated_norms:
        uncenter_gated_norms(model)
    if config.group_scores_summed is not None:
        judge_groups(model, config.group_scores_summed)
    if config.embedding_scale is not None and hasattr(model, "embedding"):
        scale_output(model.embedding.word_embeddings, config.embedding_scale)
    if config.final_logit_softcap is not None and model.post_process:
        softcap_output(model.output_layer, config.final_logit_softcap)
    if config.local_rotary_base is not None:
        full = cast(RotaryEmbedding, model.rotary_pos_emb)  # where `position_embedding_type` is "rope"
        model.rotary_pos_emb = cast(Any, TwoRotaryEmbeddings(full, config.local_rotary_base))


def _refuse_contradictions(config: VariantGPTModelConfig) -> None:
    transformer = config.transformer
    tp_size = transformer.tensor_model_parallel_size
    if changes_layers(config):
        _only(config, "transformer_layer_spec", None, "The layers of this model are ours.")
        _only(config, "mtp_num_layers", None, "Its layers would be upstream's, without what this model adds.")
        _only(config, "multi_latent_attention", False, "Only plain attention has these variants.")
    if config.sandwich_norms:
        _only(config, "num_moe_experts", None, "Norms after the MLP are made for dense MLPs.")
    if config.local_rotary_base is not None:
        _only(config, "position_embedding_type", "rope", "A second rope base needs a first one.")
    if config.attention_logit_softcap is not None:
        _only(config, "context_parallel_size", 1, "No kernel with a softcap cuts sequences.")
        _only(config, "apply_query_key_layer_scaling", False, "The softcap would bound scores of another scale.")
    if config.qk_norm_width == "full":
        _only(config, "qk_layernorm", False, "Norms over all heads are made without it.")
        if (transformer.num_query_groups or tp_size) % tp_size:
            _refuse(
                "tensor_model_parallel_size", tp_size, "a divisor of num_query_groups", "Norms go over whole heads."
            )


def _only(config: VariantGPTModelConfig, name: str, expected: object, why: str) -> None:
    found = getattr(config, name)
    if found != expected:
        _refuse(name, found, repr(expected), why)


def _refuse(name: str, found: object, expected: str, why: str) -> None:
    raise BadInputError(
        "bad_config", f"Megatron config: field {name!r}", found=repr(found), expected=expected, next_step=why
    )
