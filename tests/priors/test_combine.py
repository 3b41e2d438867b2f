"""Priors made of priors, and priors of other shapes: signals, volumes, complex and multichannel images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import InputError
from unveil.priors import (
    Averaged,
    Complex,
    Counted,
    GaussianMixturePrior,
    GaussianPrior,
    Guided,
    HalfPrecision,
    Mirrored,
    Prior,
    Tiled,
    as_prior,
    check_prior,
    ddpm_linear,
    load_prior,
)
from unveil.priors.kernels import EDM
from unveil.priors.networks.adm import ADM
from unveil.priors.networks.edm import EDMUNet
from unveil.priors.networks.edm2 import EDM2UNet, effective
from unveil.priors.networks.lean import lean
from unveil.priors.networks.unet import UNet
from unveil.schedules import Schedule, karras

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gaussian(shift: float, variance: float = 0.2, shape: tuple[int, ...] = (2, 3, 4)) -> GaussianPrior:
    size = math.prod(shape)
    return GaussianPrior(torch.linspace(-0.5, 0.5, size) + shift, torch.full((size,), variance), shape=shape)


def whole(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """The Jacobian of the denoiser for one sample, by differentiation."""
    return torch.autograd.functional.jacobian(lambda z: prior.denoise(z, sigma), x).reshape(x.numel(), -1)


def pulls_back_its_denoiser(prior: Prior, x: Tensor, sigma: float = 0.4) -> None:
    v = noise(*x.shape, seed=7)
    x0, back = prior.vjp(x, sigma)
    assert torch.equal(x0, prior.denoise(x, sigma))
    want = (v.flatten() @ whole(prior, x, sigma)).reshape(x.shape)
    assert torch.allclose(back(v), want, atol=1e-10)
    assert not back(v).requires_grad


class Curved(Prior):
    """A denoiser that is not linear, and differs between channels, pixels and conditions."""

    shape = (2, 3, 4)
    value_range = (0.0, 1.0)
    sigma_range = (0.01, 10.0)

    def __init__(self, label: float = 0.0) -> None:
        self.label = label

    def denoise(self, x, sigma):
        ramp = torch.linspace(0.5, 1.5, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
        level = sigma.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(sigma, Tensor) and sigma.ndim else sigma
        return torch.tanh(ramp * x + self.label) / (1 + level**2)

    def given(self, **condition):
        return Curved(float(condition["label"]))

    def describe(self):
        return {**super().describe(), "label": self.label}


# -- guidance ----------------------------------------------------------------------------------------


def test_guidance_is_a_line_between_two_denoisers():
    free = Curved()
    x = noise(2, 2, 3, 4)
    c, u = free.given(label=1.0).denoise(x, 0.3), free.denoise(x, 0.3)
    for scale in (0.0, 1.0, 2.5):
        got = Guided(free.given(label=1.0), free, scale)
        assert torch.allclose(got.denoise(x, 0.3), u + scale * (c - u), atol=1e-14)
        rows = torch.tensor([0.3, 0.7], dtype=F64)
        each = torch.cat([got.denoise(x[k : k + 1], float(rows[k])) for k in range(2)])
        assert torch.allclose(got.denoise(x, rows), each, atol=1e-14)
    pulls_back_its_denoiser(got, x[:1])
    assert torch.equal(Guided(free, free, 2.5).given(label=1.0).denoise(x, 0.3), got.denoise(x, 0.3))
    moved = got.in_range(-1, 1)
    assert moved.value_range == (-1, 1)
    assert torch.allclose(moved.denoise(2 * x - 1, 0.6), 2 * got.denoise(x, 0.3) - 1, atol=1e-13)
    assert got.describe()["guidance"]["scale"] == 2.5
    assert got.describe() != Guided(free, free, 2.5).describe()


def ddim(prior: Prior, x: Tensor, schedule: Schedule) -> Tensor:
    for sigma, following in (schedule.pair(k) for k in range(len(schedule))):
        x0 = prior.denoise(x, sigma)
        x = x0 + following / sigma * (x - x0)
    return x


def test_cfg_plus_plus_samples_as_its_algorithm_does():
    """Algorithm 1 of arXiv 2406.08070 in sigma-space: guided estimate, unconditional noise."""
    c, u, strength = gaussian(0.3, 0.05), gaussian(0.0), 0.6
    schedule = karras(12, 0.01, 20.0)
    start = 20 * noise(3, 2, 3, 4)
    x = start
    for sigma, following in (schedule.pair(k) for k in range(len(schedule))):
        free = u.denoise(x, sigma)
        x = free + strength * (c.denoise(x, sigma) - free) + following * (x - free) / sigma
    got = ddim(Guided(c, u, strength, plus=schedule), start, schedule)
    assert torch.allclose(got, x, atol=1e-10)
    assert not torch.allclose(ddim(Guided(c, u, strength), start, schedule), x, atol=1e-3)
    moved = Guided(c, u, strength, plus=schedule).in_range(-1, 1)  # the schedule's levels move too
    assert torch.allclose(ddim(moved, 2 * start - 1, schedule.scaled(2.0)), 2 * x - 1, atol=1e-9)
    prior = Guided(c, u, strength, plus=schedule)
    levels = torch.tensor([schedule.sigmas[0], schedule.sigmas[5], schedule.sigmas[-2]], dtype=F64)
    each = [prior.denoise(start[k : k + 1], float(levels[k])) for k in range(3)]
    assert torch.allclose(prior.denoise(start, levels), torch.cat(each), atol=1e-12)


# -- averages, mirrors, complex ----------------------------------------------------------------------


def test_averages():
    a, b = Curved(), Curved(1.0)
    x = noise(2, 2, 3, 4)
    mean = Averaged((a, b))
    assert torch.allclose(mean.denoise(x, 0.3), (a.denoise(x, 0.3) + b.denoise(x, 0.3)) / 2, atol=1e-14)
    uneven = Averaged((a, b), (0.25, 0.75))
    assert torch.allclose(uneven.denoise(x, 0.3), 0.25 * a.denoise(x, 0.3) + 0.75 * b.denoise(x, 0.3), atol=1e-14)
    pulls_back_its_denoiser(uneven, x[:1])
    assert uneven.in_range(-1, 1).weights == (0.25, 0.75)
    narrow = gaussian(0.0)
    assert Averaged((narrow, narrow)).sigma_range == narrow.sigma_range
    for bad, message in (
        (lambda: Averaged(()), "at least one"),
        (lambda: Averaged((a, b), (1.0,)), "as many weights"),
        (lambda: Averaged((a, b), (1.0, 1.0)), "sum one"),
        (lambda: Averaged((a, b.in_range(-1, 1))), r"prior\.in_range converts"),
        (lambda: Guided(a, gaussian(0.0, shape=(1, 2)), 2.0), "same signals"),
    ):
        with pytest.raises(InputError, match=message):
            bad()


def test_mirrors_make_a_prior_that_does_not_know_left_from_right():
    a = Curved()
    x = noise(1, 2, 3, 4)
    assert torch.allclose(Mirrored(a).denoise(x, 0.3), a.denoise(x.flip(-1), 0.3).flip(-1))
    both = Averaged((a, Mirrored(a)))
    assert torch.allclose(both.denoise(x.flip(-1), 0.3), both.denoise(x, 0.3).flip(-1), atol=1e-14)
    assert not torch.allclose(a.denoise(x.flip(-1), 0.3), a.denoise(x, 0.3).flip(-1), atol=1e-3)
    pulls_back_its_denoiser(both, x)
    pulls_back_its_denoiser(Mirrored(a, (-1, -2)), x)


def test_complex_images_are_two_parts_of_real_ones():
    part = Curved()
    prior = Complex(part)
    assert prior.shape == (4, 3, 4)
    re, im = noise(2, 2, 3, 4), noise(2, 2, 3, 4, seed=1)
    rows = torch.tensor([0.2, 0.9], dtype=F64)
    for sigma in (0.3, rows):
        got = prior.denoise(torch.cat([re, im], 1), sigma)
        assert torch.equal(got, torch.cat([part.denoise(re, sigma), part.denoise(im, sigma)], 1))
    pulls_back_its_denoiser(prior, torch.cat([re, im], 1)[:1])
    assert torch.equal(prior.given(label=1.0).denoise(got, 0.3)[:, :2], part.given(label=1.0).denoise(got[:, :2], 0.3))
    with pytest.raises(InputError, match="real parts first"):
        prior.denoise(noise(1, 3, 3, 4), 0.3)
    # exact: two independent Gaussians are one of twice the size
    both = Complex(gaussian(0.1)).denoise(torch.cat([re, im], 1), 0.4)
    m = torch.linspace(-0.5, 0.5, 24, dtype=F64) + 0.1
    joint = GaussianPrior(m.repeat(2), torch.full((48,), 0.2), shape=(4, 3, 4))
    assert torch.allclose(both, joint.denoise(torch.cat([re, im], 1), 0.4), atol=1e-6)


@pytest.mark.parametrize(
    "prior",
    [
        Guided(gaussian(0.2), gaussian(0.0), 1.5),
        Averaged((gaussian(0.2), gaussian(0.0))),
        Mirrored(gaussian(0.2), (-1, -2)),
        Complex(gaussian(0.2)),
        Counted(gaussian(0.2)),
        Tiled(gaussian(0.2), tile=32, margin=2),
    ],
    ids=lambda p: type(p).__name__,
)
def test_combinations_pass_the_checks_of_a_prior(prior):
    shape = tuple(int(s or 4) for s in prior.shape)
    assert len(check_prior(prior, shape)) == 9


def test_an_average_of_denoisers_is_not_that_of_the_mixture():
    """What the docstring says: components weigh by their likelihood."""
    a, b = gaussian(1.5), gaussian(-1.5)
    means = torch.stack([p.mean.flatten() for p in (a, b)])
    mixture = GaussianMixturePrior([0.5, 0.5], means, torch.full((2,), 0.2), shape=(2, 3, 4))
    x = a.sample(4, 0, dtype=F64)
    assert torch.allclose(mixture.denoise(x, 0.3), a.denoise(x, 0.3), atol=1e-3)
    assert (Averaged((a, b)).denoise(x, 0.3) - a.denoise(x, 0.3)).abs().max() > 0.1


# -- half precision ----------------------------------------------------------------------------------


def filled(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if "filter" not in name and "omega" not in name:
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=generator)
    if isinstance(network, EDM2UNet):
        network.load_state_dict(effective(network.state_dict()))
        network.out_gain.data.fill_(1.0)
    return network.eval()


def network_prior(module: nn.Module, **options: object) -> Prior:
    settings = {"predicts": "edm", "value_range": (-1, 1), "shape": (3, None, None), **options}
    return as_prior(filled(module), **settings)  # type: ignore[arg-type]


NETWORKS = {
    "unet": lambda: network_prior(UNet(widths=(8, 16), blocks=1, features=16)),
    "adm": lambda: network_prior(
        ADM(width=32, widths=(32, 64), attention=(1,)), predicts="eps", schedule=ddpm_linear(), channels=3
    ),
    "ncsn++": lambda: network_prior(
        EDMUNet(size=16, width=32, widths=(32, 64), blocks=1, noise="fourier", taps=(1, 3, 3, 1), residual=True)
    ),
    "edm2": lambda: network_prior(EDM2UNet(size=16, channels=3, width=64, multiples=(1, 2), blocks=1)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_around_the_network_only(name, dtype):
    prior = NETWORKS[name]()
    half = HalfPrecision(prior, dtype)
    x = noise(2, 3, 16, 16).float()
    seen = []
    half._inner.module.register_forward_pre_hook(lambda m, args: seen.append([a.dtype for a in args[:2]]))
    for sigma in (0.05, 2.0):
        want = prior.denoise(x, sigma)
        got = half.denoise(x, sigma)
        assert got.dtype == torch.float32
        assert 0 < float((got - want).norm()) < 0.05 * float((want - x).norm())
        v, (_, back), (_, ref) = torch.ones_like(x), half.vjp(x, sigma), prior.vjp(x, sigma)
        assert float((back(v) - ref(v)).norm()) < 0.05 * float((ref(v) - v).norm())
    assert all(kinds == [dtype, torch.float32] for kinds in seen)  # eight bits do not tell the time
    assert next(prior.module.parameters()).dtype == torch.float32
    assert half.describe()["precision"] == str(dtype).removeprefix("torch.")


def dtypes(prior: Prior) -> list[torch.dtype]:
    """Of the weights of every network within."""
    if hasattr(prior, "module"):
        return [next(prior.module.parameters()).dtype]
    return [d for p in (prior.priors if hasattr(prior, "priors") else (prior.prior,)) for d in dtypes(p)]


def test_half_precision_reaches_every_network_in_a_combination():
    prior = NETWORKS["unet"]()
    nested = HalfPrecision(Tiled(Averaged((prior, Mirrored(prior))), tile=32, margin=2).in_range(0, 1))
    assert nested.value_range == (0, 1)
    assert dtypes(nested._inner) == [torch.bfloat16] * 2
    assert dtypes(nested.prior) == [torch.float32] * 2
    x = noise(1, 3, 16, 16).float()
    assert not torch.equal(nested.denoise(x, 0.2), nested.prior.denoise(x, 0.2))
    assert torch.allclose(nested.in_range(-1, 1).denoise(2 * x - 1, 0.4), 2 * nested.denoise(x, 0.2) - 1, atol=0.02)
    for bad, message in (
        (lambda: HalfPrecision(gaussian(0.0)), "no network"),
        (lambda: HalfPrecision(prior, F64), "half"),
    ):
        with pytest.raises(InputError, match=message):
            bad()


def test_photographs_in_half_precision_stay_what_they_are():
    prior = load_prior("photos")
    clean = torch.nn.functional.interpolate(noise(1, 3, 6, 6).float() * 0.2 + 0.5, size=(48, 48), mode="bicubic")
    x = clean + 0.1 * noise(1, 3, 48, 48, seed=1).float()
    full, half = prior.denoise(x, 0.1), HalfPrecision(prior).denoise(x, 0.1)
    error = float((full - clean).square().mean())
    assert 0 < float((half - full).square().mean()) < 0.05 * error


# -- counting ----------------------------------------------------------------------------------------


def test_counts():
    prior = Counted(gaussian(0.0))
    x = noise(3, 2, 3, 4)
    prior.denoise(x, 0.2)
    _, back = prior.vjp(x, 0.2)
    back(x)
    back(x)
    assert (prior.cost.forward, prior.cost.backward) == (6, 6)
    prior.in_range(-1, 1).denoise(x, 0.2)
    assert prior.cost.forward == 9


def test_what_counts_moves_with_what_is_counted():
    network = as_prior(nn.Conv2d(2, 2, 1), predicts="x0", schedule=EDM(), value_range=(0, 1), shape=(2, None, None))
    prior = Counted(network, chunk=2)
    moved = prior.to("meta")
    assert isinstance(moved, Counted)
    assert moved.prior.module.weight.device.type == "meta"
    assert (moved.cost is prior.cost, moved.chunk) == (True, 2)


# -- other shapes ------------------------------------------------------------------------------------


def convolutional(kind: type[nn.Module], channels: int) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                kind(channels, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.SiLU(), kind(8, channels, 3, padding=1)
            )
            self.time = nn.Linear(1, channels)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.body(x) + self.time(t[:, None]).reshape(len(x), -1, *[1] * (x.ndim - 2))
            return out

    return filled(Net())


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Conv1d, (1, 40)),
        (nn.Conv1d, (12, 33)),
        (nn.Conv2d, (2, 12, 10)),
        (nn.Conv2d, (7, 9, 10)),
        (nn.Conv3d, (1, 6, 8, 7)),
        (nn.Conv3d, (2, 5, 6, 4)),
    ],
    ids=["signal", "many leads", "complex image", "multispectral", "volume", "complex volume"],
)
def test_signals_of_any_shape(kind, shape):
    network = convolutional(kind, shape[0])
    open_shape = (shape[0], *(None,) * (len(shape) - 1))
    for module in (network, lean(network)):
        prior = as_prior(module, predicts="eps", schedule=ddpm_linear(), value_range=(-1, 1), shape=open_shape)
        assert len(check_prior(prior, shape)) == 9
        assert len(check_prior(prior.in_range(-0.2, 3.0), shape)) == 9
    wrong = torch.zeros(1, shape[0] + 1, *shape[1:])
    with pytest.raises(InputError, match=f"signals are \\[N, {shape[0]}, any"):
        prior.denoise(wrong, 0.3)


class Smooth(Prior):
    """A mean over a neighbourhood, bent: local, along one, two or three axes."""

    value_range = (0.0, 1.0)
    sigma_range = (0.01, 10.0)

    def __init__(self, axes: int) -> None:
        self.shape = (None,) * (axes + 1)

    def denoise(self, x, sigma):
        pool = {3: nn.functional.avg_pool1d, 4: nn.functional.avg_pool2d, 5: nn.functional.avg_pool3d}[x.ndim]
        return torch.tanh(pool(x, 3, 1, 1, count_include_pad=False) / (1 + sigma))


@pytest.mark.parametrize("size", [(101,), (40, 61), (15, 30, 22)])
def test_tiles_of_signals_and_volumes(size):
    x = noise(2, 1, *size)
    prior = Smooth(len(size))
    tiled = Tiled(prior, tile=13, margin=2)
    assert torch.allclose(tiled.denoise(x, 0.3), prior.denoise(x, 0.3), atol=1e-13)
    v = noise(2, 1, *size, seed=1)
    assert torch.allclose(tiled.vjp(x, 0.3)[1](v), prior.vjp(x, 0.3)[1](v), atol=1e-13)
