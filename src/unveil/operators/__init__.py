"""Operators: the deterministic part of a measurement, y = A(x)."""

from __future__ import annotations

from ..registry import lookup
from .adapters import as_operator
from .base import Linear, Operator, Parametric, Spectral
from .blur import Blur
from .channels import Grayscale
from .coils import MultiCoilMRI, birdcage_maps, espirit_maps, low_resolution_maps
from .combine import add, compose, stack
from .elementary import Identity, Inpainting
from .fourier import MRI, Fourier
from .hadamard import WalshHadamard
from .jpeg import JPEG
from .kernels import (
    box_kernel,
    disk_kernel,
    gaussian_kernel,
    motion_kernel,
    path_kernel,
    random_motion_kernel,
    read_kernel,
)
from .masks import (
    equispaced_lines,
    radial_mask,
    radial_trajectory,
    random_lines,
    spiral_trajectory,
    uv_coverage,
)
from .matrix import Matrix
from .mosaic import Mosaic
from .nufft import Interferometer, NonCartesianMRI, NonuniformFourier
from .phase import CodedDiffraction, FourierMagnitude, Magnitude, RandomMagnitude
from .phased import Phased
from .resize import Downsample
from .response import Clip, HighDynamicRange, NonlinearBlur, Quantize
from .sensing import RandomSensing, SinglePixel, gaussian_matrix
from .superresolution import SuperResolution
from .tomography import PET, ConeBeam, FanBeam, ParallelBeam, views
from .varying import VaryingBlur
from .weights import Weights

__all__ = [
    "JPEG",
    "MRI",
    "PET",
    "Blur",
    "Clip",
    "CodedDiffraction",
    "ConeBeam",
    "Downsample",
    "FanBeam",
    "Fourier",
    "FourierMagnitude",
    "Grayscale",
    "HighDynamicRange",
    "Identity",
    "Inpainting",
    "Interferometer",
    "Linear",
    "Magnitude",
    "Matrix",
    "Mosaic",
    "MultiCoilMRI",
    "NonCartesianMRI",
    "NonlinearBlur",
    "NonuniformFourier",
    "Operator",
    "ParallelBeam",
    "Parametric",
    "Phased",
    "Quantize",
    "RandomMagnitude",
    "RandomSensing",
    "SinglePixel",
    "Spectral",
    "SuperResolution",
    "VaryingBlur",
    "WalshHadamard",
    "Weights",
    "add",
    "as_operator",
    "birdcage_maps",
    "box_kernel",
    "compose",
    "disk_kernel",
    "equispaced_lines",
    "espirit_maps",
    "example_operator",
    "gaussian_kernel",
    "gaussian_matrix",
    "low_resolution_maps",
    "motion_kernel",
    "path_kernel",
    "radial_mask",
    "radial_trajectory",
    "random_lines",
    "random_motion_kernel",
    "read_kernel",
    "spiral_trajectory",
    "stack",
    "uv_coverage",
    "views",
]


def example_operator(name: str) -> Operator:
    """A small instance of the operator registered as ``name``, its ``in_shape`` known: what its class's
    ``example`` makes.

    Raises :class:`UnknownName` for a name that is not registered.
    """
    operator: Operator = lookup("operator", name).example()
    return operator
