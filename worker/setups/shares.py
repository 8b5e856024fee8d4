"""How much of a tensor one rank of tensor and expert parallelism holds."""

from typing import assert_never

from ..mapping.vocabulary import padded_size
from .census import Share
from .trainer_run import TrainerRun

OF_EXPERTS: frozenset[Share] = frozenset(("expert cut", "expert whole"))


def one_rank(run: TrainerRun, share: Share, count: int) -> int:
    """Of `count` parameters, one rank's."""
    values, tp, ep = run.model.mcore, run.parallelism.tp_size, run.parallelism.ep_size
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
