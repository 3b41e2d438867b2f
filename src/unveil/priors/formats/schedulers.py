"""Scheduler configurations of diffusers, read for what a prior needs of them: kernel, prediction, clipping, variance.

How a scheduler samples (its steps, solver order, spacing, Karras sigmas, dynamic thresholding) is none of a prior's
business and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, unknown
from ..adapters import Prediction
from ..kernels import DDPM, EDM, VE, Kernel, RectifiedFlow
from ..variance import Variance

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
# what a key that is left out means, where it is not the same for all: betas from 1e-4 to 0.02, no clipping
DISCRETE: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"clip_sample": True},
    "DDPMParallelScheduler": {"clip_sample": True},
    "DDIMScheduler": {"clip_sample": True},
    "DDIMParallelScheduler": {"clip_sample": True},
    "PNDMScheduler": {},
    "DEISMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": LATENT,
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": LATENT,
    "KDPM2DiscreteScheduler": LATENT,
    "KDPM2AncestralDiscreteScheduler": LATENT,
    "LMSDiscreteScheduler": {},
}
EDM_KINDS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW_KINDS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


@dataclass(frozen=True)
class Setting:
    """What a scheduler's configuration says of the network."""

    schedule: Kernel
    predicts: Prediction
    clip: bool | tuple[float, float] = False
    variance: Variance | None = None
    sigma_data: float = 0.5
    negative: bool = False
    """The network returns minus the raw output of EDM (its v-prediction)."""


def read_scheduler(config: Mapping[str, Any]) -> Setting:
    """The setting of a ``scheduler_config.json``; raises :class:`InputError` for one that no kernel here describes."""
    kind = str(config.get("_class_name", ""))
    try:
        return _read(kind, config)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{kind} with a value of another kind than its key's: {error}") from None


def _read(kind: str, config: Mapping[str, Any]) -> Setting:
    if kind in DISCRETE:
        return _discrete(kind, {**DISCRETE[kind], **{k: v for k, v in config.items() if v is not None}})
    if kind in FLOW_KINDS:
        return _flow(config)
    if kind in EDM_KINDS:
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise InputError(f"{kind} with prediction_type '{prediction}' is not known here: epsilon or v_prediction")
        kernel = EDM(float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0)))
        data = float(config.get("sigma_data", 0.5))
        return Setting(kernel, "edm", sigma_data=data, negative=prediction == "v_prediction")
    if kind == "ScoreSdeVeScheduler":
        return Setting(VE(float(config.get("sigma_min", 0.01)), float(config.get("sigma_max", 1348.0))), "score")
    raise unknown("scheduler", kind, [*DISCRETE, *FLOW_KINDS, *EDM_KINDS, "ScoreSdeVeScheduler"])


def _flow(config: Mapping[str, Any]) -> Setting:
    return Setting(RectifiedFlow(time_scale=float(config.get("num_train_timesteps", 1000))), "flow")


def _discrete(kind: str, config: Mapping[str, Any]) -> Setting:
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(f"{kind}: unknown prediction_type '{prediction}': one of {', '.join(PREDICTIONS)}")
    if prediction == "flow_prediction":
        return _flow(config)
    if config.get("timestep_type") == "continuous":
        raise InputError(f"{kind} with timestep_type 'continuous' is not known here: wrap the network with as_prior")
    abar = np.cumprod(1 - _betas(kind, config))
    if config.get("rescale_betas_zero_snr"):  # Lin et al. 2023, arXiv 2305.08891, algorithm 1
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    levels = tuple(float(a) for a in abar if a > 0)  # the last is pure noise then: no sigma stands for it
    clip: bool | tuple[float, float] = bool(config.get("clip_sample", False))
    extent = float(config.get("clip_sample_range", 1.0))
    if clip and extent != 1:
        clip = (-extent, extent)
    kinds: dict[str, Variance] = {"learned": "learned", "learned_range": "learned_range"}
    return Setting(DDPM(levels), PREDICTIONS[prediction], clip, kinds.get(str(config.get("variance_type"))))


def _betas(kind: str, config: Mapping[str, Any]) -> np.ndarray:
    steps = int(config.get("num_train_timesteps", 1000))
    low, high = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    shape = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if shape == "linear":
        return np.linspace(low, high, steps)
    if shape == "scaled_linear":
        return np.linspace(math.sqrt(low), math.sqrt(high), steps) ** 2
    if shape == "sigmoid":
        return (high - low) / (1 + np.exp(-np.linspace(-6, 6, steps))) + low
    if shape == "squaredcos_cap_v2":
        t = np.arange(steps + 1) / steps
        curve = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas: np.ndarray = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        return betas
    raise InputError(
        f"{kind}: the beta_schedule '{shape}' is not known here: linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    )
