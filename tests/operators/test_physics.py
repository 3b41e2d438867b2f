"""Fourier planes, coils, phases and compressed sensing: values against dense matrices, sums and other routes."""

from __future__ import annotations

import math
import sys

import pytest
import scipy.linalg
import torch

from unveil import Problem
from unveil.errors import InputError
from unveil.noise import DiagonalGaussian, FullGaussian
from unveil.operators import (
    MRI,
    CodedDiffraction,
    Fourier,
    FourierMagnitude,
    Interferometer,
    Magnitude,
    Matrix,
    MultiCoilMRI,
    NonCartesianMRI,
    RandomMagnitude,
    RandomSensing,
    SinglePixel,
    Spectral,
    birdcage_maps,
    equispaced_lines,
    gaussian_matrix,
    low_resolution_maps,
    radial_mask,
    radial_trajectory,
    random_lines,
    spiral_trajectory,
    uv_coverage,
)

G = torch.Generator().manual_seed(3)


def centred(z: torch.Tensor) -> torch.Tensor:
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(z, (-2, -1)), norm="ortho"), (-2, -1))


def dense(operator) -> torch.Tensor:
    """The real matrix of an operator; complex measurements as pairs."""
    n = math.prod(operator.in_shape)
    y = operator(torch.eye(n, dtype=torch.float64).reshape(n, *operator.in_shape))
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1).mT


# -- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [random_lines, equispaced_lines])
@pytest.mark.parametrize(("acceleration", "centre"), [(4, 0.08), (8, 0.04), (1, 0.0), (3.5, 0.1)])
def test_lines(lines, acceleration: float, centre: float) -> None:
    mask = lines((10, 200), acceleration, centre)
    assert mask.shape == (10, 200)
    assert torch.equal(mask, mask[:1].expand(10, 200))
    assert 200 / float(mask[0].sum()) == pytest.approx(acceleration, rel=0.06)
    keep = round(centre * 200)
    low = (200 - keep + 1) // 2
    assert mask[:, low : low + keep].all()
    if keep:
        assert low <= 100 < low + keep  # zero frequency
    with pytest.raises(InputError, match="smaller centre"):
        lines((10, 200), 8, 0.5)


def test_random_lines_have_a_seed() -> None:
    assert torch.equal(random_lines((4, 64), 4, seed=1), random_lines((4, 64), 4, seed=1))
    assert not torch.equal(random_lines((4, 64), 4, seed=1), random_lines((4, 64), 4, seed=2))
    with pytest.raises(InputError, match="acceleration"):
        random_lines((4, 64), 0.5)


