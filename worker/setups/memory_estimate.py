"""What a rank's memory must hold while it trains, stage by stage: exact for parameters, an estimate for activations.

Activations after Korthikanti et al. 2022 (arXiv 2205.05198), with attention that keeps no scores (flash), grouped
queries, gated MLPs, experts in balance, and latent attention. Buffers of communication and what the allocator cannot
use are not counted: leave some gigabytes free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from ..adapters.linears import Linear, linears
from ..integration.peft import Peft
from ..jobs.setup_spec import PeftSettings
from ..mapping.layer_sets import moe_pattern
from ..mapping.vocabulary import padded_size
from .census import Census, Place, Share, census, share_of
from .stages import chunks_of_stages, layers_per_stage
from .trainer_run import TrainerRun

_ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_FP32 = 4
_LOGITS_BYTES = 2 + _FP32 + 2
"""Of a logit: itself, its probability in fp32, and its gradient."""


_OF_EXPERTS: tuple[Share, ...] = ("expert cut", "expert whole")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes on each rank of one pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """A number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """All stages, and the one that holds most."""

    stages: tuple[StageMemory, ...]
    fullest: int

    @property
    def most(self) -> StageMemory:
        return self.stages[self.fullest]


def estimate(run: TrainerRun, counted: Census | None = None) -> MemoryEstimate:
    """`counted`: the model's census, for whoever asks of several parallelisms. The run must be possible."""
    estimating = _Estimating(run, counted or census(run.model), _adapters(run))
    stages = tuple(estimating.stage(stage) for stage in range(run.parallelism.pp_size))
    return MemoryEstimate(stages=stages, fullest=max(stages, key=lambda one: one.total).stage)


def _adapters(run: TrainerRun) -> dict[tuple[Place, Share], int]:
    """Parameters of adapters, by place and share of the layer that they stand beside."""
    counts: dict[tuple[Place, Share], int] = {}
    if run.peft is None:
        return counts
    peft = _peft(run.peft)
    for layer in linears(run.model):
        parts = peft.parts_of(layer.full_name)
        if parts is not None:
            key = (_place(layer), share_of(f"{layer.module}.weight"))
            counts[key] = counts.get(key, 0) + peft.dim * (layer.columns * len(parts) + layer.rows)
    return counts


def _peft(settings: PeftSettings) -> Peft:
    return Peft(**settings.model_dump(exclude={"init_adapter"}))


def _place(layer: Linear) -> Place:
    if layer.is_mtp:
        return "mtp"
    number = layer.full_name.removeprefix("decoder.layers.").split(".")[0]
    return int(number) if number.isdecimal() else "end"


