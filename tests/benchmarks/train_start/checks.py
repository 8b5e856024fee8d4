"""What must be true of a start, each with what was found."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .start import STEPS, Start, Trained

_RELATIVE = {"fp32": 1e-5, "bf16": 2e-3}
"""Of a loss. In bf16 two programs round apart at every layer: HF's own two precisions are told beside it."""
_ROUNDING = 1e-6
"""Of a difference of logits of about ten in fp32, however small the loss is that it makes."""
_TIMES = 3
"""How much further Megatron in bf16 may be from HF in fp32 than HF in bf16 is."""


@dataclass(frozen=True, slots=True)
class Check:
    """A claim, and whether it holds."""

    claim: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"  {'ok    ' if self.holds else 'FAILED'} {self.claim}: {self.found}"


def of_first_start(start: Start, trained: Trained, hf: dict[str, float]) -> Iterator[Check]:
    """That it began with the base's weights, on the batch, and that it learns."""
    yield from _loaded(trained, f"successfully loaded checkpoint from {start.target}", "at iteration 0")
    wanted = torch.from_numpy(start.batch["tokens"])
    found = {tuple(sample.tolist()) for seen in trained.seen for sample in seen}
    yield Check("the ranks saw the batch", f"{len(found)} samples", found == {tuple(one.tolist()) for one in wanted})
    yield _same(start, "the first loss is HF's", trained.losses[1], hf)
    falling = [trained.losses[step] for step in sorted(trained.losses)]
    yield Check("the loss falls", " ".join(f"{loss:.4f}" for loss in falling), falling[-1] < falling[0])


def of_adapters(trained: Trained) -> Iterator[Check]:
    """That nothing else was trained."""
    told = next(line for line in trained.log.splitlines() if "tensors changed" in line)
    yield Check("adapters alone changed", told, told.endswith(" 0 of them the base's") and not told.startswith("0 "))


def of_export(start: Start, trained: Trained, hf: dict[str, float]) -> Iterator[Check]:
    """That HF's model of the trained checkpoint is the trained model."""
    yield _same(start, "the exported model's loss is the trained one's", trained.validation, hf)
    moved = abs(trained.validation - trained.losses[1])
    yield Check("which is another than at first", f"by {moved:.4f}", moved > 10 * _allowed(start, hf))


def of_restart(start: Start, before: Trained, after: Trained) -> Iterator[Check]:
    """That the same command goes on where the run was."""
    yield from _loaded(after, f"successfully loaded checkpoint from {start.checkpoints}", f"at iteration {STEPS}")
    first = min(after.losses)
    yield Check("the restart begins with the next step", str(first), first == STEPS + 1)
    away = abs(after.losses[first] - before.validation)
    yield Check("its loss is the trained model's", f"{after.losses[first]:.6f}, {away:.1e} away", away < 1e-3)


def _loaded(trained: Trained, said: str, at: str) -> Iterator[Check]:
    lines = [line.strip() for line in trained.log.splitlines() if "successfully loaded checkpoint from" in line]
    yield Check("Megatron says what it loaded", " / ".join(lines), any(said in line and at in line for line in lines))
    doubts = [line for line in trained.log.splitlines() if "load_return:" in line or "start from random" in line]
    yield Check("and nothing was missing or left over", doubts[0] if doubts else "no word of it", not doubts)


def _same(start: Start, claim: str, found: float, hf: dict[str, float]) -> Check:
    away, allowed = abs(found - hf["float32"]), _allowed(start, hf)
    told = f"{found:.6f}; HF {hf['float32']:.6f} in fp32, {hf['bfloat16']:.6f} in bf16; {away:.1e} of {allowed:.1e}"
    return Check(claim, told, away <= allowed)


def _allowed(start: Start, hf: dict[str, float]) -> float:
    own = _TIMES * abs(hf["float32"] - hf["bfloat16"]) if start.setting.dtype == "bf16" else 0.0
    return max(_RELATIVE[start.setting.dtype] * hf["float32"], _ROUNDING, own)