def test_radial_masks_and_paths() -> None:
    mask = radial_mask((65, 65), 2)
    assert float(mask[32].min()) == float(mask[:, 32].min()) == 1
    assert int(mask.sum()) == 2 * 65 - 1
    assert radial_mask((64, 48), 30, golden=True)[32, 24] == 1
    path = radial_trajectory(3, 8, golden=False).reshape(3, 8, 2)
    assert torch.equal(path[:, 4], torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(path[:, 0].norm(dim=-1), torch.full((3,), math.pi, dtype=torch.float64))
    spiral = spiral_trajectory(2, 50)
    assert spiral.shape == (100, 2)
    assert float(spiral.norm(dim=-1).max()) < math.pi
    for bad in (lambda: radial_mask((4, 4), 0), lambda: radial_trajectory(0, 4), lambda: spiral_trajectory(1, 1, 0)):
        with pytest.raises(InputError):
            bad()


def test_antennas_see_ellipses() -> None:
    east = torch.tensor([[0.0, 0.0], [3000.0, 0.0]])
    hours = torch.linspace(-6, 6, 25)
    uv = uv_coverage(east, hours, declination=40.0, latitude=30.0, wavelength=0.21)
    u, v = uv.unbind(1)
    a = 3000 / 0.21  # a line from west to east: u = a cos h, v = a sin(declination) sin h
    torch.testing.assert_close((u / a) ** 2 + (v / (a * math.sin(math.radians(40)))) ** 2, torch.ones(25).double())
    torch.testing.assert_close(uv[12], torch.tensor([a, 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-6)
    north = uv_coverage(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.zeros(1), 30.0, 30.0, 1.0)
    torch.testing.assert_close(north, torch.tensor([[0.0, 1.0]]).double())  # overhead: no shortening
    assert uv_coverage(torch.rand(5, 3), hours, 0, 0, 1).shape == (10 * 25, 2)


# -- Fourier planes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (6, 7)])
def test_part_of_the_fourier_plane(size) -> None:
    mask = (torch.rand(size, generator=G) > 0.5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=G)
    torch.testing.assert_close(Fourier(mask)(x), mask * torch.fft.fft2(x, norm="ortho"))
    torch.testing.assert_close(Fourier(mask, centred=True)(x), mask * centred(x))
    z = torch.complex(x[:, 0], x[:, 1])[:, None]
    torch.testing.assert_close(MRI(mask)(x[:, :2]), mask * centred(z))
    for operator in (
        Fourier(mask, in_shape=(1, *size)),
        Fourier(mask * torch.rand(size, generator=G), centred=True, in_shape=(1, *size)),
        MRI(mask, in_shape=(2, *size)),
    ):
        s = operator.s(torch.zeros(1, *operator.in_shape).double()).expand(operator.in_shape).flatten()
        expected = torch.linalg.svdvals(dense(operator))
        torch.testing.assert_close(s.sort(descending=True).values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(10, 12), (6, 8), (4, 4, 6), (6, 7)])
@pytest.mark.parametrize("complex_signal", [False, True])
def test_the_middle_is_where_shifts_put_it(size, complex_signal: bool) -> None:
    w = torch.rand(size, dtype=torch.float64, generator=G)
    A = Fourier(w, dims=len(size), complex_signal=complex_signal, centred=True)
    x = torch.rand(2, 2, *size, dtype=torch.float64, generator=G)
    axes = tuple(range(-len(size), 0))
    z = torch.complex(x[:, :1], x[:, 1:]) if complex_signal else x
    f = torch.fft.fftn(torch.fft.ifftshift(z, axes), dim=axes, norm="ortho")
    y = torch.fft.fftshift(f, axes) * w
    torch.testing.assert_close(A(x), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.adjoint(y), A.V(A.s(x) * A.Ut(y)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 7), (9, 8)])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("complex_signal", [False, True])
def test_back_from_the_fourier_plane(size, centred: bool, complex_signal: bool) -> None:
    weights = torch.rand(size, dtype=torch.float64, generator=G) * (torch.rand(size, generator=G) < 0.6)
    A = Fourier(weights, complex_signal=complex_signal, centred=centred)
    x = torch.rand(3, 2, *size, dtype=torch.float64, generator=G)
    y = A(x) + A(torch.rand(3, 2, *size, dtype=torch.float64, generator=G)) * 1j

    def gain(s: torch.Tensor) -> torch.Tensor:
        v = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).reshape(-1, *[1] * (s.ndim - 1))
        return v * s / (v * s**2 + 0.01)

    torch.testing.assert_close(A.back(y, gain), Spectral.back(A, y, gain), rtol=1e-9, atol=1e-9)


def test_fourier_in_other_dimensions() -> None:
    x = torch.randn(1, 2, 4, 5, 6, dtype=torch.float64)
    volume = MRI(torch.ones(5, 6), dims=3)
    y = volume(x)
    assert y.shape == (1, 1, 4, 5, 6)
    torch.testing.assert_close(volume.adjoint(y), x)
    line = Fourier(torch.ones(5), dims=1)
    torch.testing.assert_close(line.pinv(line(x[0, :, 0, :, :1].mT)), x[0, :, 0, :, :1].mT)


def test_fourier_errors() -> None:
    mask = torch.ones(6, 8)
    with pytest.raises(InputError, match="one size"):
        Fourier(mask)(torch.zeros(1, 1, 8, 6))
    with pytest.raises(InputError, match="real and imaginary"):
        MRI(mask)(torch.zeros(1, 1, 6, 8))
    with pytest.raises(InputError, match="weights >= 0"):
        Fourier(-mask)
    with pytest.raises(InputError, match=r"measures \[1"):
        Problem(torch.zeros(1, 3, 6, 8, dtype=torch.complex64), MRI(mask), 0.1)
    with pytest.raises(InputError, match="axes"):
        Problem(torch.zeros(1, 6, 8, dtype=torch.complex64), MRI(mask), 0.1)


