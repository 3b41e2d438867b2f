"""Tomography: line integrals in closed form, the Fourier slice theorem, scikit-image, inverses, and what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from unveil import Problem
from unveil.errors import InputError, UnknownName
from unveil.noise import Poisson
from unveil.operators import PET, ConeBeam, FanBeam, Linear, ParallelBeam, gaussian_kernel, views

BLOBS = [((-5.0, 3.0, 1.0), 3.0, 1.0), ((6.0, -4.0, -2.0), 2.5, 0.7)]
"""Middle (x, y, z), standard deviation and height of Gaussian blobs, in pixels."""


def blobs(size: tuple[int, ...], pixel: float = 1.0) -> torch.Tensor:
    """An image or volume [1, 1, ...] whose line integrals are known."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    axes[-2] = -axes[-2]
    grid = torch.meshgrid(*axes, indexing="ij")
    out = torch.zeros(size, dtype=torch.float64)
    for middle, std, height in BLOBS:
        squares = sum((g - m) ** 2 for g, m in zip(reversed(grid), middle, strict=False))
        out = out + height * torch.exp(-squares / (2 * std**2))
    return out[None, None]


def integrals(points: torch.Tensor, directions: torch.Tensor, pixel: float = 1.0) -> torch.Tensor:
    """The integrals of the blobs along lines through ``points`` [..., 2 or 3], both in units of length."""
    out = torch.zeros(points.shape[:-1], dtype=torch.float64)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    for middle, std, height in BLOBS:
        away = pixel * torch.tensor(middle[: points.shape[-1]], dtype=torch.float64) - points
        along = (away * directions).sum(-1, keepdim=True)
        distance = (away - along * directions).square().sum(-1)
        width = pixel * std
        out = out + height * math.sqrt(2 * math.pi) * width * torch.exp(-distance / (2 * width**2))
    return out


