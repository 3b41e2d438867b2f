"""Operators of photography: values against other programs, dense matrices and plain loops."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from unveil import Problem
from unveil.errors import InputError
from unveil.operators import (
    JPEG,
    Blur,
    Clip,
    HighDynamicRange,
    Mosaic,
    NonlinearBlur,
    Quantize,
    Spectral,
    SuperResolution,
    VaryingBlur,
    disk_kernel,
    gaussian_kernel,
    path_kernel,
    random_motion_kernel,
    read_kernel,
)
from unveil.operators.jpeg import CHROMINANCE, LUMINANCE
from unveil.operators.response import decoded, encoded


def picture(h: int = 64, w: int = 48) -> torch.Tensor:
    """Smooth colours with edges, [1, 3, h, w] in [0, 1], float64."""
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    red, green = 0.2 + 0.6 * x, 0.5 + 0.3 * torch.sin(9 * y)
    blue = 0.1 + 0.7 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1)
    return torch.stack([red, green, blue])[None].double()


# -- kernels --------------------------------------------------------------------------------------------------


def test_motion_kernels_are_traces_of_their_length() -> None:
    for length, intensity, seed in ((1, 0.5, 0), (12, 0.0, 3), (25, 0.5, 1), (25, 1.0, 2)):
        kernel = random_motion_kernel(length, intensity, seed)
        assert torch.equal(kernel, random_motion_kernel(length, intensity, seed))
        assert abs(float(kernel.double().sum()) - 1) < 1e-6
        assert (kernel >= 0).all()
        assert kernel.shape[0] == kernel.shape[1] <= length + 3
        assert kernel.shape[0] % 2 == 1
        at = torch.arange(kernel.shape[0]).double() - kernel.shape[0] // 2
        centre = (kernel.double().sum(1) @ at, kernel.double().sum(0) @ at)
        assert max(map(abs, centre)) < 1e-3
    assert random_motion_kernel(1).tolist() == [[1.0]]
    straight = random_motion_kernel(30, 0.0, 5).double()
    at = torch.arange(straight.shape[0]).double()
    grid = torch.stack(torch.meshgrid(at, at, indexing="ij")).flatten(1)
    spread = torch.cov(grid, aweights=straight.flatten())
    variances = torch.linalg.eigvalsh(spread)
    assert float(variances[1]) == pytest.approx(29**2 / 12, rel=0.05)  # a segment of length 29
    assert float(variances[0]) < 0.3
    assert not torch.equal(random_motion_kernel(20, 0.5, 1), random_motion_kernel(20, 0.5, 2))
    assert random_motion_kernel(20, 0.5, 1, size=41).shape == (41, 41)
    with pytest.raises(InputError, match="less length"):
        random_motion_kernel(20, 0.0, size=9)
    with pytest.raises(InputError, match="intensity"):
        random_motion_kernel(20, 1.5)


def test_disk_kernel() -> None:
    kernel = disk_kernel(4.0)
    assert kernel.shape == (9, 9)
    torch.testing.assert_close(kernel, kernel.T)
    assert float(kernel.max()) == pytest.approx(1 / (math.pi * 16), rel=0.02)
    assert float(disk_kernel(0).sum()) == 1


def test_kernels_from_files(tmp_path) -> None:
    kernel = gaussian_kernel(1.0, 5)
    np.save(tmp_path / "k.npy", kernel.numpy())
    assert torch.equal(read_kernel(tmp_path / "k.npy"), kernel)
    np.savetxt(tmp_path / "k.csv", kernel.numpy(), delimiter=",")
    torch.testing.assert_close(read_kernel(tmp_path / "k.csv"), kernel)
    Image.fromarray((kernel / kernel.max() * 255).round().byte().numpy()).save(tmp_path / "k.png")
    torch.testing.assert_close(read_kernel(tmp_path / "k.png"), kernel, rtol=0, atol=2e-3)
    with pytest.raises(InputError, match="no kernel file"):
        read_kernel(tmp_path / "nowhere.png")


# -- super-resolution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "factor"), [(gaussian_kernel(1.2, 5), 2), (random_motion_kernel(4, seed=1), 3)])
def test_superresolution_is_blur_and_decimation(kernel, factor) -> None:
    shape = (2, 12, 18)
    operator = SuperResolution(kernel, factor, in_shape=shape)
    n = math.prod(shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    dense = operator(eye).flatten(1).mT
    expected = Blur(kernel)(eye)[..., ::factor, ::factor].flatten(1).mT
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-14)
    s = operator.s(operator.Vt(eye[:1])).expand(shape).flatten().sort(descending=True).values
    singular = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s[: len(singular)], singular, rtol=0, atol=1e-12)
    assert s[len(singular) :].count_nonzero() == 0
    x = torch.randn(2, *shape, dtype=torch.float64)
    problem = Problem.simulate(x, operator, 0.1)
    v = torch.zeros_like(x)
    k = torch.linalg.solve(dense.mT @ dense + 0.01 / 0.3 * torch.eye(n), dense.mT)
    torch.testing.assert_close(problem.prox(v, 0.3).flatten(1), problem.y.flatten(1) @ k.mT)


def test_superresolution_in_single_precision_and_with_a_kernel_to_be_found() -> None:
    operator = SuperResolution(disk_kernel(2.5), 4)
    x = torch.rand(1, 3, 64, 64)
    y = operator(x)
    assert operator.pinv(y).abs().max() < 10
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=0, atol=2e-5)
    kernel = gaussian_kernel(1.0, 3).double().requires_grad_(True)
    z = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda k: operator.bind(kernel=k)(z[..., :4, :4]), (kernel,))
    one_each = torch.stack([gaussian_kernel(1.0, 3), gaussian_kernel(0.5, 3)])[:, None]
    both = operator.bind(kernel=one_each)(torch.cat([x, x]))
    for k in (0, 1):
        torch.testing.assert_close(both[k], SuperResolution(one_each[k, 0], 4)(x)[0])
    with pytest.raises(InputError, match=r"crop to \(8, 4\)"):
        operator(torch.zeros(1, 3, 10, 7))
    with pytest.raises(InputError, match="whole number"):
        SuperResolution(disk_kernel(1), 0)


# -- blur that varies -------------------------------------------------------------------------------------------


def test_varying_blur_of_points() -> None:
    """At a node of the grid a point of light becomes that node's kernel, half way between them a mixture."""
    kernels = torch.stack([random_motion_kernel(4, seed=s, size=5) for s in range(4)]).double().reshape(2, 2, 5, 5)
    operator = VaryingBlur(kernels)
    size = 17
    for row in (0, 1):
        for column in (0, 1):
            x = torch.zeros(1, 1, size, size, dtype=torch.float64)
            x[..., row * (size - 1), column * (size - 1)] = 1
            y = operator(x).roll((2 - row * (size - 1), 2 - column * (size - 1)), (-2, -1))
            torch.testing.assert_close(y[0, 0, :5, :5], kernels[row, column], rtol=0, atol=1e-14)
    middle = torch.zeros(1, 1, size, size, dtype=torch.float64)
    middle[..., 8, 8] = 1
    torch.testing.assert_close(operator(middle)[0, 0, 6:11, 6:11], kernels.mean((0, 1)), rtol=0, atol=1e-14)
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(operator(x).sum(), x.sum())  # no light is lost
    same = VaryingBlur(kernels[:1, :1].expand(2, 3, 5, 5), boundary="reflect")
    torch.testing.assert_close(same(x), Blur(kernels[0, 0], "reflect")(x))
    with pytest.raises(InputError, match="one for each node"):
        VaryingBlur(kernels[0])
    with pytest.raises(InputError, match="weights"):
        VaryingBlur(kernels, torch.ones(3, 9, 9))


