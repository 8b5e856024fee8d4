"""The state that every module keeps beside its parameters: empty without fp8, yet a key of the checkpoint."""

import torch


class ExtraState(torch.nn.Module):
    """A module that saves an empty byte tensor as its `_extra_state`."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Nothing to restore without fp8."""
