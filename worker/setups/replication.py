"""What data-parallel ranks share of weights, gradients and optimizer states: plain DDP, or Megatron's FSDP.

Sources: the table of Megatron-LM's docs/source/api-guide/dist_optimizer.md (18 or 20 bytes a parameter in half
precision, 16 in fp32), and `ParamAndGradBuffer._init_each_parameter_group_buffers` of megatron-core 0.19's FSDP.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from .ddp_values import ddp_values
from .trainer_run import TrainerRun

_FP32 = 4
_GATHERED = 2
"""FSDP units that are whole at once: the one at work, and the next one."""

Held = tuple[int, int]
"""Parameters of one rank before any sharding: dense ones and experts'."""
_Shared = Literal["optimizer", "gradients", "weights"]
_STRATEGIES: dict[str, frozenset[_Shared]] = {
    "no_shard": frozenset(),
    "optim": frozenset(("optimizer",)),
    "optim_grads": frozenset(("optimizer", "gradients")),
    "optim_grads_params": frozenset(("optimizer", "gradients", "weights")),
}


@dataclass(frozen=True)
class Replication:
    """Bytes of one rank."""

    run: TrainerRun

    def weights(self, held: Held, unit: int) -> int:
        """`unit`: parameters of the largest layer, whole, with FSDP."""
        gathered = _GATHERED * unit if "weights" in self._shared else 0
        return (self._part("weights", held) + gathered) * self.run.item_bytes

    def gradients(self, trained: Held, unit: int) -> int:
        """`unit`: trained parameters of the largest layer, whole."""
        gathered = _GATHERED * unit if "gradients" in self._shared else 0
        return (self._part("gradients", trained) + gathered) * (_FP32 if self._reduced_in_fp32 else self.run.item_bytes)

    def optimizer(self, trained: Held) -> int:
        """Adam's two moments in fp32; beside weights or gradients of less precision, those in fp32 too."""
        copies = 0 if self.run.dtype == "fp32" else 1 if self._reduced_in_fp32 else 2
        return self._part("optimizer", trained) * (2 + copies) * _FP32

    @property
    def is_fsdp(self) -> bool:
        """Megatron's, whatever it shares."""
        return bool(self._settings["use_megatron_fsdp"])

    def _part(self, what: _Shared, held: Held) -> int:
        dense, experts = held
        if what not in self._shared:
            return dense + experts
        instances = 1 if what == "optimizer" and self._outer else self._instances
        return _share(dense, self.run.replicas, instances) + _share(experts, self.run.expert_replicas, instances)

    @cached_property
    def _settings(self) -> dict[str, object]:
        return ddp_values(self.run.ddp)

    @cached_property
    def _shared(self) -> frozenset[_Shared]:
        if self.is_fsdp:
            return _STRATEGIES[str(self._settings["data_parallel_sharding_strategy"])]
        return _STRATEGIES["optim" if self._settings["use_distributed_optimizer"] else "no_shard"]

    @property
    def _outer(self) -> bool:
        """Instances share the optimizer's states among each other too."""
        return self._settings["outer_dp_sharding_strategy"] == "optim"

    @property
    def _instances(self) -> int:
        """Groups of ranks that hold all once."""
        instances = self._settings["num_distributed_optimizer_instances"]
        return instances if isinstance(instances, int) else 1

    @property
    def _reduced_in_fp32(self) -> bool:
        return bool(self._settings["grad_reduce_in_fp32"])


def _share(count: int, replicas: int, instances: int) -> int:
    """Rounded up, as buffers are padded."""
    return -(-count // max(replicas // instances, 1))
