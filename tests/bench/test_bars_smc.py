"""What the particle methods must reach on problems with known answers."""

from __future__ import annotations

import pytest

from unveil.bench.bars import failures, particles_at_work
from unveil.solvers import get_solver
from unveil.solvers.smc.tds import TDS


@pytest.mark.parametrize("solver", ["fps-smc", "mcgdiff", "tds"])
def test_the_error_falls_with_the_particles_and_the_evidence_is_unbiased(solver):
    bars = particles_at_work(get_solver(solver))
    assert len(bars) == 3
    assert not failures(bars)


class Halved(TDS):
    """Forgets that the last twist is the likelihood itself."""

    def likelihood(self, problem, x0):
        return super().likelihood(problem, x0) / 2


def test_without_the_likelihood_at_the_end_they_do_not():
    assert failures(particles_at_work(Halved(), few=8, many=64, runs=16))
