"""What ranks held, beside what `ferry setup --plan` estimated for their stage."""

from collections.abc import Iterator
from typing import Any

_MEGA = 10**6


def rows(rank: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    """A line a part: measured, estimated, measured / estimated."""
    estimate = plan["memory"]["stages"][rank["stage"]]
    yield f"  rank {rank['rank']}, stage {rank['stage']}: MB measured, estimated, ratio"
    for name in ("parameters", "weights", "gradients"):
        yield _row(name, rank[name], estimate[name])
    kept = {"scores": 0, "core": 0, "rest": 0, **rank["kept"]}
    yield _row("kept of a micro-batch, but for scores", kept["core"] + kept["rest"], estimate["activations"])
    yield f"    {'kept scores':42}{kept['scores'] / _MEGA:12.3f}"
    if not rank.get("peak"):
        return
    local = rank["buffers"] + kept["scores"]
    yield _row(
        "optimizer", rank["states"] - rank["weights"] - rank["gradients"] - rank["buffers"], estimate["optimizer"]
    )
    yield _row("after loading", rank["loaded"], estimate["weights"] + estimate["gradients"])
    yield f"    {'buffers of local layers':42}{rank['buffers'] / _MEGA:12.3f}"
    working = estimate["activations"] + estimate["logits"]
    yield _row("peak beyond states", rank["peak"] - rank["states"], working)
    yield _row("the same without kept scores", rank["peak"] - rank["states"] - kept["scores"], working)
    yield _row("peak", rank["peak"], estimate["total"])
    yield _row("peak without scores and buffers", rank["peak"] - local, estimate["total"])


def _row(name: str, found: int, estimated: int) -> str:
    ratio = f"{found / estimated:8.3f}" if estimated else ""
    return f"    {name:42}{found / _MEGA:12.3f}{estimated / _MEGA:12.3f}{ratio}"