def test_uneven_noise_on_a_fourier_plane_stays_spectral() -> None:
    operator = Fourier(radial_mask((9, 8), 4), in_shape=(1, 9, 8))
    std = 0.1 + torch.rand(9, 8, generator=G, dtype=torch.float64)
    problem = Problem.simulate(torch.rand(2, 1, 9, 8, dtype=torch.float64), operator, DiagonalGaussian(std))
    white = problem.white
    assert isinstance(white.operator, Spectral)
    assert white.m == problem.m
    x = torch.rand(2, 1, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(white.score(x), problem.score(x))
    mri = Problem.simulate(torch.rand(1, 2, 9, 8), MRI(radial_mask((9, 8), 4)), DiagonalGaussian(std.float()))
    assert isinstance(mri.white.operator, MRI)


# -- coils -----------------------------------------------------------------------------------------------------------


def test_coils() -> None:
    maps = birdcage_maps(4, (12, 10)).to(torch.complex128)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(12, 10).double())
    mask = random_lines((12, 10), 2, 0.2)
    x = torch.randn(3, 2, 12, 10, dtype=torch.float64, generator=G)
    z = torch.complex(x[:, 0], x[:, 1])
    operator = MultiCoilMRI(mask, maps)
    torch.testing.assert_close(operator(x), mask * centred(maps * z[:, None]))
    torch.testing.assert_close(MultiCoilMRI(torch.ones(1), maps).normal(x), x)
    assert operator.shape_out((2, 12, 10)) == (4, 12, 10)
    with pytest.raises(InputError, match="espirit_maps"):
        MultiCoilMRI(mask, None)
    with pytest.raises(InputError, match="of one size"):
        MultiCoilMRI(mask[:, :9], maps)
    with pytest.raises(InputError, match=r"480 NaN .* outside the object"):
        MultiCoilMRI(mask, maps / 0)
    with pytest.raises(InputError, match=r"480 NaN .* outside the object"):
        NonCartesianMRI(radial_trajectory(4, 8), (12, 10), maps / 0)
    with pytest.raises(InputError, match="only 0"):
        MultiCoilMRI(2 * mask, maps)
    coupled = Problem.simulate(x, operator, FullGaussian(0.01 * (torch.eye(4).double() + 0.5)))
    torch.testing.assert_close(coupled.white.score(x), coupled.score(x))


def test_maps_of_several_samples() -> None:
    maps = torch.stack([birdcage_maps(3, (6, 5)), birdcage_maps(3, (6, 5), 2.0)])
    x = torch.randn(2, 2, 6, 5)
    operator = MultiCoilMRI(torch.ones(6, 5), maps[0])
    y = operator.bind(maps=maps)(x)
    torch.testing.assert_close(y[1], MultiCoilMRI(torch.ones(6, 5), maps[1])(x[1:])[0])
    torch.testing.assert_close(operator.bind(maps=maps).adjoint(y), x, rtol=1e-5, atol=1e-5)


def test_maps_from_the_middle_of_k_space() -> None:
    maps = birdcage_maps(4, (64, 64))
    r = torch.linspace(-1, 1, 64)
    image = ((r[:, None] ** 2 + r**2) < 0.6).to(torch.complex64) * (1 + 0.3 * torch.cos(5 * r))
    kspace = centred(maps * image) * random_lines((64, 64), 2, 0.4)
    found = low_resolution_maps(kspace, 24)
    inside = (r[:, None] ** 2 + r**2) < 0.4
    assert float((found - maps)[:, inside].abs().max()) < 0.15
    with pytest.raises(InputError, match="fftshift"):
        low_resolution_maps(torch.fft.fftshift(kspace, (-2, -1)), 24)
    with pytest.raises(InputError, match="complex"):
        low_resolution_maps(kspace.abs())


# -- any points ------------------------------------------------------------------------------------------------------


