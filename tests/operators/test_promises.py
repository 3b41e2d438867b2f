"""What operators promise: all that are registered, and variants of ours; and that the checks can fail."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unveil import registry
from unveil.errors import InputError
from unveil.noise import Gaussian
from unveil.numerics.cg import cg
from unveil.operators import (
    JPEG,
    MRI,
    Blur,
    CodedDiffraction,
    Downsample,
    Fourier,
    FourierMagnitude,
    Grayscale,
    HighDynamicRange,
    Identity,
    Inpainting,
    Linear,
    Matrix,
    Mosaic,
    MultiCoilMRI,
    NonCartesianMRI,
    NonlinearBlur,
    Operator,
    Parametric,
    Quantize,
    Spectral,
    SuperResolution,
    VaryingBlur,
    WalshHadamard,
    Weights,
    checks,
    example_operator,
    motion_kernel,
    radial_trajectory,
    stack,
)
from unveil.operators.weights import Mix

SKEW = Blur.example().kernel
G = torch.Generator().manual_seed(5)


class Square(Operator):
    """A non-linear operator of the tests: y = x |x|, smooth."""

    in_shape = (3, 8, 8)

    def __call__(self, x: Tensor) -> Tensor:
        return x * x.abs()


class Phases(Linear):
    """Complex measurements with the default adjoint."""

    in_shape = (12,)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x) * (1 + 2j)


def complex_matrix(m: int, n: int) -> Matrix:
    return Matrix(torch.randn(m, n, dtype=torch.complex128, generator=G))


VARIANTS = {
    "identity-1d": Identity((11,)),
    "inpainting-1d": Inpainting(torch.tensor([1, 0, 1, 1, 0]), in_shape=(5,)),
    "inpainting-3d": Inpainting((torch.rand(4, 5, 6, generator=G) > 0.4), in_shape=(2, 4, 5, 6)),
    "blur-even": Blur(SKEW[:4, :3] / SKEW[:4, :3].sum(), in_shape=(1, 9, 12)),
    "blur-per-channel": Blur(torch.stack([SKEW, SKEW.T]), in_shape=(2, 8, 9)),
    "blur-zeros-of-transfer": Blur(torch.full((4, 4), 1 / 16), in_shape=(1, 16, 16)),
    "blur-full-size": Blur(SKEW, in_shape=(1, 5, 5)),
    "blur-reflect": Blur(SKEW, "reflect", in_shape=(3, 16, 15)),
    "blur-reflect-even": Blur(SKEW[:4, :2] / SKEW[:4, :2].sum(), "reflect", in_shape=(1, 4, 7)),
    "blur-valid": Blur(SKEW, "valid", in_shape=(3, 16, 15)),
    "blur-valid-even": Blur(SKEW[:2, :4] / SKEW[:2, :4].sum(), "valid", in_shape=(1, 7, 4)),
    "blur-reflect-zeros-of-transfer": Blur(torch.full((4, 4), 1 / 16), "reflect", in_shape=(1, 16, 16)),
    "blur-reflect-tilted": Blur(motion_kernel(4, 30), "reflect", in_shape=(3, 16, 15)),
    "blur-valid-tilted": Blur(motion_kernel(4, 30), "valid", in_shape=(3, 16, 15)),
    "blur-reflect-of-grey": Blur(SKEW, "reflect") @ Grayscale(in_shape=(3, 9, 6)),
    "blur-valid-of-grey": Blur(SKEW, "valid") @ Grayscale(in_shape=(3, 9, 6)),
    "downsample-1d": Downsample(3, dims=1, in_shape=(2, 12)),
    "downsample-3d": Downsample((1, 2, 3), dims=3, in_shape=(2, 4, 6)),
    "downsample-by-one": Downsample(1, in_shape=(1, 4, 4)),
    "bicubic": Downsample(4, "bicubic", in_shape=(3, 16, 8)),
    "bicubic-1d": Downsample(2, "bicubic", dims=1, in_shape=(2, 12)),
    "bicubic-3d": Downsample((2, 1, 3), "bicubic", dims=3, in_shape=(8, 4, 9)),
    "grayscale-5-bands": Grayscale([-1.0, 0.0, 2.0, 0.5, 0.1], in_shape=(5, 7)),
    "grayscale-1": Grayscale([3.0], in_shape=(1, 4, 4)),
    "grayscale-vector": Grayscale([1.0, 2.0], in_shape=(2,)),
    "hadamard-1d": WalshHadamard((32,), m=7),
    "hadamard-all": WalshHadamard((2, 8, 4), fraction=1.0),
    "matrix-tall": Matrix(torch.randn(20, 8, generator=G)),
    "matrix-rank-deficient": Matrix(torch.randn(9, 3, generator=G).double() @ torch.randn(3, 12, generator=G).double()),
    "matrix-few-rows": Matrix(torch.randn(2, 12, generator=G).double(), in_shape=(3, 2, 2)),
    "matrix-few-equal-rows": Matrix(torch.randn(1, 13, generator=G).double().expand(3, -1)),
    "matrix-few-of-identity": Matrix(torch.eye(9)[[0, 7]].double()),
    "matrix-complex-few-rows": complex_matrix(1, 12),
    "matrix-complex-wide": complex_matrix(4, 12),
    "matrix-complex-tall": complex_matrix(9, 12),
    "superresolution-3": SuperResolution(SKEW, 3, in_shape=(1, 9, 15)),
    "superresolution-odd": SuperResolution(SKEW[:4], 5, unit_sum=False, in_shape=(2, 5, 15)),
    "superresolution-by-one": SuperResolution(SKEW, 1, in_shape=(1, 6, 7)),
    "superresolution-decimation": SuperResolution(torch.ones(1, 1), 4, in_shape=(1, 8, 8)),
    "superresolution-zeros-of-transfer": SuperResolution(torch.full((4, 4), 1 / 16), 4, in_shape=(1, 16, 16)),
    "superresolution-per-channel": SuperResolution(torch.stack([SKEW, SKEW.T]), 2, in_shape=(2, 8, 10)),
    "superresolution-of-grey": SuperResolution(SKEW, 2) @ Grayscale(in_shape=(3, 8, 8)),
    "varying-reflect": VaryingBlur(torch.stack([SKEW, SKEW.T])[None], boundary="reflect", in_shape=(1, 8, 7)),
    "varying-valid": VaryingBlur(torch.stack([SKEW, SKEW.T])[None], boundary="valid", in_shape=(3, 8, 7)),
    "varying-weights": VaryingBlur(SKEW[None, None], torch.rand(1, 8, 7, generator=G), in_shape=(3, 8, 7)),
    "mosaic-xtrans": Mosaic("xtrans", (3, 7, 13)),
    "blur-of-mosaic": Blur(SKEW) @ Mosaic("gbrg", (3, 8, 8)),
    "jpeg-grey": JPEG(20, in_shape=(1, 8, 24)),
    "jpeg-444": JPEG(90, subsample=False, in_shape=(3, 8, 24)),
    "one-bit": Quantize(1, -1.0, 1.0, in_shape=(7,)),
    "hdr-of-light": HighDynamicRange(3.0, -1.0, 1.0, pivot=-1.0, in_shape=(1, 4, 4)),
    "nonlinear-blur-reflect": NonlinearBlur(SKEW, 2.0, "reflect", (3, 8, 8)),
    "jpeg-of-blur": JPEG(20) @ Blur(SKEW, in_shape=(1, 8, 16)),
    "stack-of-rounding": stack(Quantize(2), JPEG(20), in_shape=(1, 8, 8)),
    "fourier-odd": Fourier(torch.rand(5, 7, generator=G) > 0.5, in_shape=(2, 5, 7)),
    "fourier-per-channel": Fourier(torch.rand(2, 4, 6, generator=G), in_shape=(2, 4, 6)),
    "fourier-centred": Fourier(torch.rand(4, 7, generator=G), centred=True, in_shape=(1, 4, 7)),
    "fourier-1d": Fourier(torch.rand(9, generator=G), dims=1, in_shape=(3, 9)),
    "mri-volume": MRI(torch.rand(5, 6, generator=G) > 0.5, dims=3, in_shape=(2, 4, 5, 6)),
    "fourier-of-grey": Fourier(torch.rand(5, 7, generator=G) > 0.5) @ Grayscale(in_shape=(3, 5, 7)),
    "weights-of-fourier": Weights(torch.rand(9, 8, generator=G)) @ Fourier.example(),
    "weights-of-mri": Weights(torch.rand(10, 12, generator=G)) @ MRI.example(),
    "multicoil-volume": MultiCoilMRI(
        torch.rand(5, 6, generator=G) > 0.5, torch.randn(3, 4, 5, 6, dtype=torch.complex128, generator=G)
    ),
    "coils-with-noise": Mix(torch.randn(3, 3, dtype=torch.complex128, generator=G), (3, 10, 12), first_axis=True)
    @ MultiCoilMRI.example(),
    "noncartesian-one-coil": NonCartesianMRI(radial_trajectory(3, 7), (6, 5), backend="direct"),
    "fourier-magnitude-masked": FourierMagnitude((2, 4, 5), 1.5, power=2, mask=torch.rand(6, 8, generator=G) > 0.2),
    "coded-diffraction-phases": CodedDiffraction((1, 4, 5), 2, "phase", power=2),
    "square": Square(),
    "phases": Phases(),
    "compose": Downsample(2) @ Blur(SKEW, "reflect", in_shape=(3, 16, 16)),
    "inpainting-of-grey": Inpainting(torch.rand(9, 6, generator=G) > 0.4) @ Grayscale(in_shape=(3, 9, 6)),
    "blur-of-grey": Blur(torch.full((4, 4), 1 / 16)) @ Grayscale([-1.0, 0.0, 2.0, 0.5], in_shape=(4, 16, 16)),
    "bicubic-of-grey": Downsample(4, "bicubic") @ Grayscale(in_shape=(3, 16, 8)),
    "identity-of-grey": Identity() @ Grayscale(in_shape=(3, 4, 5)),
    "hadamard-of-grey": WalshHadamard((1, 8, 8), m=11) @ Grayscale(),
    "matrix-of-grey": Matrix(torch.randn(9, 12, generator=G).double(), in_shape=(1, 4, 3)) @ Grayscale(),
    "complex-matrix-of-grey": Matrix(complex_matrix(4, 12).matrix, in_shape=(1, 4, 3)) @ Grayscale(),
    "inpainting-of-averages": Inpainting(torch.eye(4)) @ Downsample((2, 3), in_shape=(2, 8, 12)),
    "inpainting-of-hadamard": Inpainting(torch.arange(9) % 3 > 0) @ WalshHadamard((2, 8, 4), m=9),
    "blur-of-averages-of-grey": Blur(SKEW) @ (Downsample(2) @ Grayscale(in_shape=(3, 10, 12))),
    "average-of-averages-of-grey": Inpainting(torch.eye(3))
    @ Downsample(2)
    @ Downsample(2)
    @ Grayscale(in_shape=(3, 12, 12)),
    "weights-of-a-mask": Weights(torch.linspace(0.5, 2, 8)) @ Inpainting(torch.eye(8), in_shape=(2, 8, 8)),
    "blur-of-blur": Blur(SKEW) @ Blur(SKEW[:4, :3] / SKEW[:4, :3].sum(), in_shape=(2, 9, 8)),
    "mix": Mix(torch.randn(5, 12, generator=G).double(), (3, 4)),
    "mix-of-some": Mix(torch.randn(5, 4, generator=G).double(), (3, 4), kept=torch.tensor([0, 3, 4, 9])),
    "mix-of-channels": Mix(torch.randn(4, 3, generator=G).double(), (3, 4, 5), first_axis=True),
    "mix-of-channels-masked": Mix(
        torch.randn(3, 3, generator=G).double(), (3, 4, 5), first_axis=True, measured=torch.eye(4, 5)
    ),
    "affine": Blur(SKEW, in_shape=(3, 8, 8)) + torch.randn(8, 8, generator=G),
    "affine-masked": Inpainting(torch.eye(8), in_shape=(3, 8, 8)) + torch.randn(3, 1, 1, generator=G),
    "compose-nonlinear": Blur(SKEW) @ Square(),
    "add": Identity((3, 8, 8)) + Blur(SKEW),
    "add-nonlinear": Square() + Blur(SKEW),
    "stack": stack(Blur(SKEW, "valid"), Inpainting(torch.eye(8)), Grayscale(), in_shape=(3, 8, 8)),
    "stack-nonlinear": stack(Square(), Inpainting(torch.eye(8))),
    "stack-complex": stack(complex_matrix(5, 12), Identity((12,)), Phases()),
}
MEASURED = ("dtype", "jvp", "vjp", "parameters", "decomposition")
"""Checks that compare with finite differences or between precisions."""
CASES = [*registry.names("operator"), *VARIANTS]


def build(name: str) -> Operator:
    return VARIANTS[name] if name in VARIANTS else example_operator(name)


@pytest.mark.parametrize("name", CASES)
def test_operator_keeps_its_promises(name: str) -> None:
    operator = build(name)
    results = dict(checks.check_operator(operator))
    assert isinstance(operator, Linear) == ("adjoint" in results)
    assert isinstance(operator, Spectral) == ("pinv" in results)
    assert isinstance(operator, Parametric) == ("parameters" in results)
    assert (isinstance(operator, Spectral) and operator.selects) == ("selects" in results)
    if type(operator).__module__.startswith("unveil.operators."):
        # far below the limits of the checks: ours compute in the precision of the signal throughout
        exact = {key: error for key, error in results.items() if key not in MEASURED}
        assert max(exact.values()) < 1e-10, exact


@pytest.mark.parametrize("name", CASES)
def test_operator_survives_copy_pickle_and_move(name: str) -> None:
    operator = build(name)
    x = torch.randn(2, *operator.in_shape, generator=torch.Generator().manual_seed(1))
    before = operator.describe()
    y = operator(x)
    assert operator.describe() == before, "describe() changes when the operator is used"
    assert operator.to(operator.device) is operator
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert type(other) is type(operator)
        assert torch.equal(other(x), y)
        assert other.describe() == before


@pytest.mark.parametrize("name", CASES)
def test_operator_moves_to_another_device(name: str) -> None:
    operator = build(name).to("meta")
    if any(True for _ in operator._tensors()):
        assert operator.device.type == "meta"


@pytest.mark.parametrize("name", CASES)
def test_first_use_in_inference_mode_leaves_gradients_possible(name: str) -> None:
    operator = copy.deepcopy(build(name))
    x = torch.randn(2, *operator.in_shape)
    with torch.inference_mode():
        operator(x)
        if isinstance(operator, Spectral):
            operator.pinv(operator(x))
    y, pullback = operator.linearize(x)
    assert torch.isfinite(pullback(y)).all()
    if isinstance(operator, Spectral):
        leaf = x.clone().requires_grad_(True)
        operator.pinv(operator(leaf)).square().sum().backward()
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", CASES)
def test_automatic_differentiation_agrees_with_vjp(name: str) -> None:
    operator = build(name)
    x = torch.randn(2, *operator.in_shape, dtype=torch.float64)
    v = torch.randn_like(operator(x))
    torch.testing.assert_close(Operator.vjp(operator, x, v), operator.vjp(x, v), rtol=1e-10, atol=1e-10)
    if isinstance(operator, Linear):
        torch.testing.assert_close(Linear.adjoint(operator, v), operator.adjoint(v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_signals_of_another_shape_are_refused(name: str) -> None:
    operator = build(name)
    if type(operator).__module__.startswith("unveil.operators."):
        with pytest.raises(InputError):
            operator.check((*operator.in_shape[:-1], operator.in_shape[-1] + 1))


# -- mutations: a broken operator must fail its check -----------------------------------------------------


class AdjointTwice(Blur):
    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * super().adjoint(y)


class AdjointNotFlipped(Blur):
    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)


class NotOrthogonal(Identity):
    def Vt(self, x: Tensor) -> Tensor:
        return 2 * x

    def V(self, c: Tensor) -> Tensor:
        return c / 2


class WrongSingularValues(Inpainting):
    def s(self, c: Tensor) -> Tensor:
        return 2 * super().s(c)


class UtLeaks(Inpainting):
    def Ut(self, y: Tensor) -> Tensor:
        return y


class PinvIsAdjoint(Downsample):
    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)


class Coupled(Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class CoupledGradient(Identity):
    def adjoint(self, y: Tensor) -> Tensor:
        return y - 0.1 * y.mean(0, keepdim=True)


class Affine(Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return x + 1


class Upcast(Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return x * torch.ones(1, dtype=torch.float64)


class Global(Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return x + 0 * torch.randn(1)


class Noisy(Identity):
    g = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.g, dtype=x.dtype)


class InPlace(Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return x.detach().mul_(1.5)


class LeakyPlaceholders(Inpainting):
    def __call__(self, x: Tensor) -> Tensor:
        return x


class WrongShape(Downsample):
    def shape_out(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape


class WrongVjp(Square):
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return x.abs() * v


class WrongJvp(Square):
    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return x.abs() * v


class WrongParameter(Blur):
    def bind(self, **parameters: Tensor) -> Blur:
        return super().bind(**{name: value.detach() + 0 * value for name, value in parameters.items()})


class AnyParameter(Blur):
    def bind(self, **parameters: Tensor) -> Blur:
        return super().bind(**{name: value for name, value in parameters.items() if name in self.parameters})


class NotAnInverse(HighDynamicRange):
    def pinv(self, y: Tensor) -> Tensor:
        return y


class RoundedDerivative(Quantize):
    """Without a word about what is differentiated."""

    def smooth(self, x: Tensor) -> Tensor:
        return (x.clamp(0, 1) * 3).round() / 3

    def __call__(self, x: Tensor) -> Tensor:
        z = x.clamp(0, 1)
        return z + (self.smooth(x) - z).detach()


class SelectsHoles(Inpainting):
    selects = True


class SelectsUnevenly(Downsample):
    def s(self, c: Tensor) -> Tensor:
        return super().s(c) * torch.arange(1, 1 + c.shape[-1], dtype=c.dtype)


class SelectsTurned(WalshHadamard):
    def U(self, c: Tensor) -> Tensor:
        return -super().U(c)

    def Ut(self, y: Tensor) -> Tensor:
        return -super().Ut(y)


MASK = torch.eye(8)
BROKEN = [
    (checks.check_adjoint, AdjointTwice(SKEW, "reflect", in_shape=(1, 9, 9))),
    (checks.check_adjoint, AdjointNotFlipped(SKEW, "reflect", in_shape=(1, 9, 9))),
    (checks.check_vjp, AdjointTwice(SKEW, "reflect", in_shape=(1, 9, 9))),
    (checks.check_v, NotOrthogonal((3, 8, 8))),
    (checks.check_decomposition, WrongSingularValues(MASK, (1, 8, 8))),
    (checks.check_u, UtLeaks(MASK, (1, 8, 8))),
    (checks.check_pinv, PinvIsAdjoint(2, in_shape=(1, 8, 8))),
    (checks.check_selects, SelectsHoles(MASK, (1, 8, 8))),
    (checks.check_selects, SelectsUnevenly(2, in_shape=(1, 8, 8))),
    (checks.check_selects, SelectsTurned((1, 8), m=5)),
    (checks.check_batch, Coupled((4,))),
    (checks.check_batch, CoupledGradient((4,))),
    (checks.check_linearity, Affine((4,))),
    (checks.check_dtype, Upcast((4,))),
    (checks.check_deterministic, Global((4,))),
    (checks.check_deterministic, Noisy((4,))),
    (checks.check_deterministic, InPlace((4,))),
    (checks.check_placeholders, LeakyPlaceholders(MASK, (1, 8, 8))),
    (checks.check_shapes, WrongShape(2, in_shape=(1, 8, 8))),
    (checks.check_vjp, WrongVjp()),
    (checks.check_jvp, WrongJvp()),
    (checks.check_parameters, WrongParameter(SKEW, "reflect", in_shape=(1, 9, 9))),
    (checks.check_parameters, AnyParameter(SKEW, "reflect", in_shape=(1, 9, 9))),
    (checks.check_generalised_inverse, NotAnInverse(in_shape=(1, 4, 4))),
    (checks.check_vjp, RoundedDerivative(2, in_shape=(1, 4, 4))),
]


@pytest.mark.parametrize(("check", "operator"), BROKEN, ids=lambda p: getattr(p, "__name__", type(p).__name__))
def test_broken_operator_fails(check: checks.Check, operator: Operator) -> None:
    with pytest.raises(AssertionError, match=f"^{operator.name or type(operator).__name__}: "):
        check(operator)
    with pytest.raises(AssertionError):
        checks.check_operator(operator)


def test_an_adjoint_is_exact_to_a_millionth() -> None:
    class Nearly(Identity):
        def adjoint(self, y: Tensor) -> Tensor:
            return y * (1 + 6e-6)

    checks.check_adjoint(Identity((1,)))
    with pytest.raises(AssertionError, match="at most 1e-06"):
        checks.check_adjoint(Nearly((1,)))


def test_check_needs_a_shape() -> None:
    with pytest.raises(InputError, match="shape of one signal"):
        checks.check_operator(Blur(SKEW))
    assert checks.check_operator(Blur(SKEW), (1, 8, 8))


# -- no waiting for the device -----------------------------------------------------------------------------

WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique")


class NoWaiting(TorchDispatchMode):
    """Fails where a device would make the host wait: a value read, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{func} makes the host wait for the device"
        if name in ("index", "index_put", "index_put_"):
            indices = [i for i in args[1] if i is not None]
            assert not any(i.dtype == torch.bool for i in indices), "indexing with a mask makes the host wait"
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_waiting() -> None:
    x = torch.randn(4)
    for wait in (lambda: float(x.sum()), lambda: x[x > 0], lambda: bool((x > 0).all())):
        with NoWaiting(), pytest.raises(AssertionError, match="wait"):
            wait()


@pytest.mark.parametrize("name", [name for name in CASES if type(build(name)).__module__.startswith("unveil.")])
def test_no_host_synchronisation_once_warm(name: str) -> None:
    operator = build(name)
    x = torch.randn(2, *operator.in_shape)

    def use() -> None:
        y, pullback = operator.linearize(x)
        pullback(y)
        if isinstance(operator, Linear):
            cg(operator.normal, operator.adjoint(y), steps=2, tol=1e-3)
        if isinstance(operator, Spectral):
            operator.spectral(x, lambda s: s / (s**2 + 1))
            operator.pinv(y)
        noise = Gaussian(0.1)
        noise.log_prob(y, y, operator.measured)
        noise.score(y, y, operator.measured)

    use()
    with NoWaiting():
        use()
