"""Which cases of a parametrized test run by default, where many cases of one kind take long together.

    @pytest.mark.parametrize("bad", one_in(3, BAD))

CI runs the slow tests as well, and so all cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest


def one_in(n: int, cases: Sequence[object]) -> list[object]:
    """Return the cases. The first of each ``n`` is a default test, and the others are slow tests.

    A case that is a tuple has one value per argument name.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow if number % n else ())
        for number, case in enumerate(cases)
    ]
