"""Operators against independent implementations, and their errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from PIL import Image

from unveil import operators
from unveil.errors import InputError, UnknownName
from unveil.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    Inpainting,
    Linear,
    Matrix,
    Spectral,
    WalshHadamard,
    box_kernel,
    example_operator,
    gaussian_kernel,
    motion_kernel,
    stack,
)
from unveil.operators.base import reciprocal

RNG = np.random.default_rng(0)
PADS = {"circular": "wrap", "reflect": "reflect"}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array)[None, None]


# -- blur -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["circular", "reflect", "valid"])
@pytest.mark.parametrize("size", [(3, 3), (5, 3), (4, 4), (2, 5), (1, 1), (11, 12)])
def test_blur_is_a_convolution(boundary: str, size: tuple[int, int]) -> None:
    h, w = size
    x, kernel = RNG.normal(size=(13, 12)), RNG.random(size)
    kernel /= kernel.sum()
    if boundary == "valid":
        expected = scipy.signal.convolve2d(x, kernel, mode="valid")
    else:
        padded = np.pad(x, ((h - 1 - h // 2, h // 2), (w - 1 - w // 2, w // 2)), mode=PADS[boundary])
        expected = scipy.signal.convolve2d(padded, kernel, mode="valid")
    got = Blur(torch.as_tensor(kernel), boundary)(tensor(x))[0, 0].numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_circular_blur_equals_scipy_wrap() -> None:
    x, kernel = RNG.normal(size=(9, 10)), RNG.random((5, 3))
    expected = scipy.signal.convolve2d(x, kernel, mode="same", boundary="wrap")
    got = Blur(torch.as_tensor(kernel), unit_sum=False)(tensor(x))[0, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(5, 5), (4, 4), (6, 3)])
def test_an_impulse_at_the_kernels_centre_is_no_blur(size: tuple[int, int]) -> None:
    kernel = torch.zeros(size)
    kernel[size[0] // 2, size[1] // 2] = 1
    x = torch.randn(1, 1, 12, 11, dtype=torch.float64)
    for boundary in ("circular", "reflect"):
        torch.testing.assert_close(Blur(kernel, boundary)(x), x, rtol=0, atol=1e-14)


def test_which_blurs_are_spectral() -> None:
    tilted = motion_kernel(9, 30)
    for kernel in (gaussian_kernel(1.0), box_kernel(5), tilted, torch.stack([tilted, tilted])):
        assert isinstance(Blur(kernel), Spectral)
        assert isinstance(Blur(kernel=kernel, boundary="circular"), Spectral)
    for boundary in ("reflect", "valid"):
        for kernel in (gaussian_kernel(3.0, 61), box_kernel(5), motion_kernel(9), Blur.example().kernel):
            assert isinstance(Blur(kernel, boundary), Spectral), "an outer product"
            assert isinstance(Blur(kernel=kernel, boundary=boundary), Spectral)
        nearly = gaussian_kernel(1.0).double()
        nearly[0, 0] += 1e-4
        estimated = gaussian_kernel(1.0).requires_grad_(True)
        for kernel in (tilted, torch.stack([tilted, tilted]), nearly, estimated):
            operator = Blur(kernel, boundary)
            assert isinstance(operator, Blur)
            assert not isinstance(operator, Spectral)


@pytest.mark.parametrize("boundary", ["reflect", "valid"])
def test_a_separable_blur_is_its_kernels_convolution(boundary: str) -> None:
    kernel = gaussian_kernel(2.0, 8)  # float32: an outer product only to its roundings
    x = torch.randn(2, 3, 20, 17, dtype=torch.float64)
    separable, direct = Blur(kernel, boundary), Blur(torch.stack([kernel] * 3), boundary)
    assert isinstance(separable, Spectral)
    assert not isinstance(direct, Spectral)
    torch.testing.assert_close(separable(x), direct(x), rtol=0, atol=3e-7)
    y = direct(x)
    torch.testing.assert_close(separable.adjoint(y), direct.adjoint(y), rtol=0, atol=3e-7)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 9), (7, 5)])
def test_back_through_half_the_plane_is_back_through_all(size: tuple[int, int]) -> None:
    kernels = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kernel in (
        kernels[0] / kernels[0].sum(),
        kernels / kernels.sum((1, 2), keepdim=True),
        torch.full((4, 4), 1 / 16),
    ):
        A = Blur(kernel)
        y = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        v = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)

        def gain(s: torch.Tensor, v: torch.Tensor = v) -> torch.Tensor:
            v = v.reshape(-1, *[1] * (s.ndim - 1))
            return v * s / (v * s**2 + 0.01)

        for f in (gain, reciprocal):
            torch.testing.assert_close(A.back(y, f), Spectral.back(A, y, f), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(A.update(2 * y, y, f), 2 * y + A.back(y - 2 * A(y), f), rtol=1e-9, atol=1e-9)
    seen = (2 * gaussian_kernel(1.0, 3)).double().requires_grad_(True)
    found = Blur(seen, unit_sum=False).back(y, lambda s: s / (s * s + 0.1))
    (slope,) = torch.autograd.grad(found.sum(), seen)
    assert bool((slope != 0).any())


def test_blur_caches_per_size_and_precision() -> None:
    operator = Blur(gaussian_kernel(1.0))
    for shape, dtype in [((8, 8), torch.float32), ((9, 12), torch.float32), ((8, 8), torch.float64)] * 2:
        x = torch.randn(1, 1, *shape, dtype=dtype)
        assert operator(x).dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(operator(operator.pinv(operator(x))), operator(x), rtol=0, atol=tolerance)


def test_gradient_reaches_a_kernel() -> None:
    kernel = gaussian_kernel(1.0, 3).double().requires_grad_(True)
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    for boundary in ("circular", "reflect"):
        assert torch.autograd.gradcheck(lambda k, b=boundary: Blur(k, b, unit_sum=False)(x), (kernel,))


def test_unseen_frequencies_are_not_amplified() -> None:
    operator = Blur(gaussian_kernel(4.0))
    x = torch.rand(1, 1, 64, 64)
    y = operator(x)
    s = operator.s(operator.Vt(x))
    assert (s == 0).any()
    assert s[s > 0].min() > 1e-6
    assert operator.pinv(y).abs().max() < 1e3
    torch.testing.assert_close(operator(operator.pinv(y)), y, rtol=0, atol=1e-5)


def test_blur_errors() -> None:
    with pytest.raises(InputError, match=r"kernel / kernel.sum\(\)"):
        Blur(torch.ones(3, 3))
    with pytest.raises(InputError, match="3 x 9"):
        Blur(box_kernel(9)[:3] * 3)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="choose one of"):
        Blur(box_kernel(3), "zero")
    with pytest.raises(InputError, match="away from one"):
        Blur(torch.full((3, 3), math.nan))
    with pytest.raises(InputError, match="real tensor"):
        Blur(torch.ones(3))


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian_kernel(0.4),
        gaussian_kernel(3.0),
        gaussian_kernel(10.0, 61),
        gaussian_kernel(2.0, 8),
        box_kernel(9),
    ]
    + [motion_kernel(length, angle) for length in (1, 2.5, 9, 30) for angle in (0, 30, 90, -45)],
)
def test_kernels_sum_to_one(kernel: torch.Tensor) -> None:
    assert kernel.dtype == torch.float32
    assert kernel.ndim == 2
    assert (kernel >= 0).all()
    assert abs(float(kernel.double().sum()) - 1) <= 2**-25  # half a rounding of a weight below one
    assert abs(float(kernel.sum()) - 1) < 3e-7


def test_kernel_shapes() -> None:
    g = gaussian_kernel(1.5).double()
    offsets = torch.arange(g.shape[0], dtype=torch.float64) - g.shape[0] // 2
    assert g.shape == (11, 11)
    assert float((g.sum(0) * offsets**2).sum()) == pytest.approx(1.5**2, rel=0.03)  # truncated at three std
    assert torch.equal(g, g.T)
    line = motion_kernel(9)
    expected = torch.tensor([0.5, 1, 1, 1, 1, 1, 1, 1, 0.5]) / 8
    torch.testing.assert_close(line[4], expected, rtol=0, atol=1e-3)
    assert line.sum(1).count_nonzero() == 1
    assert motion_kernel(1).tolist() == [[1.0]]
    up = motion_kernel(9, 45)  # counter-clockwise, rows counted downwards: from bottom left to top right
    assert up[1, 7] > 0
    assert up[1, 1] == 0
    torch.testing.assert_close(motion_kernel(9, 90), line.T, rtol=0, atol=1e-6)
    for bad in (lambda: gaussian_kernel(0), lambda: box_kernel(0), lambda: motion_kernel(0.5)):
        with pytest.raises(InputError):
            bad()


# -- downsampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_average_is_a_pooling(factor: int) -> None:
    x = torch.randn(2, 3, 12, 24, dtype=torch.float64)
    operator = Downsample(factor)
    torch.testing.assert_close(operator(x), torch.nn.functional.avg_pool2d(x, factor))
    nearest = torch.nn.functional.interpolate(operator(x), scale_factor=factor)
    torch.testing.assert_close(operator.pinv(operator(x)), nearest)
    assert float(operator.s(operator.Vt(x)).max()) == pytest.approx(1 / factor)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bicubic_is_pillows(factor: int) -> None:
    x = RNG.random((40, 56)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((56 // factor, 40 // factor), Image.Resampling.BICUBIC))
    got = Downsample(factor, "bicubic")(tensor(x))[0, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)  # everywhere, borders included


def test_bicubic_keeps_constants() -> None:
    x = torch.full((1, 2, 16, 24), 0.3)
    torch.testing.assert_close(Downsample(4, "bicubic")(x), torch.full((1, 2, 4, 6), 0.3))


def test_downsample_errors() -> None:
    with pytest.raises(InputError, match=r"crop to \(8, 4\)"):
        Downsample(4)(torch.zeros(1, 3, 10, 7))
    with pytest.raises(InputError, match="choose one of"):
        Downsample(4, "nearest")
    with pytest.raises(InputError, match="integer"):
        Downsample(0)
    with pytest.raises(InputError, match="as many"):
        Downsample(2)(torch.zeros(1, 4))


# -- the others -------------------------------------------------------------------------------------------


def test_identity_and_inpainting() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Identity()(x), x)
    mask = (torch.rand(4, 4) > 0.5).int()
    operator = Inpainting(mask)
    y = operator(x)
    assert y.shape == x.shape
    assert torch.equal(y, x * mask)
    assert torch.equal(operator.measured, mask.float())
    with pytest.raises(InputError, match=r"mask > 0\.5"):
        Inpainting(torch.full((4, 4), 0.5))
    with pytest.raises(InputError, match=r"\(4, 4\).*\(3, 5, 4\)"):
        operator(torch.zeros(2, 3, 5, 4))


def test_grayscale_is_luma() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    expected = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(Grayscale()(x)[:, 0], expected, rtol=0, atol=1e-15)
    with pytest.raises(InputError, match="one weight per channel"):
        Grayscale()(torch.zeros(1, 4, 5, 5))
    with pytest.raises(InputError, match="not all zero"):
        Grayscale([0.0, 0.0])


def test_hadamard_is_scipys() -> None:
    operator = WalshHadamard((3, 4, 8), m=11, seed=3)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    full = x.flatten(2).numpy() @ scipy.linalg.hadamard(32) / 32**0.5
    np.testing.assert_allclose(operator(x).numpy(), full[..., operator.index.numpy()], rtol=0, atol=1e-13)
    assert len(set(operator.index.tolist())) == 11
    state = torch.get_rng_state()
    same, other = WalshHadamard((3, 4, 8), m=11, seed=3), WalshHadamard((3, 4, 8), m=11, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(same.index, operator.index)
    assert not torch.equal(other.index, operator.index)
    assert WalshHadamard((1, 16, 16), fraction=0.25).out_shape == (1, 64)
    for wrong in ({}, {"fraction": 0.5, "m": 3}, {"fraction": 1.5}, {"m": 33}):
        with pytest.raises(InputError):
            WalshHadamard((1, 4, 8), **wrong)
    with pytest.raises(InputError, match="power of two"):
        WalshHadamard((1, 12, 12), fraction=0.5)


@pytest.mark.parametrize("m", [5, 12, 30])
def test_matrix_is_a_matrix(m: int) -> None:
    matrix = torch.randn(m, 12, dtype=torch.float64)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    operator = Matrix(matrix, in_shape=(3, 2, 2))
    y = operator(x)
    torch.testing.assert_close(y, x.flatten(1) @ matrix.T)
    torch.testing.assert_close(operator.pinv(y).flatten(1), y @ torch.linalg.pinv(matrix).T)


def test_complex_matrix_is_real_linear() -> None:
    matrix = torch.randn(5, 8, dtype=torch.complex128)
    operator = Matrix(matrix)
    x, y = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.complex128)
    torch.testing.assert_close(operator(x), x.to(y.dtype) @ matrix.T)
    torch.testing.assert_close(operator.adjoint(y), (y @ matrix.conj()).real)
    # ten real measurements of eight real numbers: a complex pseudo-inverse could not see that
    torch.testing.assert_close(operator.pinv(operator(x)), x)
    assert operator(x.float()).dtype == torch.complex64


def test_a_matrix_of_few_rows_makes_no_square_matrix() -> None:
    # V as a matrix would have 320 GB
    matrix = torch.randn(2, 200_000, dtype=torch.float64)
    operator = Matrix(matrix)
    y = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(operator.pinv(y), y @ torch.linalg.pinv(matrix).T)
    # the coordinates that are seen come first, as singular values and U have them
    x = torch.randn(3, 200_000, dtype=torch.float64)
    expected = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(operator.s(x)[:2], expected.S)
    torch.testing.assert_close(operator.Vt(x)[:, :2].abs(), (x @ expected.Vh.T).abs())


def test_matrix_rank() -> None:
    u, v = torch.randn(9, 3, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    operator = Matrix(u @ v)
    assert int((operator.s(torch.zeros(1, 12)) > 0).sum()) == 3
    assert Matrix(torch.diag(torch.tensor([1.0, 1e-3])), rtol=1e-2).s(torch.zeros(1, 2)).tolist() == [
        1.0,
        0.0,
    ]
    with pytest.raises(InputError, match="matching in_shape"):
        Matrix(u, in_shape=(4,))
    with pytest.raises(InputError, match="NaN"):
        Matrix(torch.tensor([[math.nan]]))


# -- combinations -----------------------------------------------------------------------------------------


def test_compose_and_add() -> None:
    x = torch.randn(2, 3, 8, 8)
    blur, down = Blur(gaussian_kernel(1.0)), Downsample(2)
    composed = down @ blur
    assert torch.equal(composed(x), down(blur(x)))
    assert composed.shape_out((3, 8, 8)) == (3, 4, 4)
    assert composed.shape_in((3, 4, 4)) == (3, 8, 8)
    assert torch.equal((Identity() + blur)(x), x + blur(x))
    masked = Inpainting(torch.eye(8)) @ blur
    assert torch.equal(masked.measured, torch.eye(8))
    assert (blur @ Inpainting(torch.eye(8))).measured is None
    either = Inpainting(torch.eye(8)) + Inpainting(torch.eye(8).flip(0))
    assert torch.equal(either.measured, torch.eye(8) + torch.eye(8).flip(0))
    assert (Inpainting(torch.eye(8)) + Identity()).measured is None
    with pytest.raises(InputError, match="use stack"):
        Identity((3, 8, 8)) + Downsample(2)
    with pytest.raises(InputError):
        Downsample(3) @ Identity((1, 8, 8))


OF_GREY = {
    "inpainting": Inpainting(torch.eye(6)),
    "blur": Blur(motion_kernel(4, 30)),
    "average": Downsample(2),
    "bicubic": Downsample(2, "bicubic"),
    "identity": Identity(),
    "hadamard": WalshHadamard((1, 8, 4), m=7),
    "matrix": Matrix(torch.randn(5, 36, dtype=torch.float64), in_shape=(1, 6, 6)),
}


@pytest.mark.parametrize("name", OF_GREY)
def test_what_is_seen_in_grey_stays_spectral(name: str) -> None:
    """Singular values, pseudo-inverse and damped inverse of A @ Grayscale, against the dense matrix."""
    shape = (1, 8, 4) if name == "hadamard" else (1, 6, 6)
    operator = OF_GREY[name] @ Grayscale()
    assert isinstance(operator, Spectral)
    signals = (3, *shape[1:])
    n = math.prod(signals)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *signals)
    dense = operator(basis).flatten(1).mT
    torch.testing.assert_close(dense, OF_GREY[name](Grayscale()(basis)).flatten(1).mT)
    s = operator.s(operator.Vt(basis[:1])).expand(signals).flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s[: len(expected)], expected, rtol=1e-7, atol=1e-10)
    assert s[len(expected) :].count_nonzero() == 0
    y = operator(torch.randn(2, *signals, dtype=torch.float64))
    torch.testing.assert_close(operator.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(dense, rtol=1e-7).mT)
    x = torch.randn(2, *signals, dtype=torch.float64)
    damped = torch.linalg.solve(dense.mT @ dense + 0.1 * torch.eye(n), x.flatten(1).mT).mT
    torch.testing.assert_close(operator.spectral(x, lambda s: 1 / (s**2 + 0.1)).flatten(1), damped)


def test_which_compositions_are_spectral() -> None:
    mask = Inpainting(torch.eye(8))
    grey, pool = Grayscale(), Downsample(2)
    blur, bicubic = Blur(gaussian_kernel(1.0)), Downsample(2, "bicubic")
    for operator in (
        blur @ grey,
        mask @ pool,
        bicubic @ pool @ grey,
        mask @ Identity(),
        WalshHadamard((1, 8), m=3) @ grey,
    ):
        assert isinstance(operator, Spectral)
    # a mask has placeholders, a blur and a cubic weigh what they see: their singular vectors are not A's
    for operator in (blur @ mask, mask @ blur, mask @ bicubic, Blur(motion_kernel(9, 30), "reflect") @ grey):
        assert isinstance(operator, Linear)
        assert not isinstance(operator, Spectral)
    assert isinstance(pool @ grey, Spectral)
    assert (pool @ grey).selects
    assert not (blur @ grey).selects


def test_a_composition_needs_coordinates_in_the_shape_of_the_signal() -> None:
    class Flat(Inpainting):
        def Vt(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    operator = Flat(torch.eye(4)) @ Grayscale()
    assert isinstance(operator, Spectral)
    with pytest.raises(InputError, match=r"shape \(16,\) .* composed with Grayscale"):
        operator.Vt(torch.zeros(1, 3, 4, 4))


def test_stack_splits() -> None:
    parts = (Downsample(2), Inpainting(torch.eye(8)), Grayscale())
    both = stack(*parts, in_shape=(3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    y = both(x)
    assert y.shape == (2, both.out_shape[0]) == (2, 48 + 192 + 64)
    for part, piece in zip(parts, both.split(y), strict=True):
        assert torch.equal(part(x), piece)
    assert int(both.measured.sum()) == 48 + 24 + 64
    assert both.describe()["parts"][0]["name"] == "downsample"
    with pytest.raises(InputError, match="in_shape"):
        stack(Downsample(2), Blur(box_kernel(3)))
    with pytest.raises(InputError, match=r"\[N, 304\]"):
        both.split(y[:, 1:])
    mixed = stack(Identity((4,)), Matrix(torch.randn(2, 4, dtype=torch.complex64)))
    z = mixed(torch.randn(3, 4))
    assert z.is_complex()
    assert [p.is_complex() for p in mixed.split(z)] == [False, True]


def test_example_operator() -> None:
    operator = example_operator("blur")
    assert operator.out_shape == operator.in_shape == (3, 16, 15)
    with pytest.raises(UnknownName, match="did you mean blur"):
        example_operator("blurr")
    assert set(operators.__all__) <= set(dir(operators))
