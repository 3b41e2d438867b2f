"""MPGD with an autoencoder: its steps in closed form on a linear one, the promises, and a run on an emoji."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unveil
from unveil.errors import InputError, NotCompatible
from unveil.operators import Inpainting, Matrix
from unveil.priors import GaussianPrior
from unveil.priors.latent import Autoencoder
from unveil.rng import Rng
from unveil.solvers.base import Run, State
from unveil.solvers.checks import check_solver
from unveil.solvers.moves import ddim, misfit, vp_scale

SIGMA, NEXT = 1.0, 0.7
"""Levels for images in [0, 1]: 2 and 1.4 in [-1, 1], the first of them in the band."""


class Columns(nn.Module):
    """Codes in an orthogonal basis of some combinations of channels: an orthogonal projector, in [-1, 1]."""

    def __init__(self, channels: int = 2, codes: int = 1) -> None:
        super().__init__()
        draws = torch.randn(channels, channels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.basis = nn.Parameter(torch.linalg.qr(draws)[0][:, :codes], requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        return torch.einsum("ck,nchw->nkhw", self.basis, x)

    def decode(self, z: Tensor) -> Tensor:
        return torch.einsum("ck,nkhw->nchw", self.basis, z)


@pytest.fixture
def columns(monkeypatch):
    module, opened = Columns(), []

    def load(name: str) -> Autoencoder:
        opened.append(name)
        return Autoencoder(module, channels=2, latents=1, factor=1)

    monkeypatch.setattr("unveil.solvers.explicit.mpgd.load_autoencoder", load)
    return module, opened


def one_step(solver, value_range=(0.0, 1.0), sigmas=(SIGMA, NEXT, 0.0)):
    """What a step adds to x0 beside DDIM's step, the clean estimate, and the run."""
    width = value_range[1] - value_range[0]
    x = torch.rand(3, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = value_range[0] + width * x
    problem = unveil.Problem.simulate(x, Inpainting(torch.tensor([1.0, 0.0, 1.0])), 0.05 * width, 5, value_range)
    prior = GaussianPrior(torch.full((2, 4, 3), sum(value_range) / 2), 0.04 * width**2 * torch.eye(24))
    run = Run(problem, prior, unveil.Schedule(tuple(s * width for s in sigmas)), Rng([(k, 0) for k in range(3)], 1))
    state = State(x + 0.3 * width, x)
    x0 = prior.denoise(state.x, sigmas[0] * width)
    after = solver.step(state, run)
    plain = ddim(state.x, x0, *run.schedule.pair(0), solver.eta, Rng([(k, 0) for k in range(3)], 1))
    torch.testing.assert_close(after.x - plain, after.x0 - x0)
    return after.x0 - x0, x0, run


def length(run: Run, share: float) -> float:
    """share c / s', for images in [-1, 1]."""
    return 0.85 * 24**0.5 / 2 * share / vp_scale(run.schedule.sigmas[1], run.scale)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_the_step_through_a_linear_autoencoder_is_its_closed_form(columns, value_range):
    move, x0, run = one_step(unveil.get_solver("mpgd", autoencoder="columns"), value_range)
    project, middle = columns[0].basis @ columns[0].basis.T, sum(value_range) / 2
    # the autoencoder projects around the middle of the range, which is 0 in its own
    image = middle + torch.einsum("cd,ndhw->nchw", project, x0 - middle)
    tangent = torch.einsum("cd,ndhw->nchw", project, misfit(run.problem, image)[1])
    torch.testing.assert_close(move, -length(run, 0.0075) * run.scale * tangent)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_so_is_the_step_of_its_codes(columns, value_range):
    move, x0, run = one_step(unveil.get_solver("mpgd", autoencoder="columns", form="z", share=0.5), value_range)
    project, middle = columns[0].basis @ columns[0].basis.T, sum(value_range) / 2
    image = middle + torch.einsum("cd,ndhw->nchw", project, x0 - middle)
    tangent = torch.einsum("cd,ndhw->nchw", project, misfit(run.problem, image)[1])
    # images are scale times what codes make of them, so that a step of codes is that of images
    torch.testing.assert_close(move, -length(run, 0.5) * run.scale * tangent)
    authors = one_step(unveil.get_solver("mpgd", autoencoder="columns", form="z"), value_range)[0]
    torch.testing.assert_close(authors, move * 0.02)


@pytest.mark.parametrize("sigmas", [(1.8, 0.7, 0.0), (0.6, 0.5, 0.0)])
def test_outside_of_the_band_it_is_the_plain_step(columns, sigmas):
    plain = one_step(unveil.get_solver("mpgd"), sigmas=sigmas)[0]
    assert torch.equal(one_step(unveil.get_solver("mpgd", autoencoder="columns"), sigmas=sigmas)[0], plain)
    wider = unveil.get_solver("mpgd", autoencoder="columns", band=(0.0, 9.0))
    assert not torch.equal(one_step(wider, sigmas=sigmas)[0], plain)


@pytest.mark.parametrize("options", [{}, {"form": "z", "share": 0.5}])
def test_every_promise_with_an_autoencoder(columns, options):
    solver = unveil.get_solver("mpgd", autoencoder="columns", band=(0.01, 50.0), **options)
    found = check_solver(solver)
    assert all(deviation <= 1e-8 for _, deviation in found), found


def test_it_is_read_once_before_the_run_starts(columns):
    solver = unveil.get_solver("mpgd", autoencoder="columns", band=(0.01, 50.0))
    problem = one_step(unveil.get_solver("mpgd"))[2].problem
    prior = GaussianPrior(torch.full((2, 4, 3), 0.5), 0.04 * torch.eye(24))
    assert columns[1] == []
    run = unveil.stream(problem, prior, solver, steps=6)
    assert columns[1] == ["columns"]
    list(run)
    assert columns[1] == ["columns"]


def test_what_does_not_fit_is_said_before_the_run_starts(columns):
    prior = GaussianPrior(torch.full((6,), 0.5), 0.04 * torch.eye(6))
    problem = unveil.Problem.simulate(prior.sample(1, 0), Matrix(torch.eye(6)), 0.1)
    with pytest.raises(NotCompatible, match=r"takes \[N, 2, H, W\], got \(1, 6\)"):
        unveil.stream(problem, prior, unveil.get_solver("mpgd", autoencoder="columns"))
    with pytest.raises(InputError, match="no form 'x'"):
        unveil.get_solver("mpgd", form="x")
    with pytest.raises(InputError, match="needs an autoencoder"):
        unveil.get_solver("mpgd", form="z")
    with pytest.raises(InputError, match="two levels"):
        unveil.get_solver("mpgd", band=(3.0, 1.0))


def test_the_autoencoder_that_ships_takes_no_image_of_another_size():
    prior = unveil.load_prior("emoji")
    problem = unveil.Problem(torch.rand(1, 3, 62, 62), Inpainting(torch.ones(62, 62)), 0.0)
    solver = unveil.get_solver("mpgd", autoencoder="emoji-autoencoder")
    assert "multiples of 4, got (1, 3, 62, 62)" in solver.unfit(problem)
    assert prior.value_range == problem.value_range  # nothing else stands in the way


@pytest.mark.parametrize("form", ["ae", "z"])
def test_an_emoji_with_a_hole(form):
    prior, solver = unveil.load_prior("emoji"), unveil.get_solver("mpgd", autoencoder="emoji-autoencoder", form=form)
    side = torch.linspace(-1, 1, 64)
    disc = (side[:, None] ** 2 + side**2 < 0.6).float()
    x = 1 - disc * torch.tensor([0.05, 0.25, 0.9])[:, None, None]  # a yellow disc on white
    mask = torch.ones(64, 64)
    mask[20:40, 24:48] = 0
    problem = unveil.Problem.simulate(x[None], Inpainting(mask), 0.02, 3)
    run = unveil.stream(problem, prior, solver, steps=20)
    first = next(run)
    *_, last = run
    assert run.status.value == "DONE"
    start, end = (float(problem.residual(s.x0).square().mean().sqrt()) for s in (first, last))
    assert end < start / 2
    again = unveil.solve(problem, prior, solver, steps=20)
    assert again.recipe["options"]["autoencoder"] == "emoji-autoencoder"
    assert torch.equal(again.samples[0], last.x)
