"""Stand-in for the fused router: Megatron imports these names; with fusion off it never calls them."""

from typing import Any


def fused_topk_with_score_function(*unused: Any, **options: Any) -> Any:
    """There is no kernel here."""
    raise NotImplementedError


def fused_compute_score_for_moe_aux_loss(*unused: Any, **options: Any) -> Any:
    """There is no kernel here."""
    raise NotImplementedError


def fused_moe_aux_loss(*unused: Any, **options: Any) -> Any:
    """There is no kernel here."""
    raise NotImplementedError
