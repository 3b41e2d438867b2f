"""The variational solvers against the published algorithms."""

from __future__ import annotations

import pytest
from harness import check_parity


@pytest.mark.parametrize(
    "name", ["aps", "davi", "flair", "rsld", "score-prior", "score-prior-surrogate", "sds", "smrd"]
)
def test_parity(name):
    check_parity(name)
