"""Classical reconstructions do what they say, on problems whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unveil import Problem
from unveil.classical import instruments as classic
from unveil.errors import InputError
from unveil.noise import Poisson
from unveil.operators import (
    MRI,
    PET,
    Blur,
    FourierMagnitude,
    Identity,
    ParallelBeam,
    birdcage_maps,
    gaussian_kernel,
    random_lines,
    views,
)
from unveil.training.phantoms import phantom

N = 32
TRUTH = torch.from_numpy(np.stack([phantom(N, np.random.default_rng(k)) for k in (1, 2)]))[:, None]


def error(x: torch.Tensor, truth: torch.Tensor = TRUTH) -> float:
    return float((x - truth).norm() / truth.norm())


def test_tomography_from_few_noisy_views() -> None:
    A = ParallelBeam(views(16), (N, N))
    problem = Problem.simulate(TRUTH, A, 0.3)
    fbp, sart, tv = A.fbp(problem.y, "hann"), classic.sart(problem), classic.total_variation(problem)
    assert error(tv) < min(error(sart), error(fbp))
    assert error(sart) < error(classic.sart(problem, sigma=0)) - 0.02  # stopped before it fits the noise
    residual = float((problem.y - A(tv)).square().mean()) / 0.3**2
    assert residual == pytest.approx(1, abs=0.15)  # as large as the noise
    with pytest.raises(InputError, match="tomography"):
        classic.sart(Problem(TRUTH, Identity(), 0.1))


def test_sart_converges_without_noise() -> None:
    A = ParallelBeam(views(40), (N, N))
    assert error(classic.sart(Problem(A(TRUTH), A, 0))) < 0.1


def test_zero_filling_of_everything_is_the_image() -> None:
    z = torch.cat([TRUTH, 0.5 * TRUTH], 1)
    problem = Problem(3 * MRI(torch.ones(N, N))(z), MRI(torch.ones(N, N)), 0)
    assert error(classic.zero_filled(problem), 3 * z) < 1e-5
    part = Problem.simulate(z, MRI(random_lines((N, N), 3, 0.2)), 0.01)
    assert error(classic.total_variation(part), z) < error(classic.zero_filled(part), z) < 0.6
    assert birdcage_maps(1, (4, 4)).abs().min() > 0.99


def test_expectation_maximisation_never_loses_likelihood() -> None:
    pet = PET(ParallelBeam(views(20), (N, N)), 2.0, torch.full((N, N), 0.01))
    problem = Problem.simulate(TRUTH * 20, pet, Poisson(1.0), value_range=(0.0, 20.0))
    found = [problem.log_likelihood(classic.mlem(problem, steps=steps)) for steps in (1, 5, 20)]
    assert (found[0] < found[1]).all()
    assert (found[1] < found[2]).all()
    assert error(classic.mlem(problem, steps=20), TRUTH * 20) < 0.3


def test_input_output_finds_an_image_with_the_magnitudes() -> None:
    image = TRUTH[:, :, 8:20, 10:20]
    A = FourierMagnitude((1, 12, 10), 2.0)
    x = classic.hybrid_input_output(Problem(A(image), A, 0))
    assert error(A(x), A(image)) < 0.05
    nearest = min(error(v, image[:1]) for v in (x[:1], x[:1].flip(-1, -2)))
    assert nearest < 0.5
    with pytest.raises(InputError, match="Fourier magnitudes"):
        classic.hybrid_input_output(Problem(TRUTH, Blur(gaussian_kernel(1.0)), 0.1))
