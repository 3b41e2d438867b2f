"""Functions and SciPy's operators as operators of this library; the other packages are in tests/extras."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from unveil import Gaussian, GaussianPrior, Problem, as_operator, solve
from unveil.errors import InputError
from unveil.operators import Linear, checks

M = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def apply(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ M.to(x.dtype).mT


def test_functions() -> None:
    for operator in (
        as_operator(apply, (3, 4), linear=True),
        as_operator(apply, (3, 4), adjoint=lambda y: (y @ M.to(y.dtype)).reshape(-1, 3, 4)),
    ):
        assert isinstance(operator, Linear)
        assert checks.check_operator(operator)
        assert operator.out_shape == (5,)
    wrong = as_operator(apply, (3, 4), adjoint=lambda y: 2 * (y @ M.to(y.dtype)).reshape(-1, 3, 4))
    with pytest.raises(AssertionError, match="adjoint"):
        checks.check_adjoint(wrong)
    square = as_operator(lambda x: x * x.abs(), (1, 4, 4))
    assert not isinstance(square, Linear)
    assert checks.check_operator(square)


def test_modules_move() -> None:
    layer = torch.nn.Linear(6, 3, bias=False).requires_grad_(False)
    operator = as_operator(layer, (6,), linear=True)
    assert next(operator.to("meta").thing.parameters()).device.type == "meta"
    assert next(layer.parameters()).device.type == "cpu"


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_scipy(kind: str) -> None:
    matrix = M.numpy() if kind == "real" else M.numpy() * (1 + 0.5j) + 1j
    op = scipy.sparse.linalg.aslinearoperator(matrix)
    operator = as_operator(op, (3, 4))
    assert dict(checks.check_operator(operator))["adjoint"] < 1e-12
    x = torch.rand(2, 3, 4, dtype=torch.float64)
    np.testing.assert_allclose(operator(x).numpy(), x.flatten(1).numpy() @ matrix.T)
    signal = as_operator(op, (2, 12))
    assert dict(checks.check_operator(signal))["adjoint"] < 1e-12
    z = torch.rand(3, 2, 12, dtype=torch.float64)
    np.testing.assert_allclose(signal(z).numpy(), (z[:, 0] + 1j * z[:, 1]).numpy() @ matrix.T)
    assert operator.describe() == as_operator(op, (3, 4)).describe()
    other = scipy.sparse.linalg.aslinearoperator(2 * matrix)
    assert operator.describe() != as_operator(other, (3, 4)).describe()


def test_solvers_take_them() -> None:
    prior = GaussianPrior(torch.zeros(12), torch.eye(12))
    operator = as_operator(scipy.sparse.linalg.aslinearoperator(M.float().numpy()))
    problem = Problem(torch.ones(1, 5), operator, Gaussian(0.1), value_range=prior.value_range)
    result = solve(problem, prior, "dps", steps=5)
    assert torch.isfinite(result.samples).all()
    exact = Problem(torch.ones(1, 5), as_operator(apply, (12,), linear=True), 0.1, value_range=prior.value_range)
    torch.testing.assert_close(problem.prox(torch.zeros(1, 12), 1.0), exact.prox(torch.zeros(1, 12), 1.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: as_operator(3.0), "no forward model"),
        (lambda: as_operator(scipy.sparse.linalg.aslinearoperator(M.numpy()), (3, 5)), "takes 12 values"),
        (lambda: as_operator(scipy.sparse.linalg.aslinearoperator(M.numpy()), (12,), out_shape=(4,)), "gives 5 values"),
        (lambda: as_operator(lambda x: x.sum(), (4,))(torch.ones(2, 4)), r"a batch \[N, ...\]"),
        (lambda: as_operator(apply, (3, 4))(torch.ones(2, 3, 5)), "takes signals of shape"),
    ],
)
def test_what_does_not_fit(make, words) -> None:
    with pytest.raises(InputError, match=words):
        make()
