"""The projected and the annealed solvers agree with their published algorithms: see what the records say of them."""

from __future__ import annotations

import pytest
from harness import check_parity

NAMES = [
    "ccdf",
    "ddnm",
    "ddnm-plus",
    "ddpg",
    "ddpg-noiseless",
    "ddrm",
    "ddrm-noiseless",
    "dds",
    "dds-noiseless",
    "idpg",
    "ilvr",
    "kadkhodaie-simoncelli",
    "repaint",
    "score-ald",
    "score-ald-balance",
    "score-sde",
    "snips",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_published_algorithm_step_by_step(name):
    check_parity(name)
