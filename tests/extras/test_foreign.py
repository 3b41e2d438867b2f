"""Forward models of the real packages keep the promises of operators, and do what the packages do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unveil import Problem, as_operator
from unveil.operators import Blur, Linear, birdcage_maps, checks, gaussian_kernel

G = torch.Generator().manual_seed(0)


def promises(operator, linear: bool = True, skip: tuple[str, ...] = ()) -> None:
    assert isinstance(operator, Linear) == linear
    for check in [checks.check_shapes, checks.check_batch, checks.check_vjp, checks.check_jvp] + (
        [checks.check_linearity, checks.check_adjoint] if linear else []
    ):
        if check.__name__ not in skip:
            check(operator)


def test_deepinv_blur() -> None:
    deepinv = pytest.importorskip("deepinv")
    kernel = gaussian_kernel(1.5)
    physics = deepinv.physics.Blur(filter=kernel[None, None], padding="circular")
    operator = as_operator(physics, (3, 16, 16))
    x = torch.rand(2, 3, 16, 16, generator=G)
    assert torch.equal(operator(x), physics.A(x))
    torch.testing.assert_close(operator(x), Blur(kernel)(x), atol=1e-6, rtol=1e-5)
    y, v = operator(x), torch.rand(2, 3, 16, 16, generator=G)
    torch.testing.assert_close((y * v).sum(), (x * operator.adjoint(v)).sum(), rtol=1e-5, atol=0)
    own = Problem(y, Blur(kernel, in_shape=(3, 16, 16)), 0.1).prox(torch.zeros_like(x), 1.0)
    torch.testing.assert_close(Problem(y, operator, 0.1).prox(torch.zeros_like(x), 1.0), own, atol=1e-4, rtol=0)


def test_deepinv_mri_and_what_is_not_linear() -> None:
    deepinv = pytest.importorskip("deepinv")
    mask = (torch.rand(1, 1, 12, 10, generator=G) > 0.5).float()
    operator = as_operator(deepinv.physics.MRI(mask=mask, img_size=(2, 12, 10)), (2, 12, 10))
    x, v = torch.rand(2, 2, 12, 10, generator=G), torch.rand(2, 2, 12, 10, generator=G)
    torch.testing.assert_close((operator(x) * v).sum(), (x * operator.adjoint(v)).sum(), rtol=1e-5, atol=0)
    haze = as_operator(deepinv.physics.Haze(), (3, 8, 8)) if hasattr(deepinv.physics, "Haze") else None
    assert haze is None or not isinstance(haze, Linear)


def test_pylops() -> None:
    pylops = pytest.importorskip("pylops")
    first = pylops.FirstDerivative((6, 8), axis=0, dtype="float64")
    operator = as_operator(first)
    assert operator.in_shape == (6, 8)
    promises(operator)
    x = torch.rand(2, 6, 8, dtype=torch.float64, generator=G)
    np.testing.assert_allclose(operator(x)[1].numpy(), first @ x[1].numpy())
    fourier = as_operator(pylops.signalprocessing.FFT2D((6, 8), real=False), (2, 6, 8))
    promises(fourier)
    assert fourier(x[:1].expand(2, -1, -1)[None]).is_complex()
    promises(as_operator(pylops.signalprocessing.Convolve1D(9, np.hanning(5), offset=2)))


def test_sigpy() -> None:
    sigpy = pytest.importorskip("sigpy")
    maps = birdcage_maps(3, (8, 10)).numpy()
    linop = sigpy.linop.FFT((3, 8, 10), axes=(-2, -1)) * sigpy.linop.Multiply((8, 10), maps)
    operator = as_operator(linop)
    assert operator.in_shape == (2, 8, 10)
    assert operator.out_shape == (3, 8, 10)
    promises(operator)
    from unveil.operators import MultiCoilMRI

    x = torch.rand(2, 2, 8, 10, dtype=torch.float64, generator=G)
    own = MultiCoilMRI(torch.ones(8, 10), torch.as_tensor(maps))
    torch.testing.assert_close(operator(x), own(x), atol=1e-5, rtol=1e-5)
    promises(as_operator(sigpy.linop.FiniteDifference((5, 6)), (5, 6)))


def test_cuqi() -> None:
    pytest.importorskip("cuqi")
    from cuqi.model import LinearModel, Model
    from cuqi.testproblem import Deconvolution1D

    model = Deconvolution1D(dim=16).model
    operator = as_operator(model)
    assert operator.in_shape == (16,)
    promises(operator)
    x = torch.rand(2, 16, dtype=torch.float64, generator=G)
    np.testing.assert_allclose(operator(x)[0].numpy(), np.asarray(model.forward(x[0].numpy())))
    matrix = np.random.default_rng(0).normal(size=(4, 6))
    promises(as_operator(LinearModel(matrix), (2, 3)))
    cubed = Model(
        lambda x: matrix @ x**3, range_geometry=4, domain_geometry=6,
        gradient=lambda direction, x: 3 * x**2 * (matrix.T @ direction),
    )  # fmt: skip
    promises(as_operator(cubed), linear=False)