# -- mosaic ------------------------------------------------------------------------------------------------------


def test_mosaic() -> None:
    x = torch.rand(2, 3, 4, 6)
    y = Mosaic("rggb")(x)
    assert y.shape == (2, 1, 4, 6)
    red, green, blue = x.unbind(1)
    assert torch.equal(y[:, 0, ::2, ::2], red[:, ::2, ::2])
    assert torch.equal(y[:, 0, ::2, 1::2], green[:, ::2, 1::2])
    assert torch.equal(y[:, 0, 1::2, ::2], green[:, 1::2, ::2])
    assert torch.equal(y[:, 0, 1::2, 1::2], blue[:, 1::2, 1::2])
    assert torch.equal(Mosaic("bggr")(x), Mosaic("rggb")(x.flip(1)))
    trans = Mosaic("xtrans").s(torch.zeros(1, 3, 6, 6)).sum((-2, -1))
    assert trans.tolist() == [8, 20, 8]
    assert isinstance(Blur(disk_kernel(1)) @ Mosaic(), Spectral)
    for bad in ("rgb", ("rg", "g"), ("rx",), ()):
        with pytest.raises(InputError, match="pattern"):
            Mosaic(bad)
    with pytest.raises(InputError, match="channel axis"):
        Problem(torch.zeros(2, 4, 6), Mosaic(), 0.1)


