"""What will be asked of the service, and what must become of it: drawn from a seed before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from .kinds import BAD, KINDS, Bad, Kind, spec_of

Treatment = Literal["plain", "twice", "rival", "cancelled", "retried", "dependent", "replacing", "replaced", "bad"]
# Each is an entry here, a function in submitting.py and, where it ends otherwise, a case in `Ask.may_end`.

_SHARES: Mapping[Treatment, int] = {
    "plain": 60,
    "twice": 7,
    "rival": 7,
    "cancelled": 8,
    "retried": 6,
    "dependent": 6,
    "replacing": 6,  # makes a job of its own to be `replaced`
    "bad": 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One job, and how its client behaves."""

    number: int
    kind: Kind
    treatment: Treatment
    patience: float
    """0 to 1: how long the client waits before its second request, if it has one."""

    @property
    def target(self) -> str:
        return f"out-{self.number}"

    @property
    def spec(self) -> dict[str, Any]:
        spec = spec_of(self.kind, self.target)
        return spec | {"on_exists": "replace"} if self.treatment == "replacing" else spec

    @property
    def may_end(self) -> frozenset[str]:
        """The terminal states that are right. A cancel may come too late."""
        match self.treatment:
            case "bad":
                return frozenset({"failed"})
            case "cancelled":
                return frozenset({"cancelled", "succeeded"})
            case "plain" | "twice" | "rival" | "retried" | "dependent" | "replacing" | "replaced":
                return frozenset({"succeeded"})

    @property
    def code(self) -> str | None:
        """Of the error with which it must fail."""
        return self.kind.code if isinstance(self.kind, Bad) else None


def draw(count: int, chance: Random) -> list[Ask]:
    """`count` jobs in random order; of few jobs, at least one of every kind and of every treatment."""
    fixed: list[tuple[Kind, Treatment]] = [_drawn(treatment, chance) for treatment in _SHARES]
    fixed += [(kind, "plain") for kind in KINDS]
    fixed += [(kind, "bad") for kind in BAD]
    drawn = [_drawn(_one_of(list(_SHARES), list(_SHARES.values()), chance), chance) for _ in range(count)]
    pairs = [*fixed, *drawn][: max(count, 0)]
    chance.shuffle(pairs)
    return [
        Ask(number=number, kind=kind, treatment=treatment, patience=chance.random())
        for number, (kind, treatment) in enumerate(pairs, start=1)
    ]


def _drawn(treatment: Treatment, chance: Random) -> tuple[Kind, Treatment]:
    kinds: Sequence[Kind] = BAD if treatment == "bad" else KINDS
    if treatment in ("rival", "replacing"):  # two jobs for a target
        kinds = [kind for kind in kinds if kind.writes]
    return _one_of(kinds, [kind.share for kind in kinds], chance), treatment


def _one_of[T](choices: Sequence[T], weights: Sequence[int], chance: Random) -> T:
    return chance.choices(choices, weights)[0]
