"""Noise models: how a measurement y scatters around the clean one, A(x0)."""

from __future__ import annotations

from .base import Noise
from .counting import Poisson, PoissonGaussian, Speckle
from .detectors import Clipped, Impulse, Laplace, Quantisation, Rician
from .estimate import NoiseLevel, estimate_poisson_gaussian, estimate_sigma, noise_level
from .gaussian import CirculantGaussian, DiagonalGaussian, FullGaussian, Gaussian, NoNoise
from .reward import Reward

__all__ = [
    "CirculantGaussian",
    "Clipped",
    "DiagonalGaussian",
    "FullGaussian",
    "Gaussian",
    "Impulse",
    "Laplace",
    "NoNoise",
    "Noise",
    "NoiseLevel",
    "Poisson",
    "PoissonGaussian",
    "Quantisation",
    "Reward",
    "Rician",
    "Speckle",
    "estimate_poisson_gaussian",
    "estimate_sigma",
    "noise_level",
]
