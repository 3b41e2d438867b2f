"""Priors: signal distributions, known through their denoisers."""

from .adapters import NetworkPrior, as_prior
from .base import Prior, Sigma
from .checks import check_prior
from .combinators import Averaged, Complex, Guided, HalfPrecision, Mirrored, Tiled
from .counted import Cost, Counted
from .gaussian import GaussianPrior
from .kernels import DDPM, EDM, VE, Kernel, RectifiedFlow, SubVP, TrigFlow, VPLinear, ddpm_cosine, ddpm_linear
from .latent import Autoencoder, load_autoencoder
from .loaders import autoencoders, load_prior, prior_card, register_zoo, save_prior
from .mixture import GaussianMixturePrior
from .networks.lean import lean

register_zoo()

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "Autoencoder",
    "Averaged",
    "Complex",
    "Cost",
    "Counted",
    "GaussianMixturePrior",
    "GaussianPrior",
    "Guided",
    "HalfPrecision",
    "Kernel",
    "Mirrored",
    "NetworkPrior",
    "Prior",
    "RectifiedFlow",
    "Sigma",
    "SubVP",
    "Tiled",
    "TrigFlow",
    "VPLinear",
    "as_prior",
    "autoencoders",
    "check_prior",
    "ddpm_cosine",
    "ddpm_linear",
    "lean",
    "load_autoencoder",
    "load_prior",
    "prior_card",
    "save_prior",
]
