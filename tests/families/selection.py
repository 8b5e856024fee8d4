"""Which cases a law is tried on: all of them, of which each family's first ones are quick to run."""

import pytest

from worker.mapping.registry import FAMILIES

from .case import Case, cases_of

_QUICK = 2
"""Cases of a family that run without `slow` too."""


def _parameter(case: Case, number: int) -> object:
    return pytest.param(case, marks=() if number < _QUICK else pytest.mark.slow)


every_case = pytest.mark.parametrize(
    "case",
    [_parameter(case, number) for family in FAMILIES for number, case in enumerate(cases_of(family))],
    ids=str,
)
"""Every case of every family."""

every_local_case = pytest.mark.parametrize(
    "case",
    [
        _parameter(case, number)
        for family in FAMILIES
        for number, case in enumerate(cases_of(family))
        if not case.without_local
    ],
    ids=str,
)
"""Those that Megatron's local layers can express."""

first_cases = pytest.mark.parametrize("case", [cases_of(family)[0] for family in FAMILIES], ids=str)
"""One case a family."""