# -- JPEG --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 100])
def test_jpeg_has_the_tables_and_the_picture_of_an_encoder(quality: int) -> None:
    x = picture()
    image = Image.fromarray((255 * x[0]).round().byte().permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    opened = Image.open(file)
    operator = JPEG(quality, subsample=False)
    tables = opened.quantization
    zigzag = sorted(((i, j) for i in range(8) for j in range(8)), key=lambda p: (sum(p), p[sum(p) % 2]))
    for table, base in zip(tables.values(), (LUMINANCE, CHROMINANCE), strict=True):
        mine = operator.table(base)
        natural = [int(mine[i, j]) for i in range(8) for j in range(8)]
        zigzagged = [int(mine[i, j]) for i, j in zigzag]
        assert list(table) in (natural, zigzagged)
    expected = torch.from_numpy(np.asarray(opened).copy()).permute(2, 0, 1)[None] / 255
    seen = (255 * x).round() / 255
    error = (operator(seen).clamp(0, 1) - expected).std()
    assert error < 0.012  # the encoder rounds luminance and colour to 8 bits first
    assert quality > 50 or error < 0.4 * (expected - seen).std()


def test_jpeg_twice_is_jpeg_once() -> None:
    x = picture()
    for operator in (JPEG(10), JPEG(90, subsample=False)):
        y = operator(x)
        torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=0, atol=1e-13)
        assert not torch.equal(y, x)
    torch.testing.assert_close(JPEG(10, subsample=False).smooth(x), x)
    assert (JPEG(5)(x) - x).std() > 2 * (JPEG(80)(x) - x).std()
    with pytest.raises(InputError, match=r"crop to \(64, 32\)"):
        JPEG()(x[..., :40])
    with pytest.raises(InputError, match="quality"):
        JPEG(0)


# -- responses ---------------------------------------------------------------------------------------------------


def test_responses() -> None:
    x = torch.tensor([[-0.2, 0.1, 0.4, 0.6, 0.9, 1.3]])
    torch.testing.assert_close(Clip()(x), x.clamp(0, 1))
    torch.testing.assert_close(Quantize(1)(x), (x > 0.5).float())
    torch.testing.assert_close(Quantize(2)(x), torch.tensor([[0, 0, 1, 2, 3, 3]]) / 3)
    doubled = (2 * (2 * x - 1)).clamp(-1, 1)
    torch.testing.assert_close(HighDynamicRange(2.0)(x), (doubled + 1) / 2)
    torch.testing.assert_close(HighDynamicRange(2.0, -1, 1)(2 * x - 1), doubled)
    torch.testing.assert_close(HighDynamicRange(4.0, pivot=0.0)(x), (4 * x).clamp(0, 1))
    each = HighDynamicRange().bind(exposure=torch.tensor([[1.0], [2.0]]))(torch.cat([x, x]))
    torch.testing.assert_close(each[1], HighDynamicRange(2.0)(x)[0])
    for bad in (lambda: Clip(1, 0), lambda: Quantize(0), lambda: HighDynamicRange(0.0), lambda: NonlinearBlur(x, 0)):
        with pytest.raises(InputError):
            bad()


def test_nonlinear_blur_blurs_light() -> None:
    x = torch.linspace(-0.2, 1.2, 50, dtype=torch.float64)
    torch.testing.assert_close(encoded(decoded(x)), x, rtol=0, atol=1e-7)
    assert float(decoded(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)  # of mid grey, a fifth of the light
    image = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    image[..., 8] = 1
    y = NonlinearBlur(torch.full((1, 3), 1 / 3), exposure=1.0)(image)
    assert float(y[0, 0, 4, 8]) == pytest.approx(float(encoded(torch.tensor(1 / 3, dtype=torch.float64))), rel=1e-6)
    assert torch.equal(NonlinearBlur.random(12, seed=4).kernel, random_motion_kernel(12, seed=4))
    assert float(NonlinearBlur(torch.ones(1, 1), exposure=3.0)(0.7 + 0 * image).max()) == pytest.approx(1)


def test_an_unknown_motion_has_a_gradient() -> None:
    path = 5 * torch.rand(9, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 2.5
    kernel = path_kernel(path, 9)
    assert float(kernel.sum()) == pytest.approx(1)
    pixels = torch.arange(9, dtype=torch.float64) - 4
    torch.testing.assert_close(torch.stack([kernel.sum(1) @ pixels, kernel.sum(0) @ pixels]), path.mean(0))
    blur, x = Blur(kernel), torch.rand(1, 1, 9, 10, dtype=torch.float64)
    leaf = path.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: blur.bind(kernel=path_kernel(p, 9))(x), (leaf,))
    with pytest.raises(InputError, match="larger size"):
        path_kernel(2 * path, 5)
    with pytest.raises(InputError, match="rows and columns"):
        path_kernel(path.T, 9)
