"""The variational solvers against the published algorithms."""

from __future__ import annotations

import pytest
from harness import check_parity

NAMES = [
    "aps", "davi", "flair", "red-diff", "red-diff-relative", "red-diff-sqrt", "rsld", "rsld-repulsion", "score-prior",
    "score-prior-surrogate", "sds", "smrd",
]  # fmt: skip

RTOL = {"red-diff": 1e-5, "red-diff-relative": 2e-5, "red-diff-sqrt": 1e-5}
"""Where it is not 1e-8: red-diff's code has Adam's epsilon for gradients of means, ours for those of sums."""


@pytest.mark.parametrize("name", NAMES)
def test_parity(name):
    check_parity(name, RTOL.get(name, 1e-8))