@dataclass(frozen=True, slots=True)
class _Estimating:
    run: TrainerRun
    counted: Census
    adapters: dict[tuple[Place, Share], int]

    def stage(self, number: int) -> StageMemory:
        run, sizes = self.run, self.run.parallelism
        counts = layers_per_stage(run.model.mcore.positive("num_layers"), sizes)
        assert counts is not None  # whoever asks has refused what cannot be
        chunks = chunks_of_stages(counts, sizes.vpp_size or 1)[number]
        layers = [layer for chunk in chunks for layer in chunk]
        places = self._places(number, layers)
        held = self._held(places, self.counted.parameters, with_copies=number == sizes.pp_size - 1)
        trained = held if run.peft is None else self._held(places, self.adapters, with_copies=False)
        total = held if run.peft is None else tuple(a + b for a, b in zip(held, trained, strict=True))
        dense, expert = total
        weights = (dense + expert) * self._item_bytes
        gradients = sum(trained) * (_FP32 if self._reduced_in_fp32 else self._item_bytes)
        optimizer = self._optimizer(*trained)
        if run.ddp.use_megatron_fsdp:
            weights, gradients = self._sharded(weights, layers), gradients // self._dense_data
        activations = self._activations(number, chunks)
        logits = self._logits() if number == sizes.pp_size - 1 else 0
        return StageMemory(
            stage=number,
            layers=len(layers),
            parameters=dense + expert,
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=activations,
            logits=logits,
            total=weights + gradients + optimizer + activations + logits,
        )

    @property
    def _item_bytes(self) -> int:
        return _ITEM_BYTES[self.run.dtype]

    @property
    def _reduced_in_fp32(self) -> bool:
        return bool(self.run.ddp.overrides.get("grad_reduce_in_fp32", True))

    @property
    def _dense_data(self) -> int:
        """Ranks that hold the same dense weights."""
        return self.run.world_size // (self.run.parallelism.tp_size * self.run.parallelism.pp_size)

    @property
    def _expert_data(self) -> int:
        sizes = self.run.parallelism
        return self.run.world_size // (self.run.etp_size * sizes.ep_size * sizes.pp_size)

    def _places(self, stage: int, layers: Iterable[int]) -> list[Place]:
        last = stage == self.run.parallelism.pp_size - 1
        return [*layers, *(["embedding"] if stage == 0 else []), *(["end", "mtp"] if last else [])]

    def _held(
        self, places: Iterable[Place], parameters: Mapping[tuple[Place, Share], int], *, with_copies: bool
    ) -> tuple[int, int]:
        """(dense, experts') parameters of one rank."""
        wanted = set(places)
        counts: list[tuple[Share, int]] = [
            (share, count) for (place, share), count in parameters.items() if place in wanted
        ]
        if with_copies and self.run.parallelism.pp_size > 1 and self._copies_embedding:
            counts += list(self.counted.at("embedding").items())
        dense = sum(self._own(share, count) for share, count in counts if share not in _OF_EXPERTS)
        expert = sum(self._own(share, count) for share, count in counts if share in _OF_EXPERTS)
        return dense, expert

    @property
    def _copies_embedding(self) -> bool:
        """The last stage has one too: as output layer, or for multi-token prediction."""
        values = self.run.model.mcore
        return bool(values.get("share_embeddings_and_output_weights") or values.get("mtp_num_layers"))

    def _own(self, share: Share, count: int) -> int:
        """Of `count` parameters, one rank's."""
        run, values = self.run, self.run.model.mcore
        tp, ep = run.parallelism.tp_size, run.parallelism.ep_size
        match share:
            case "cut":
                return count // tp
            case "whole":
                return count
            case "expert cut":
                return count // (run.etp_size * ep)
            case "expert whole":
                return count // ep
            case "vocabulary":
                return count // values.positive("vocab_size") * padded_size(values, tp) // tp
            case _:
                assert_never(share)

    def _optimizer(self, dense: int, expert: int) -> int:
        """Adam's two moments in fp32, and weights in fp32 beside those of less precision."""
        each = 2 * _FP32 + (0 if self.run.dtype == "fp32" else _FP32)
        if not self.run.ddp.use_distributed_optimizer and not self.run.ddp.use_megatron_fsdp:
            return (dense + expert) * each
        return dense * each // self._dense_data + expert * each // self._expert_data

    def _sharded(self, weights: int, layers: list[int]) -> int:
        """FSDP's: a share of all, and two layers gathered at a time."""
        return weights // self._dense_data + 2 * weights // max(len(layers), 1)

    def _activations(self, stage: int, chunks: tuple[range, ...]) -> int:
        """Of all micro-batches that are on their way through this stage at once."""
        each = [sum(self._layer(layer) for layer in chunk) for chunk in chunks]
        pp, vpp = self.run.parallelism.pp_size, len(chunks)
        # 1F1B, interleaved where a stage has several chunks
        in_flight = pp - stage if vpp == 1 else 2 * (pp - stage - 1) + (vpp - 1) * pp + 1
        working = max((self._layer_whole(layer) for chunk in chunks for layer in chunk), default=0)
        again = working if self.run.recompute == "full" else 0
        return in_flight * sum(each) // vpp + again

    def _layer(self, layer: int) -> int:
        if self.run.recompute == "full":
            return self._tokens * self._hidden * self._item_bytes // self._spread
        return self._layer_whole(layer)

    @property
    def _tokens(self) -> int:
        return self.run.sequence_length * self.run.micro_batch_size // self.run.parallelism.cp_size

    @property
    def _hidden(self) -> int:
        return self.run.model.mcore.positive("hidden_size")

    @property
    def _spread(self) -> int:
        """Ranks over which whole activations are cut along the sequence."""
        return self.run.parallelism.tp_size if self.run.sequence_parallel else 1

    def _layer_whole(self, layer: int) -> int:
        values = self.run.model.mcore
        experts = moe_pattern(values)[layer] and values.get("hybrid_layer_pattern") is None
        mlp = self._experts() if experts else self._mlp(values.positive("ffn_hidden_size"))
        residuals = 4 * self._hidden / self._spread
        return int(self._tokens * self._item_bytes * (residuals + self._attention() + mlp))

    def _attention(self) -> float:
        """Elements of a token: what q, k and v come out of, they themselves after rope, and the core's output."""
        values, tp = self.run.model.mcore, self.run.parallelism.tp_size
        heads = values.positive("num_attention_heads")
        if values.get("multi_latent_attention"):
            rope, keys, out = (values.positive(name) for name in ("qk_pos_emb_head_dim", "qk_head_dim", "v_head_dim"))
            latents = values.integer("q_lora_rank", 0) + values.positive("kv_lora_rank") + rope
            core = 3 * (keys + rope) + 2 * out
            again = 0 if self.run.recompute == "selective" else core * heads / tp
            return 2 * latents / self._spread + (keys + rope + keys + out) * heads / tp + again
        width = values.integer("kv_channels", self._hidden // heads)
        queries, both = heads * width, values.integer("num_query_groups", heads) * width
        again = 0 if self.run.recompute == "selective" else (2 * queries + 2 * both) / tp
        return (queries + 2 * both) / tp + again

    def _mlp(self, width: int) -> float:
        """What goes into the activation function, and what comes out."""
        gated = bool(self.run.model.mcore.get("gated_linear_unit"))
        return (3 if gated else 2) * width / self.run.parallelism.tp_size

    def _experts(self) -> float:
        """A token once for each expert that it is sent to: in, through, and out; and the router's scores in fp32."""
        values = self.run.model.mcore
        gated = 3 if values.get("gated_linear_unit") else 2
        topk, experts = values.positive("moe_router_topk"), values.positive("num_moe_experts")
        width = values.integer("moe_ffn_hidden_size", values.positive("ffn_hidden_size"))
        shared = values.integer("moe_shared_expert_intermediate_size", 0)
        scores = 2 * experts * _FP32 / self._item_bytes
        return (topk * (2 * self._hidden + gated * width) + scores) / self._spread + self._mlp(shared)

    def _logits(self) -> int:
        values = self.run.model.mcore
        rows = padded_size(values, self.run.parallelism.tp_size) // self.run.parallelism.tp_size
        return self._tokens * rows * _LOGITS_BYTES * (1 + values.integer("mtp_num_layers", 0))
