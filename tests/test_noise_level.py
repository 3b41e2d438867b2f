"""The noise of measured data, found in the data: k-space, sinograms, mosaics and images, of slices and photographs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unveil.bench.scenes import truth
from unveil.errors import InputError
from unveil.noise import noise_level
from unveil.operators import (
    MRI,
    Fourier,
    FourierMagnitude,
    Interferometer,
    Mosaic,
    MultiCoilMRI,
    NonCartesianMRI,
    ParallelBeam,
    Phased,
    birdcage_maps,
    radial_mask,
    radial_trajectory,
    random_lines,
    views,
)
from unveil.operators.layout import kspace

SIZE = (128, 128)
PHASE = torch.linspace(-1, 1, 128)[:, None] * torch.linspace(0, 1, 128)
MAPS = birdcage_maps(4, SIZE)
WHOLE, QUARTER = torch.ones(SIZE), random_lines(SIZE, 4)


def picture(name: str) -> Tensor:
    scene = {"phantom": "ct-phantom", "axial": "mri-4x", "sagittal": "mri-4x"}.get(name.partition("-")[0], "mosaic")
    return truth(scene, name)[None]


def found(operator, x: Tensor, sigma: float, seed: int = 3) -> tuple[float, bool]:
    """The estimate over the truth, and whether it is called an upper bound."""
    y = operator(x)
    noise = torch.randn((*y.shape, 2), generator=torch.Generator().manual_seed(seed))
    y = operator.at_data(y + sigma * (torch.view_as_complex(noise) if y.is_complex() else noise[..., 0]))
    level = noise_level(y, operator)
    assert level.sigma.shape == level.upper.shape == (1,)
    return float(level.sigma) / sigma, bool(level.upper)


INSTRUMENTS = {
    "one coil": lambda: MRI(WHOLE) @ Phased(PHASE),
    "one coil, a quarter": lambda: MRI(QUARTER) @ Phased(PHASE),
    "coils": lambda: MultiCoilMRI(WHOLE, MAPS) @ Phased(PHASE),
    "coils, a quarter": lambda: MultiCoilMRI(QUARTER, MAPS) @ Phased(PHASE),
    "coils, lines along rows": lambda: MultiCoilMRI(QUARTER.mT.contiguous(), MAPS) @ Phased(PHASE),
    "spokes on a grid": lambda: MultiCoilMRI(radial_mask(SIZE, 40), MAPS) @ Phased(PHASE),
    "natural order": lambda: Fourier(torch.ones(SIZE)),
    "few views": lambda: ParallelBeam(views(30), SIZE, spacing=1 / 128, pixel=1 / 128),
    "many views": lambda: ParallelBeam(views(120), SIZE, spacing=1 / 128, pixel=1 / 128),
}
# white noise of this standard deviation, images in [0, 1]; sinograms reach 0.4 to 0.6
ENOUGH = {"few views": (0.005, 0.02), "many views": (0.003, 0.02)}


@pytest.mark.parametrize("image", ["axial", "sagittal", "phantom-0"])
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_noise_within_a_fifth_or_an_upper_bound(instrument: str, image: str) -> None:
    operator, x = INSTRUMENTS[instrument](), picture(image)
    for sigma in ENOUGH.get(instrument, (0.03, 0.1)):
        ratio, _ = found(operator, x, sigma)
        assert 0.85 < ratio < 1.2, (sigma, ratio)
    for sigma in (1e-2, 1e-3, 1e-4):
        ratio, upper = found(operator, x, sigma * ENOUGH.get(instrument, (0.03,))[0] / 0.03)
        assert ratio > 0.85
        assert upper or ratio < 1.3, (sigma, ratio)
    assert upper  # what is left at 1e-4 is not noise, and the estimate says so


@pytest.mark.parametrize(("image", "enough"), [("mountain", 0.1), ("dahlia", 0.1)])
@pytest.mark.parametrize("pattern", ["rggb", "gbrg"])
def test_the_noise_of_a_mosaic(image: str, enough: float, pattern: str) -> None:
    operator, x = Mosaic(pattern), picture(image)
    for sigma in (enough, 3 * enough):
        ratio, _ = found(operator, x, sigma)
        assert 0.9 < ratio < 1.2, (sigma, ratio)
    for sigma in (1e-2, 1e-3):
        ratio, upper = found(operator, x, sigma)
        assert ratio > 0.9
        assert upper
    flat = 0.25 + 0.0 * x + torch.linspace(0, 0.3, 128)  # colours of their own, no texture
    flat = flat * torch.tensor([1.0, 0.6, 0.3])[:, None, None]
    for sigma in (1e-3, 1e-2):
        ratio, upper = found(operator, flat, sigma)
        assert ratio == pytest.approx(1, abs=0.1)
        assert not upper


def test_noise_of_points_of_the_fourier_plane() -> None:
    x = picture("axial")
    x = torch.cat([x, torch.zeros_like(x)], 1)[..., 32:96, 32:96]
    ratio, _ = found(NonCartesianMRI(radial_trajectory(60, 128), (64, 64), birdcage_maps(2, (64, 64))), x, 0.1)
    assert 0.85 < ratio < 1.2
    uv = 20e3 * (torch.rand(3000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1)
    ratio, _ = found(Interferometer(uv, (64, 64), 4.0), x[:, :1], 0.1)
    assert 0.85 < ratio < 1.2


def test_pure_noise_is_not_called_a_bound_and_rows_are_their_own() -> None:
    y = torch.randn(2, 4, 96, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[1] *= 7
    for operator in (Mosaic(), ParallelBeam(views(4), (8, 8)), FourierMagnitude((4, 48, 40))):
        data = y[:, :1] if isinstance(operator, Mosaic) else y
        level = noise_level(data, operator)
        assert torch.allclose(level.sigma, torch.tensor([1.0, 7.0]).double(), rtol=0.06)
        assert not level.upper.any()
        assert torch.equal(noise_level(data[1:], operator).sigma, level.sigma[1:])


def test_lines_that_are_missing_or_saturated() -> None:
    z = torch.view_as_complex(torch.randn(1, 2, 64, 64, 2, generator=torch.Generator().manual_seed(0)))
    mask = random_lines((64, 64), 2)
    mask[:, :8] = 0  # columns that were never measured
    layout = kspace(z * mask, mask)
    assert layout.fine.shape[1] == 4
    assert layout.coarse is not None
    assert float(layout.fine.std()) == pytest.approx(1, rel=0.1)
    flat = torch.full((1, 1, 64, 64), 0.5)
    assert float(noise_level(flat, Mosaic()).sigma) == 0
    with pytest.raises(InputError, match="too small"):
        noise_level(flat[..., :4, :4], Mosaic())