def test_points_on_the_grid_are_the_fast_transform() -> None:
    h, w = 6, 9
    k = torch.meshgrid(torch.arange(h) - h // 2, torch.arange(w) - w // 2, indexing="ij")
    points = 2 * math.pi * torch.stack([k[0].double() / h, k[1].double() / w], -1).reshape(-1, 2)
    x = torch.randn(2, 2, h, w, dtype=torch.float64)
    z = torch.complex(x[:, 0], x[:, 1])[:, None]
    operator = NonCartesianMRI(points, (h, w), backend="direct")
    torch.testing.assert_close(operator(x).reshape(2, 1, h, w), centred(z))
    torch.testing.assert_close(operator.adjoint(operator(x)), x)
    maps = birdcage_maps(3, (h, w)).to(torch.complex128)
    both = NonCartesianMRI(points, (h, w), maps, backend="direct")(x).reshape(2, 3, h, w)
    torch.testing.assert_close(both, MultiCoilMRI(torch.ones(h, w), maps)(x))


def test_visibilities_of_a_point_source() -> None:
    uv = torch.tensor([[0.0, 0.0], [1e3, 0.0], [0.0, 2e3], [5e3, -4e3]]).double()
    sky = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    sky[..., 4 + 1, 4 - 2] = 3.0
    y = Interferometer(uv, (8, 8), pixel=2.0, backend="direct")(sky)
    cell = 2 * math.pi / 180 / 3600
    phase = -2 * math.pi * (uv[:, 0] * -2 * cell + uv[:, 1] * cell)
    torch.testing.assert_close(y[0, 0], torch.polar(torch.full((4,), 3 / 8).double(), phase))
    with pytest.raises(InputError, match="too coarse"):
        Interferometer(1e5 * uv, (8, 8), 2.0)


def test_points_in_other_units() -> None:
    points = radial_trajectory(4, 8)
    with pytest.raises(InputError, match="cycles per field of view"):
        NonCartesianMRI(points * 8, (8, 8))
    with pytest.warns(UserWarning, match="cycles per pixel"):
        NonCartesianMRI(points / (2 * math.pi), (8, 8), backend="direct")
    with pytest.raises(InputError, match="choose one of"):
        NonCartesianMRI(points, (8, 8), backend="fast")
    with pytest.raises(InputError, match=r"\[m, 2\]"):
        NonCartesianMRI(points.T, (8, 8))
    with pytest.raises(InputError, match=r"32 points .* are NaN"):
        NonCartesianMRI(points / 0 * 0, (8, 8))


def test_the_package_of_a_backend_is_named(monkeypatch) -> None:
    for name, mend in (("finufft", "'unveil\\[mri\\]'"), ("torchkbnufft", "torchkbnufft")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=rf"pip install {mend}\)"):
            NonCartesianMRI(radial_trajectory(4, 8), (8, 8), backend=name)(torch.zeros(1, 2, 8, 8))


# -- phase retrieval -------------------------------------------------------------------------------------------------


def test_magnitudes() -> None:
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64)
    field = torch.nn.functional.pad(x, (0, 5, 0, 6))
    y = FourierMagnitude((1, 6, 5))(x)
    torch.testing.assert_close(y, torch.fft.fft2(field, norm="ortho").abs())
    torch.testing.assert_close(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    torch.testing.assert_close(FourierMagnitude((1, 6, 5))(-x.flip(-1, -2)), y)  # what no method can tell apart
    torch.testing.assert_close(FourierMagnitude((1, 6, 5), power=2)(x), y**2)
    assert FourierMagnitude((1, 6, 5), 1.5).out_shape == (1, 9, 8)
    stop = torch.ones(12, 10)
    stop[0, 0] = 0
    hidden = FourierMagnitude((1, 6, 5), mask=stop)
    torch.testing.assert_close(hidden(x), y * stop)
    assert Problem.simulate(x, hidden, 0.1).m == 119
    matrix = torch.randn(7, 30, dtype=torch.complex128)
    torch.testing.assert_close(Magnitude(Matrix(matrix, (1, 6, 5)))(x), (x.flatten(1).to(matrix) @ matrix.mT).abs())
    with pytest.raises(InputError, match="power"):
        FourierMagnitude((1, 6, 5), power=3)
    with pytest.raises(InputError, match=r"the mask has shape .* one size"):
        FourierMagnitude((1, 6, 5), mask=stop[:, :9])


@pytest.mark.parametrize("kind", ["phase", "octanary", "binary"])
def test_coded_diffraction(kind: str) -> None:
    operator = CodedDiffraction((1, 64, 64), patterns=5, kind=kind)
    assert operator.out_shape == (5, 1, 64, 64)
    masks = operator.linear.masks * 5**0.5
    assert float(masks.abs().square().mean()) == pytest.approx(1, abs=0.03)
    assert abs(complex(masks.mean())) < 0.03 or kind == "binary"
    x = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    expected = torch.fft.fft2(masks[2] * x, norm="ortho").abs() / 5**0.5
    torch.testing.assert_close(operator(x)[:, 2], expected)
    again = CodedDiffraction((1, 64, 64), patterns=5, kind=kind)
    assert torch.equal(again.linear.masks, operator.linear.masks)
    with pytest.raises(InputError, match="choose one of"):
        CodedDiffraction((1, 8, 8), kind="random")


def test_random_magnitudes_keep_length_on_average() -> None:
    operator = RandomMagnitude((1, 8, 8), 4000, seed=1)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    ratio = operator(x).square().sum(1) / x.square().sum((1, 2, 3))
    assert float((ratio - 1).abs().max()) < 0.1


# -- compressed sensing ----------------------------------------------------------------------------------------------


def test_random_sensing_is_incoherent() -> None:
    operator = RandomSensing((1, 16, 12), fraction=0.5)
    a = dense(operator)
    torch.testing.assert_close(a @ a.mT, torch.eye(96, dtype=torch.float64))
    assert float(a.abs().max()) < 1.5 / 192**0.5  # every entry of the signal is in every measurement
    assert torch.equal(RandomSensing((4, 5), m=3, seed=2).index, RandomSensing((4, 5), m=3, seed=2).index)
    for wrong in ({}, {"m": 0}, {"fraction": 2.0}, {"m": 3, "fraction": 0.1}):
        with pytest.raises(InputError):
            RandomSensing((4, 5), **wrong)
    matrix = gaussian_matrix((2, 10, 10), 2000)
    torch.testing.assert_close(dense(matrix).square().sum(0), torch.ones(200).double(), rtol=0, atol=0.2)


def test_single_pixel_patterns_are_ordered_by_sign_changes() -> None:
    h, w = 8, 16
    rows = torch.as_tensor(scipy.linalg.hadamard(h)).double()
    columns = torch.as_tensor(scipy.linalg.hadamard(w)).double()

    def changes(patterns):
        return (patterns.diff(dim=1) != 0).sum(1)

    total = (changes(rows)[:, None] + changes(columns)).flatten()
    operator = SinglePixel((2, h, w), m=40)
    kept = total[operator.index]
    assert torch.equal(kept, kept.sort().values)
    assert int(kept[-1]) <= int(total.sort().values[40])
    x = torch.randn(2, 2, h, w, dtype=torch.float64)
    full = (rows @ x @ columns).flatten(2) / (h * w) ** 0.5
    torch.testing.assert_close(operator(x), full[..., operator.index])
    torch.testing.assert_close(operator(x)[..., 0], x.mean((-2, -1)) * (h * w) ** 0.5)
    with pytest.raises(InputError, match="powers of two"):
        SinglePixel((1, 12, 8), fraction=0.5)


@pytest.mark.parametrize("kind", ["interferometer", "one coil", "coils"])
def test_what_a_path_sees_twice_is_a_convolution(kind: str) -> None:
    """A^T A as two fast transforms, against A and its adjoint one after the other."""
    h, w = 9, 12
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 * math.pi - math.pi
    maps = birdcage_maps(3, (h, w)) if kind == "coils" else None
    A = (
        Interferometer(points / (2 * math.pi * math.pi / 180 / 3600), (h, w), 1.0, backend="direct")
        if kind == "interferometer"
        else NonCartesianMRI(points, (h, w), maps, backend="direct")
    )
    shape = (2, 2, h, w)  # two rows of two channels, or of complex images
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(A.normal(x), A.adjoint(A(x)), rtol=0, atol=1e-12)
    torch.testing.assert_close(A.normal(x.float()), A.adjoint(A(x)).float(), rtol=0, atol=1e-5)
    moved = A.bind(points=(A.points * 0.9).requires_grad_(True))  # while a path is sought, through its sums
    torch.testing.assert_close(moved.normal(x).detach(), moved.adjoint(moved(x)).detach(), rtol=0, atol=1e-12)
    assert moved.normal(x).requires_grad
