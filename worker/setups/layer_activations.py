"""What one layer keeps of a token for the backward pass, in elements of the run's precision.

Sources: Korthikanti et al. 2022 (arXiv 2205.05198), table 2, which `megatron.training.theoretical_memory_usage` takes
for every model as `18 + 4 ffn / hidden` bytes of a token and channel; beyond it, what the layers of megatron-core 0.19
and the kernels that they call save: attention that keeps no scores (flash), grouped queries, gated MLPs, latent
attention, experts in balance, `MambaSplitConv1dScanCombinedFn` of mamba_ssm, `ChunkGatedDeltaRuleFunction` of fla.
"""

from dataclasses import dataclass
from typing import assert_never

from ..mapping.record import Record
from .layer_kinds import LayerKind
from .trainer_run import TrainerRun

_FP32 = 4
_SCORE_BYTES = 8
"""Of plain attention: the capped score, its probability in fp32, and that in the precision of the values."""
_DELTA_CHUNK = 64
"""Tokens that fla's kernel solves for at once, and keeps the solution of."""


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """Per token of a context-parallel rank's part of the sequence."""

    run: TrainerRun

    def of(self, kind: LayerKind) -> float:
        """Of a whole layer: what its halves keep, and of each half the input before and after its norm."""
        halves = (kind.mixer is not None) + (kind.mlp is not None)
        norms = 3 if self._values.get("sandwich_norms") else 2
        return halves * norms * self.hidden / self.spread + self._mixer(kind) + self._mlp(kind)

    def scores(self, kind: LayerKind) -> float:
        """Of softcapped attention, which Transformer Engine's kernels lack: [heads, keys], kept or computed again."""
        if kind.mixer != "attention" or self._values.get("attention_logit_softcap") is None:
            return 0.0
        heads = self._values.positive("num_attention_heads") / self._tp
        return heads * self.run.sequence_length * _SCORE_BYTES / self.run.item_bytes

    def around_prediction(self) -> float:
        """Of a layer of multi-token prediction, beside the decoder layer in it (`MultiTokenPredictionLayer`).

        The embedding and the hidden state before their norms, both after them side by side, and the last norm's input.
        """
        return 5 * self.hidden / self.spread

    @property
    def hidden(self) -> int:
        return self._values.positive("hidden_size")

    @property
    def spread(self) -> int:
        """Ranks over which whole activations are cut along the sequence."""
        return self._tp if self.run.sequence_parallel else 1

    @property
    def _values(self) -> Record:
        return self.run.model.mcore

    @property
    def _tp(self) -> int:
        return self.run.parallelism.tp_size

    @property
    def _selective(self) -> bool:
        return self.run.recompute == "selective"

    def _mixer(self, kind: LayerKind) -> float:
        match kind.mixer:
            case None:
                return 0.0
            case "attention":
                return self._attention() + (0.0 if self._selective else self.scores(kind))
            case "latent attention":
                return self._latent_attention()
            case "mamba":
                return self._mamba()
            case "delta net":
                return self._delta_net()
            case _:
                assert_never(kind.mixer)

    def _attention(self) -> float:
        """q, k and v as attention takes them, and its output; and what they come out of, since v is a slice of it."""
        values = self._values
        heads = values.positive("num_attention_heads")
        width = values.integer("kv_channels", self.hidden // heads)
        queries, both = heads * width, 2 * values.integer("num_query_groups", heads) * width
        gate = 2 * queries if values.get("attention_output_gate") else 0  # the gate, and the output before it
        projected = queries + both // 2  # beside v, which it has in it
        return (2 * queries + both + gate + projected) / self._tp

    def _latent_attention(self) -> float:
        """The same, and the latents before and after their norms, which every rank has whole."""
        values = self._values
        heads = values.positive("num_attention_heads") / self._tp
        rope, keys, out = (values.positive(name) for name in ("qk_pos_emb_head_dim", "qk_head_dim", "v_head_dim"))
        latents = values.integer("q_lora_rank", 0) + values.positive("kv_lora_rank") + rope
        projected = 0 if self._selective else 2 * keys + rope + out
        return 2 * latents / self.spread + (2 * (keys + rope) + 2 * out + projected) * heads

    def _mamba(self) -> float:
        """What the input projection makes (z, x, B, C, dt), the scan's output, and that gated and normed."""
        values = self._values
        heads = values.positive("mamba_num_heads")
        inner = heads * values.positive("mamba_head_dim")
        state = values.positive("mamba_num_groups") * values.positive("mamba_state_dim")
        return (2 * inner + 2 * state + heads + 2 * inner) / self._tp

    def _delta_net(self) -> float:
        """What is projected, convolved and normed; q and k for each value head; the solved chunks; the output's gate.

        Decays are kept in fp32, and so are they and the gate while they are computed.
        """
        values = self._values
        key_heads, heads = values.positive("linear_num_key_heads"), values.positive("linear_num_value_heads")
        keys = key_heads * values.positive("linear_key_head_dim")
        outputs = heads * values.positive("linear_value_head_dim")
        repeated = heads * values.positive("linear_key_head_dim")
        projected = 2 * keys + 2 * outputs + 2 * heads
        convolved = 2 * keys + outputs + 2 * keys  # and q and k after their norm
        rule = 2 * repeated + outputs + heads * _DELTA_CHUNK + heads + 2 * heads * _FP32 / self.run.item_bytes
        gated = outputs * (3 + _FP32 / self.run.item_bytes)  # the rule's output, normed, gated; the gate
        return (projected + convolved + rule + gated) / self._tp

    def _mlp(self, kind: LayerKind) -> float:
        match kind.mlp:
            case None:
                return 0.0
            case "dense":
                return self._dense(self._values.positive("ffn_hidden_size"))
            case "experts":
                return self._experts()
            case _:
                assert_never(kind.mlp)

    def _dense(self, width: int) -> float:
        """What goes into the activation function, and what comes out."""
        return self._parts * width / self._tp

    @property
    def _parts(self) -> int:
        return 3 if self._values.get("gated_linear_unit") else 2

    def _experts(self) -> float:
        """A token once for each expert that it is sent to: in, through, and out; and the router's scores in fp32.

        Ranks that share an expert all take in the tokens of each other, and compute a part of its width.
        """
        values = self._values
        topk, experts = values.positive("moe_router_topk"), values.positive("num_moe_experts")
        width = values.integer("moe_ffn_hidden_size", values.positive("ffn_hidden_size"))
        latent = values.integer("moe_latent_size", 0)
        ends = 2 * (latent or self.hidden) * self.run.etp_size
        scores = 2 * experts * _FP32 / self.run.item_bytes
        routed = topk * (ends + self._parts * width) + 2 * latent + scores
        return routed / self.spread + self._dense(values.integer("moe_shared_expert_intermediate_size", 0))