def frame(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each view: the direction of the detector and that of the beam, [views, 1, 2]."""
    t = torch.deg2rad(angles)[:, None]
    return torch.stack([t.cos(), t.sin()], -1), torch.stack([-t.sin(), t.cos()], -1)


def places(count: int, spacing: float, offset: float = 0.0) -> torch.Tensor:
    return ((torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * spacing - offset)[None, :, None]


@pytest.mark.parametrize(("spacing", "pixel", "offset"), [(1.0, 1.0, 0.0), (1.5, 0.5, 2.0)])
@pytest.mark.parametrize("memory", [0.0, 2.0**30])
def test_parallel_beams_integrate_along_lines(spacing, pixel, offset, memory) -> None:
    angles = views(12, start=4.0)
    A = ParallelBeam(angles, (40, 36), 41, spacing=spacing, pixel=pixel, offset=offset, memory=memory)
    across, along = frame(angles)
    expected = integrals(places(41, spacing, offset) * across, along, pixel)
    got = A(blobs((40, 36)))[0, 0]
    assert float((got - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("curved", [False, True])
def test_fans_integrate_along_lines(curved) -> None:
    angles, source, distance, spacing, offset, pixel = views(9, 360.0, start=4.0), 50.0, 20.0, 1.3, 1.0, 0.8
    lengths = {"source": source, "distance": distance, "spacing": spacing, "offset": offset, "pixel": pixel}
    A = FanBeam(angles, (40, 36), 61, curved=curved, **lengths)
    across, along = frame(angles)
    u, far = places(61, spacing, offset), source + distance
    end = u * across + distance * along
    if curved:
        end = far * (u / far).sin() * across + (far * (u / far).cos() - source) * along
    start = -source * along
    expected = integrals(start.expand_as(end), end - start, pixel)
    got = A(blobs((40, 36)))[0, 0]
    assert float((got - expected).norm() / expected.norm()) < 1e-2


def test_cones_integrate_along_lines() -> None:
    angles, source, distance, spacing = views(5, 360.0, start=4.0), 60.0, 30.0, 1.6
    A = ConeBeam(angles, (20, 30, 28), (21, 41), source=source, distance=distance, spacing=spacing)
    across, along = frame(angles)
    flat = places(41, spacing) * across + distance * along
    up = places(21, spacing)[:, :, None].expand(5, 21, 41, 1)
    end = torch.cat([flat[:, None].expand(5, 21, 41, 2), up], -1)
    start = torch.cat([-source * along, torch.zeros(5, 1, 1, dtype=torch.float64)], -1)[:, None]
    expected = integrals(start.expand_as(end), end - start)
    got = A(blobs((20, 30, 28)))[0, 0]
    assert float((got - expected).norm() / expected.norm()) < 2e-2


def test_a_cone_without_height_is_a_fan() -> None:
    x = torch.rand(2, 1, 16, 14, dtype=torch.float64)
    fan = FanBeam(views(7, 360.0), (16, 14), 25, source=30.0, distance=10.0)
    cone = ConeBeam(views(7, 360.0), (1, 16, 14), (1, 25), source=30.0, distance=10.0)
    torch.testing.assert_close(cone(x[:, :, None])[:, :, :, 0], fan(x))


def test_along_the_axes_pixels_are_summed() -> None:
    x = torch.rand(3, 2, 6, 5, dtype=torch.float64)
    y = ParallelBeam(torch.tensor([0.0, 90.0, 180.0, 270.0]), (6, 5), 6, pixel=1.0)(x)
    rows, columns = x.sum(-1), torch.nn.functional.pad(x.sum(-2), (0, 1))
    torch.testing.assert_close(y[:, :, 1], rows.flip(-1))  # up is the detector's end
    torch.testing.assert_close(y[:, :, 3], rows)
    half = (columns + torch.nn.functional.pad(x.sum(-2), (1, 0))) / 2  # five columns before six detectors
    torch.testing.assert_close(y[:, :, 0], half)
    torch.testing.assert_close(y[:, :, 2], half.flip(-1))


@pytest.mark.parametrize("case", ["sparse", "limited"])
def test_fourier_slices(case: str) -> None:
    """The transform of a projection is that of the image on the line of its angle."""
    angles = views(7) if case == "sparse" else views(9, 60.0, start=20.0)
    A = ParallelBeam(angles, (48, 48), 69)
    x = blobs((48, 48))
    y = A(x)[0, 0]
    frequency = torch.linspace(-0.6, 0.6, 13, dtype=torch.float64)  # radians per pixel
    s = places(69, 1.0)[0, :, 0]
    slices = (y.to(torch.complex128)[:, None] * torch.polar(torch.ones(13, 69).double(), -frequency[:, None] * s)).sum(
        -1
    )
    t = torch.deg2rad(angles)[:, None]
    c = torch.arange(48, dtype=torch.float64) - 23.5
    columns = torch.exp(-1j * (frequency * t.cos())[..., None] * c)
    rows = torch.exp(1j * (frequency * t.sin())[..., None] * c)  # rows go down
    plane = torch.einsum("vfr,rc,vfc->vf", rows, x[0, 0].to(rows.dtype), columns)
    assert float((slices - plane).abs().max() / plane.abs().max()) < 1.5e-2  # linear interpolation blurs a little


def test_agrees_with_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform")
    x, angles = blobs((64, 64)), views(20)
    got = ParallelBeam(angles, (64, 64), 64)(x)[0, 0]
    # theirs turns around pixel 32, ours around the middle, 31.5: shift by half a pixel with a phase
    k = torch.fft.fftfreq(64, dtype=torch.float64)
    ramp = torch.exp(-2j * math.pi * 0.5 * (k[:, None] + k))
    shifted = torch.fft.ifft2(torch.fft.fft2(x[0, 0]) * ramp).real
    theirs = torch.as_tensor(transform.radon(shifted.numpy(), angles.numpy(), circle=True)).mT
    back = torch.fft.ifft(torch.fft.fft(theirs) * torch.exp(2j * math.pi * 0.5 * k)).real
    assert float((got - back).norm() / back.norm()) < 1e-2


SMALL = {
    "parallel": lambda n, **o: ParallelBeam(views(60), (n, n), **o),
    "offset": lambda n, **o: ParallelBeam(views(61, start=3.0), (n, n), 40, spacing=2.0, pixel=1.5, offset=1.7, **o),
    "fan": lambda n, **o: FanBeam(views(90, 360.0), (n, n), source=90.0, distance=40.0, spacing=1.2, **o),
    "arc": lambda n, **o: FanBeam(views(90, 360.0), (n, n), source=90.0, distance=40.0, curved=True, **o),
    "cone": lambda n, **o: ConeBeam(views(60, 360.0), (n, n, n), (54, 54), source=90.0, distance=40.0, **o),
}


@pytest.mark.parametrize("beam", SMALL)
def test_filtered_back_projection_inverts(beam: str) -> None:
    n = 20 if beam == "cone" else 36
    A = SMALL[beam](n)
    x = blobs((n,) * len(A.size))
    x = x + (2 * x.square() if beam == "parallel" else 0)
    y = A(x.expand(2, -1, *x.shape[2:]))
    r = A.fbp(y)
    assert r.shape == (2, 1, *A.size)
    limit = 0.06 if beam == "cone" else 0.04  # off the plane of the source a circle does not tell all
    assert float((r - x).norm() / r.norm()) < limit
    assert float(r[0].sum() / x.sum()) == pytest.approx(1, abs=0.02)
    assert A.fbp(y, "hann").square().sum() < r.square().sum()
    assert A.fbp(y.float()).dtype == torch.float32


def test_filtered_back_projection_of_few_views_and_of_a_part() -> None:
    x = blobs((36, 36))
    few, part = ParallelBeam(views(8), (36, 36)), ParallelBeam(views(30, 90.0), (36, 36))
    around = ParallelBeam(views(60, 360.0), (36, 36))
    errors = [float((A.fbp(A(x)) - x).norm() / x.norm()) for A in (around, few, part)]
    assert errors[0] < 0.04 < 0.1 < min(errors[1:])
    assert part.fbp(part(x)).sum() < 0.7 * x.sum()  # half of the directions is missing
    with pytest.raises(UnknownName, match="hann"):
        few.fbp(few(x), "hanning")


def test_no_worse_than_filtered_back_projection_of_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform")
    n = 64
    c = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    x = ((c[:, None].square() + c.square()) < 25**2).double() + ((c[:, None] - 6).abs() + (c + 4).abs() < 8)
    A = ParallelBeam(views(60), (n, n), n)
    y = A(x[None, None])
    mine = A.fbp(y)[0, 0]
    turned = ParallelBeam(views(60), (n, n), n, offset=0.5)(x[None, None])  # theirs turns around pixel 32
    theirs = torch.as_tensor(transform.iradon(turned[0, 0].mT.numpy(), views(60).numpy(), circle=True))
    inside = (c[:, None].square() + c.square()) < 28**2
    error = [float((r - x)[inside].norm() / x.norm()) for r in (mine, theirs)]
    assert error[0] < 1.05 * error[1] < 0.2


def test_kept_and_computed_anew_are_the_same() -> None:
    for make in SMALL.values():
        kept, anew = make(9), make(9, memory=0.0)
        x = torch.rand(2, 3, *kept.size, dtype=torch.float64)
        y = torch.rand(2, 3, *kept.detector, dtype=torch.float64)
        torch.testing.assert_close(kept(x), anew(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kept.adjoint(y), anew.adjoint(y), rtol=1e-12, atol=1e-12)


def test_angles_in_radians_are_noticed() -> None:
    with pytest.warns(UserWarning, match=r"between 0 and 3.12 .* radians, pass torch.rad2deg"):
        ParallelBeam(torch.deg2rad(views(180)), (8, 8))
    for few in (torch.linspace(0, 2.7, 8), torch.linspace(0, 1.2, 60)):
        with pytest.warns(UserWarning, match="are radians"):
            FanBeam(few, (8, 8), source=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for angles in (views(180), views(5), views(20, 5.0, start=80.0), torch.zeros(1)):
            ParallelBeam(angles, (8, 8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ParallelBeam(torch.zeros(2, 3), (8, 8)), "list of degrees"),
        (lambda: ParallelBeam(torch.tensor([0.0, math.nan]), (8, 8)), "list of degrees"),
        (lambda: ParallelBeam(views(3), (8, 8), spacing=0), "spacing > 0"),
        (lambda: ParallelBeam(views(3), (8, 8), pixel=-1), "side > 0"),
        (lambda: ParallelBeam(views(3), (8,)), r"\(H, W\)"),
        (lambda: FanBeam(views(3), (8, 8), source=3.0), "corners reach 5.657"),
        (lambda: FanBeam(views(3), (8, 8), source=30.0, distance=-1), "distance"),
        (lambda: ParallelBeam(views(5), (8, 8), offset=math.nan), "offset is a finite length"),
        (lambda: FanBeam(views(3), (8, 8), source=math.inf), "finite lengths.* a ParallelBeam"),
        (lambda: FanBeam(views(3), (8, 8), 9, source=30.0, distance=math.inf), "finite lengths"),
        (lambda: ConeBeam(views(3), (3, 8, 8), (4, 4), source=30.0, distance=math.nan), "finite lengths"),
        (lambda: ParallelBeam(views(3), (8, 8)).bind(offset=torch.tensor(math.nan)), "offset holds NaN"),
        (lambda: ConeBeam(views(3), (8, 8), (4, 4), source=30.0), r"\(D, H, W\)"),
        (lambda: ParallelBeam(views(3), (8, 8))(torch.zeros(1, 1, 8, 9)), r"signals \[C, 8, 8\]"),
        (lambda: ParallelBeam(views(3), (8, 8), 9).adjoint(torch.zeros(1, 1, 9, 3)), r"measures \[C, 3, 9\]"),
        (lambda: views(0), "count >= 1"),
        (lambda: PET(ParallelBeam(views(3), (8, 8), 9), -1), "fwhm"),
        (lambda: PET(ParallelBeam(views(3), (8, 8), 9), attenuation=-torch.ones(8, 8)), "attenuation"),
        (lambda: PET(ParallelBeam(views(3), (8, 8), 9), attenuation=torch.ones(8, 9)), r"\(8, 9\), the image \(8, 8\)"),
        (lambda: PET(ParallelBeam(views(3), (8, 8), 9), efficiency=torch.ones(4)), "broadcast"),
    ],
)
def test_what_cannot_be_is_refused(make, words) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_a_parameter_with_a_graph_is_bound_without_being_looked_at() -> None:
    """A tensor of the meta device has no values: to look at them is an error, as on a GPU it is to wait."""
    rays, offset = ParallelBeam(views(3), (8, 8)), torch.zeros((), device="meta", requires_grad=True)
    assert rays.bind(offset=2 * offset).offset.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        rays.bind(offset=offset.detach())


def test_emission_is_blurred_and_attenuated() -> None:
    rays, mu = ParallelBeam(views(6), (16, 16), 23, pixel=2.0), torch.zeros(16, 16)
    mu[4:12, 4:12] = 0.05
    efficiency = torch.linspace(0.5, 1.0, 23)
    pet = PET(rays, 2.0, mu, efficiency)
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    lost = torch.exp(-rays(mu.double()[None, None]))
    kernel = gaussian_kernel(2.0 / math.sqrt(8 * math.log(2))).double()
    half = kernel.shape[-1] // 2
    blurred = torch.nn.functional.conv2d(torch.nn.functional.pad(x, [half] * 4, "reflect"), kernel[None, None])
    torch.testing.assert_close(pet(x), rays(blurred) * lost * efficiency.double())
    assert float(lost.min()) == pytest.approx(math.exp(-0.05 * 16 / math.cos(math.pi / 6)), rel=0.01)
    assert isinstance(pet, Linear)
    twice = pet.bind(factors=2 * pet.factors)
    torch.testing.assert_close(twice(x), 2 * pet(x))


def test_counts_of_emission_are_poisson() -> None:
    pet = PET(ParallelBeam(views(8), (8, 8), 11), attenuation=0.02 * torch.ones(8, 8))
    scatter = torch.full((8, 11), 3.0)
    x = torch.full((400, 1, 8, 8), 5.0)
    problem = Problem.simulate(x, pet + scatter, Poisson(1.0), seed=1, value_range=(0.0, 10.0))
    clean = (pet + scatter)(x[:1])
    torch.testing.assert_close(problem.y.mean(0), clean[0], rtol=0.05, atol=0.5)
    np.testing.assert_allclose((problem.y.var(0) / clean[0]).mean(), 1, rtol=0.03)
    assert (problem.log_likelihood(x) > problem.log_likelihood(1.3 * x)).float().mean() > 0.95
