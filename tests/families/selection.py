"""Which cases a law is tried on: all of them, of which each family's first ones are quick to run."""

from collections.abc import Callable

import pytest

from worker.mapping.registry import FAMILIES

from .case import Case, cases_of

_QUICK = 2
"""Cases of a family that run without `slow` too."""


def _cases(wanted: Callable[[Case], bool]) -> pytest.MarkDecorator:
    parameters = [
        pytest.param(case, marks=() if number < _QUICK else pytest.mark.slow)
        for family in FAMILIES
        for number, case in enumerate(cases_of(family))
        if wanted(case)
    ]
    return pytest.mark.parametrize("case", parameters, ids=str)


every_case = _cases(lambda _: True)
"""Every case of every family."""

every_local_case = _cases(lambda case: not case.without_local)
"""Those that Megatron's local layers can express."""

every_moe_case = _cases(lambda case: case.experts > 0)
"""Those with experts."""

first_cases = pytest.mark.parametrize("case", [cases_of(family)[0] for family in FAMILIES], ids=str)
"""One case a family."""
