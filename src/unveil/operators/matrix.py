"""Any linear operator that fits in memory as a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Operator, Shape, Spectral


@register("operator", "matrix")
class Matrix(Spectral):
    """y = M x, with M [m, n] real or complex and the real signal flattened to n entries; y is [m].

    The singular value decomposition is computed once, in double precision, when it is first needed. Signals are real:
    a complex M is decomposed as the real matrix [2m, n] of its real and imaginary parts, which is orthogonal in the
    inner product Re<y, y'>, and ``adjoint`` is the real part of M^H y. Where 4m < n, V is a product of m Householder
    reflections: its application costs O(mn), and no matrix [n, n] is made.

    Parameters
    ----------
    matrix:
        [m, n]. It must not be changed in place afterwards.
    in_shape:
        Shape of the signals, n entries in all; (n,) by default.
    rtol:
        Singular values below ``rtol`` times the largest count as zero.
    """

    def __init__(self, matrix: Tensor, in_shape: Shape | None = None, rtol: float = Spectral.rtol) -> None:
        matrix = torch.as_tensor(matrix).detach()
        if matrix.ndim != 2 or not (matrix.is_floating_point() or matrix.is_complex()):
            raise InputError(f"a matrix is a floating-point tensor [m, n], got {matrix.dtype} {tuple(matrix.shape)}")
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("the matrix holds NaN or infinite values: replace them")
        self.in_shape: Shape = (matrix.shape[1],) if in_shape is None else tuple(in_shape)
        if math.prod(self.in_shape) != matrix.shape[1]:
            raise InputError(
                f"a matrix of {matrix.shape[1]} columns cannot act on signals of shape {self.in_shape} "
                f"({math.prod(self.in_shape)} entries): pass the matching in_shape"
            )
        self.matrix = matrix
        self.rtol = rtol

    @classmethod
    def example(cls) -> Operator:
        g = torch.Generator().manual_seed(0)
        return cls(torch.randn(20, 32, generator=g, dtype=torch.float64) / 32**0.5, in_shape=(2, 4, 4))

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (self.matrix.shape[0],)

    def _real(self) -> Tensor:
        """The matrix, real and imaginary rows interleaved if complex: float64, on the CPU."""
        if not self.matrix.is_complex():
            return self.matrix.cpu().double()
        return torch.view_as_real(self.matrix.cpu().to(torch.complex128)).movedim(-1, 1).flatten(0, 1).contiguous()

    def _pack(self, y: Tensor) -> Tensor:
        """Real rows as a measurement."""
        return torch.view_as_complex(y.reshape(*y.shape[:-1], -1, 2)) if self.matrix.is_complex() else y

    def _unpack(self, y: Tensor) -> Tensor:
        """A measurement as real rows."""
        if not self.matrix.is_complex():
            return y
        return torch.view_as_real(y if y.is_complex() else torch.complex(y, torch.zeros_like(y))).flatten(-2)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self._pack(x.flatten(1) @ self.tensor("A", x, self._real).mT)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self._unpack(y) @ self.tensor("A", y, self._real)).reshape(y.shape[0], *self.in_shape)

    @property
    def _wide(self) -> bool:
        """Whether rows are so few that V is cheaper as the identity plus a matrix of low rank."""
        m, n = self.matrix.shape
        return 4 * m * (2 if self.matrix.is_complex() else 1) < n

    def _factor(self, part: str, like: Tensor) -> Tensor:
        """U [m, n], s [n] or V [n, n] of the decomposition; of a wide matrix P or Q [2m, n] with V = I + P^T Q."""

        def make() -> Tensor:
            double = like.new_empty(0, dtype=torch.float64, device="cpu")
            # the double-precision factors are kept for every other precision and device
            packed = self.tensor("svd", double, self._decompose)
            rows, n = packed.shape
            m = (rows - 1) // 5 if self._wide else rows - 1 - n
            sizes = {"U": m, "s": 1} | ({"P": 2 * m, "Q": 2 * m} if self._wide else {"V": n})
            parts: dict[str, Tensor] = dict(zip(sizes, torch.split(packed, list(sizes.values())), strict=True))
            return parts[part]

        return self.tensor(part, like, make)

    def _decompose(self) -> Tensor:
        """The factors stacked: [m + 1 + n, n]; of a wide matrix [m + 1 + 4m, n]."""
        real = self._real()
        m, n = real.shape
        if self._wide:
            u, s, *right = _reflections(real)
        else:
            u, s, vt = torch.linalg.svd(real, full_matrices=m < n)
            right = [vt.mT]
        s = torch.nn.functional.pad(self._truncated(s), (0, n - s.shape[0]))
        u = torch.nn.functional.pad(u, (0, n - u.shape[1]))
        return torch.cat([torch.where(s > 0, u, 0), s[None], *right])

    def s(self, c: Tensor) -> Tensor:
        return self._factor("s", c).reshape(self.in_shape)

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        rows = x.flatten(1)
        if self._wide:
            return self._shaped(torch.addmm(rows, rows @ self._factor("P", x).mT, self._factor("Q", x)))
        return self._shaped(rows @ self._factor("V", x))

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        rows = c.flatten(1)
        if self._wide:
            return self._shaped(torch.addmm(rows, rows @ self._factor("Q", c).mT, self._factor("P", c)))
        return self._shaped(rows @ self._factor("V", c).mT)

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        y = self._unpack(y)
        return self._shaped(y @ self._factor("U", y))

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        return self._pack(c.flatten(1) @ self._factor("U", c).mT)

    def _shaped(self, rows: Tensor) -> Tensor:
        """Rows of n numbers in the shape of signals."""
        return rows.reshape(rows.shape[0], *self.in_shape)


def _reflections(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U [m, m], s [m], P and Q [2m, n] of a real a [m, n], m < n: V = I + P^T Q is orthogonal, its first m columns are
    the right singular vectors.

    m Householder reflections I - W Y^T (Schreiber, Van Loan 1989, SIAM J. Sci. Stat. Comput. 10) turn a into [L 0];
    with K their first m columns, a = L K^T, and L = U diag(s) B^T makes K B the right singular vectors.
    """
    m, n = a.shape
    packed, scales = torch.geqrf(a.mT)
    u, s, bt = torch.linalg.svd(packed[:m].triu().mT)
    k = torch.linalg.householder_product(packed, scales)
    e = torch.eye(n, m, dtype=a.dtype)
    y = packed.tril(-1) + e
    w = torch.linalg.solve_triangular(y[:m].mT, e - k, upper=True, left=False, unitriangular=True)  # K = E - W Y^T E
    return u, s, torch.cat([-w, k @ bt.mT - k], 1).mT, torch.cat([y, e], 1).mT
