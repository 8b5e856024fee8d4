"""The runs that are started: a model, how it is cut, what is computed again, and which attention it has."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "qwen3-moe"]
Recompute = Literal["none", "selective", "full"]
Attention = Literal["local", "flash"]
"""`local`: Megatron's own, which keeps its scores. `flash`: torch's, which keeps none, as Transformer Engine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run. The fewest GPUs that the sizes allow, unless `gpus` says more: data parallelism then."""

    name: str
    family: Family = "llama"
    tp: int = 1
    pp: int = 1
    ep: int = 1
    gpus: int | None = None
    sequence_parallel: bool | None = None
    """None: as `ferry setup` has it, where TP is above 1."""
    recompute: Recompute = "none"
    attention: Attention = "local"
    dtype: Literal["bf16", "fp32"] = "bf16"
    adapters: bool = False
    """LoRA by our own helpers out of a setup for verl, instead of Megatron-LM's program."""
    restarts: bool = False
    """The run is started again, and goes on from its checkpoint."""

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.gpus or max(self.tp * self.pp, self.ep)

    @property
    def replicas(self) -> int:
        """Of data parallelism."""
        return self.world_size // (self.tp * self.pp)

    @property
    def micro_batches(self) -> int:
        """Of a step on each replica: as many as fill the pipeline."""
        return 2 * self.pp if self.pp > 1 else 1


SETTINGS = (
    Setting(name="dense", restarts=True),
    Setting(name="dense-fp32", dtype="fp32"),
    Setting(name="dense-flash", attention="flash"),
    Setting(name="selective", recompute="selective"),
    Setting(name="full-flash", recompute="full", attention="flash"),
    Setting(name="moe-flash", family="qwen3-moe", attention="flash"),
    Setting(name="lora-flash", attention="flash", adapters=True),
    Setting(name="tp2", tp=2, restarts=True),
    Setting(name="tp2-flash", tp=2, attention="flash"),
    Setting(name="tp2-whole-flash", tp=2, sequence_parallel=False, attention="flash"),
    Setting(name="pp2-flash", pp=2, attention="flash"),
    Setting(name="dp2-flash", gpus=2, attention="flash"),
    Setting(name="ep2-flash", family="qwen3-moe", ep=2, attention="flash"),
    Setting(name="lora-tp2-flash", tp=2, attention="flash", adapters=True),
)
"""Those of one GPU first."""
