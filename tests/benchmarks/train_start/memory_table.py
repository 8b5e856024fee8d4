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
    scores, logits = rank["kept"].get("scores", 0), rank["kept"].get("module.module", 0)
    rest = sum(rank["kept"].values()) - scores - logits
    yield _row("kept of a micro-batch, but scores and logits", rest, estimate["activations"])
    for name, kept in sorted(rank["kept"].items()):
        yield f"      {name:52}{kept / _MEGA:12.3f}"
    if not rank.get("peak"):
        return
    local = rank["buffers"] + scores
    yield _row(
        "optimizer", rank["states"] - rank["weights"] - rank["gradients"] - rank["buffers"], estimate["optimizer"]
    )
    yield _row("after loading", rank["loaded"], estimate["weights"] + estimate["gradients"])
    yield f"    {'buffers of local layers':46}{rank['buffers'] / _MEGA:12.3f}"
    working = estimate["activations"] + estimate["logits"]
    yield _row("peak beyond states", rank["peak"] - rank["states"], working)
    yield _row("the same without kept scores", rank["peak"] - rank["states"] - scores, working)
    yield _row("peak", rank["peak"], estimate["total"])
    yield _row("peak without scores and buffers", rank["peak"] - local, estimate["total"])


def _row(name: str, found: int, estimated: int) -> str:
    ratio = f"{found / estimated:8.3f}" if estimated else ""
    return f"    {name:46}{found / _MEGA:12.3f}{estimated / _MEGA:12.3f}{ratio}"
