"""Any network as a prior: the border between a network's own coordinates and x = x0 + sigma * eps.

All conversions are the general form of Tweedie's theorem with the scale divided out (Karras et al. 2022,
arXiv 2206.00364, appendix B and C; flow velocities as in Lipman et al. 2023, arXiv 2210.02747). With s = s_t,
sigma = sigma_t / s_t and the network fed s x, a denoiser is

    x0     D = F
    eps    D = x - sigma F
    score  D = x + s sigma^2 F                    F = grad log p_t(s x)
    v      D = (x - (sigma / s) F) / (1 + sigma^2)                          F = s eps - sigma_t x0
    flow   D = x - sigma / (sigma_t' - sigma s_t') (F - s_t' x)             F = s_t' x0 + sigma_t' eps
    edm    D = c_skip x + c_out F(c_in x, ln(sigma) / 4)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..io.digest import digest
from ..shapes import Signals
from .base import Prior, Sigma, expand
from .kernels import DDPM, EDM, Kernel
from .variance import Variance, posterior_variance

Prediction = Literal["x0", "eps", "v", "score", "flow", "edm"]
Network = Callable[..., Any]
Call = Callable[..., Any]
"""(module, x [N, ...], time [N], **condition) -> Tensor, or a tuple or object with .sample that holds it."""


@dataclass(frozen=True, eq=False)
class NetworkPrior(Prior):
    """A prior made of a network; build one with :func:`as_prior`, whose arguments its fields are."""

    module: Network
    predicts: Prediction
    schedule: Kernel
    value_range: tuple[float, float]
    shape: tuple[int | None, ...]
    sigma_range: tuple[float, float]
    channels: int | None = None
    clip: bool | tuple[float, float] = False
    sigma_data: float = 0.5
    time_dtype: torch.dtype | None = None
    call: Call | None = None
    conditions: tuple[str, ...] | None = None
    name: str = ""
    variance: Variance | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    texts: Callable[[str], Tensor] | None = None
    classes: int = 0
    """The number of labels, where it is known."""
    text_size: int = 0
    """The length of a text's embedding, where it is known."""
    _memo: dict[str, str] = field(default_factory=dict, repr=False)

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        """E[x0 | x], x [N, *shape] in ``value_range``.

        Outside ``sigma_range`` the network is told the nearest level that it knows, while the formula around
        it keeps the true sigma. x may be of another dtype than the network, which then runs in its own.
        """
        return self._denoise(x, sigma)[0]

    def moments(self, x: Signals, sigma: Sigma) -> tuple[Signals, Signals]:
        """E[x0 | x] and the variance of each entry, for networks that learnt one (:mod:`unveil.priors.variance`).

        The variance is that of the network's nearest level; both are in the units of ``value_range``, [N, *shape].
        Raises :class:`InputError` for a network without a learnt variance.
        """
        if self.variance is None or not isinstance(self.schedule, DDPM):
            raise InputError("this network learnt no variance: as_prior(variance='learned_range') says that one did")
        x0, rest = self._denoise(x, sigma)
        index = self._time(_clamp(sigma, *self.sigma_range), len(x), x.device, torch.float32).round()
        return x0, posterior_variance(rest, index, self.schedule, self.variance)

    def _denoise(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """The denoiser, and what the network returned behind its prediction."""
        self._check(x)
        known = _clamp(sigma, *self.sigma_range)
        if self.predicts == "edm":
            data = self.sigma_data
            total = data * data + sigma * sigma
            c_in = 1 / total**0.5
            out, rest = self._evaluate(x, c_in, known)
            x0 = expand(data * data / total, x) * x + expand(sigma * data * c_in, x) * out
        else:
            s = self.schedule.scale(sigma)
            out, rest = self._evaluate(x, s, known)
            x0 = self._tweedie(x, out, s, sigma)
        if self.clip:
            low, high = self.value_range if isinstance(self.clip, bool) else self.clip
            x0 = x0.clamp(low, high)
        return x0, rest

    def _tweedie(self, x: Tensor, out: Tensor, s: Sigma, sigma: Sigma) -> Tensor:
        if self.predicts == "x0":
            return out
        if self.predicts == "eps":
            return x - expand(sigma, x) * out
        if self.predicts == "score":
            return x + expand(s * sigma * sigma, x) * out
        if self.predicts == "v":
            gain = 1 / (1 + sigma * sigma)
            return expand(gain, x) * x - expand(sigma / s * gain, x) * out
        # some kernels have an infinite sigma_t' at sigma = 0, where the factor of F vanishes anyway
        ds, dsigma = self.schedule.derivatives(_clamp(sigma, self.sigma_range[0], math.inf))
        return x - expand(sigma / (dsigma - sigma * ds), x) * (out - expand(ds, x) * x)

    def _evaluate(self, x: Tensor, scale: Sigma, known: Sigma) -> tuple[Tensor, Tensor]:
        """The network's output at scale * x, cast to the dtype of x, [N, *shape], and its further channels."""
        dtype = _dtype(self.module) or x.dtype
        scaled = x if isinstance(scale, float) and scale == 1 else x * expand(scale, x)
        time = self._time(known, x.shape[0], x.device, dtype)
        condition = {k: _rows(k, v, x) for k, v in self.condition.items()}
        out: Any
        if self.call is not None:
            out = self.call(self.module, scaled.to(dtype), time, **condition)
        else:
            out = self.module(scaled.to(dtype), time, **condition)
        out = getattr(out, "sample", out)  # diffusers' output objects
        if isinstance(out, tuple | list):
            out = out[0]
        rest = out[:, :0]
        if self.channels is not None:
            out, rest = out[:, : self.channels], out[:, self.channels :]
        if out.shape != x.shape:
            raise InputError(
                f"the network returned {tuple(out.shape)} for x {tuple(x.shape)}: pass "
                "as_prior(channels=...) to keep the first channels (learnt variances "
                "follow), or call= to pick the output"
            )
        return out.to(x.dtype), rest.to(x.dtype)

    def _time(self, known: Sigma, n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        t = self.schedule.time(known)
        dtype = self.time_dtype or dtype
        if isinstance(t, Tensor):
            return t.to(device=device, dtype=dtype).expand(n)
        return torch.full((n,), t, dtype=dtype, device=device)

    def _check(self, x: Tensor) -> None:
        if x.ndim != len(self.shape) + 1 or any(
            want is not None and want != got for want, got in zip(self.shape, x.shape[1:], strict=True)
        ):
            wanted = ", ".join("any" if s is None else str(s) for s in self.shape)
            raise InputError(f"the prior's signals are [N, {wanted}], got {tuple(x.shape)}")

    def given(self, **condition: Any) -> NetworkPrior:
        """The prior with keyword arguments of the network fixed.

        A tensor has a batch axis, of one row (for every sample) or of as many rows as x; an integer or a
        float becomes a tensor [N]; labels may be a list or an array; a text becomes its embedding, if the prior has
        ``texts``; anything else is handed on as it is.

        Raises :class:`InputError` for a condition that the network does not take, a label that it has not learnt, or
        an embedding of another length.
        """
        if self.classes and condition.get("label") is not None:
            condition["label"] = self._labels(condition["label"])
        if self.texts is not None:
            condition = {k: self.texts(v) if isinstance(v, str) else v for k, v in condition.items()}
        text = condition.get("text")
        if self.text_size and text is not None:
            shape = tuple(text.shape) if isinstance(text, Tensor) else type(text).__name__
            if not isinstance(text, Tensor) or text.shape[1:] != (self.text_size,):
                raise InputError(f"the network takes embeddings of texts [N, {self.text_size}], not {shape}")
        if self.conditions is not None:
            unknown = sorted(set(condition) - set(self.conditions))
            if unknown:
                known = ", ".join(self.conditions) or "none"
                raise InputError(f"the network takes no condition '{unknown[0]}': it takes {known}")
        return replace(self, condition={**self.condition, **condition})

    def _labels(self, label: Any) -> int | Tensor:
        """One label, or a tensor [N] of them."""
        try:
            labels = torch.as_tensor(label)
            strange = [k for k in labels.flatten().tolist() if k not in range(self.classes)]
        except (TypeError, ValueError, RuntimeError):  # a word
            labels, strange = torch.empty(0), [repr(label)]
        if strange or labels.ndim > 1:
            wrong = strange[0] if strange else f"those of shape {tuple(labels.shape)}"
            raise InputError(f"the network knows labels 0 to {self.classes - 1}, one or a list of them, not {wrong}")
        return labels.long() if labels.ndim else int(labels)

    def to(self, device: torch.device | str) -> NetworkPrior:
        """The prior on ``device``. This one stays where it is: its network is copied if it has to move."""
        target = torch.device(device)
        condition = {k: v.to(target) if isinstance(v, Tensor) else v for k, v in self.condition.items()}
        module = self.module
        if isinstance(module, nn.Module):
            places = {t.device for t in (*module.parameters(), *module.buffers())}
            if any(p.type != target.type or target.index not in (None, p.index) for p in places):
                module = deepcopy(module).to(target)
        return replace(self, module=module, condition=condition)

    def describe(self) -> dict[str, Any]:
        """Name, prediction, kernel and ranges, the condition, and a digest of the weights (computed once)."""
        if "weights" not in self._memo:
            module = self.module
            plain = getattr(module, "__qualname__", type(module).__qualname__)
            self._memo["weights"] = digest(module.state_dict()) if isinstance(module, nn.Module) else plain
        out: dict[str, Any] = {
            "name": self.name or type(self.module).__name__,
            "predicts": self.predicts,
            "schedule": self.schedule.describe(),
            "value_range": list(self.value_range),
            # in the units of training, whatever units the prior is handed out in
            "trained": {"value_range": list(self.value_range), "sigma_range": list(self.sigma_range)},
            "weights": self._memo["weights"],
        }
        if self.predicts == "edm":
            out["sigma_data"] = self.sigma_data
        if self.clip:
            out["clip"] = True if isinstance(self.clip, bool) else list(self.clip)
        if self.condition:
            out["condition"] = {
                k: v if isinstance(v, str | int | float | bool) else digest(v) for k, v in self.condition.items()
            }
        return out


def as_prior(
    module: Network,
    *,
    predicts: Prediction,
    value_range: tuple[float, float],
    schedule: Kernel | None = None,
    shape: Sequence[int | None],
    sigma_range: tuple[float, float] | None = None,
    channels: int | None = None,
    clip: bool | tuple[float, float] = False,
    sigma_data: float = 0.5,
    time_dtype: torch.dtype | None = None,
    call: Call | None = None,
    conditions: Sequence[str] | None = None,
    name: str = "",
    variance: Variance | None = None,
    classes: int = 0,
) -> NetworkPrior:
    """Make a prior of a pretrained network ``module(x, time)``, any ``nn.Module`` or function.

    Parameters
    ----------
    predicts:
        What it returns: ``x0``; ``eps``, the noise; ``v`` = s eps - sigma_t x0; ``score`` = grad log p_t;
        ``flow``, the velocity s' x0 + sigma_t' eps; ``edm``, the raw network inside Karras' preconditioning.
    value_range:
        The units it was trained in, usually (-1, 1). Convert the prior afterwards with ``.in_range(0, 1)``.
    schedule:
        The kernel it was trained with (:mod:`unveil.priors.kernels`); ``edm`` implies ``EDM()``.
    shape:
        Shape of a sample without batch axis, ``None`` for any size: ``(3, None, None)``.
    sigma_range:
        Noise levels, in the units of ``value_range``, at which to trust it; by default all that the kernel
        knows.
    channels:
        Keep only so many output channels (3 of the 6 of networks that also predict a variance).
    clip:
        Clip x0 to the value range, or to (lo, hi). Biases every posterior; off by default.
    sigma_data:
        Standard deviation of the data, for ``edm`` only.
    time_dtype:
        Dtype of the time argument, by default that of the weights; ``torch.long`` for embedding tables.
    call:
        ``(module, x, time, **condition) -> output`` for networks that are called differently.
    conditions:
        Names that :meth:`NetworkPrior.given` accepts; read off the network's signature by default.
    variance:
        What as many output channels again, behind the prediction, say of the variance of a reverse step: its logarithm
        (``learned``) or where that lies between its bounds (``learned_range``). Needs a DDPM schedule, and is used by
        :meth:`NetworkPrior.moments` alone.
    classes:
        The number of labels, of which :meth:`NetworkPrior.given` then refuses others; 0 where it is not known.

    The module is put in evaluation mode and its parameters stop requiring gradients: pass a copy if you go on
    training it. Raises :class:`InputError` for arguments that do not fit each other.
    """
    if predicts not in get_args(Prediction):
        raise InputError(f"unknown prediction '{predicts}': one of {', '.join(get_args(Prediction))}")
    if predicts == "edm":
        schedule = EDM() if schedule is None else schedule
        if not isinstance(schedule, EDM):
            raise InputError("predicts='edm' is Karras' preconditioning and takes schedule=EDM() or none")
        if not sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {sigma_data}")
    if schedule is None:
        raise InputError(f"predicts='{predicts}' needs schedule=..., the kernel the network was trained with")
    if predicts == "flow":
        schedule.derivatives(schedule.sigma_range[0])  # raises for kernels without a velocity
    lo, hi = value_range
    if not hi > lo:
        raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
    low, high = sigma_range or schedule.sigma_range
    if not 0 < low < high < math.inf:
        raise InputError(f"sigma_range must be 0 < low < high, got ({low}, {high})")
    whole = isinstance(schedule, DDPM) and schedule.rounding == "nearest"
    if time_dtype is not None and not time_dtype.is_floating_point and not whole:
        raise InputError("an integer time_dtype needs a DDPM schedule with rounding='nearest'")
    if variance is not None:
        if variance not in get_args(Variance):
            raise InputError(f"unknown variance '{variance}': one of {', '.join(get_args(Variance))}")
        if not isinstance(schedule, DDPM) or not shape or shape[0] is None:
            raise InputError("a learnt variance needs a DDPM schedule, and a shape that says the number of channels")
        channels = shape[0] if channels is None else channels
    if isinstance(module, nn.Module):
        module.eval().requires_grad_(False)
    accepted = _accepted(call, module) if conditions is None else tuple(conditions)
    return NetworkPrior(
        module,
        predicts,
        schedule,
        (float(lo), float(hi)),
        tuple(shape),
        (float(low), float(high)),
        channels,
        clip,
        sigma_data,
        time_dtype,
        call,
        accepted,
        name,
        variance,
        classes=classes,
    )


def _accepted(call: Call | None, module: Network) -> tuple[str, ...] | None:
    """Names of the keyword arguments after (x, time); None if they cannot be known."""
    function = call or (module.forward if isinstance(module, nn.Module) else module)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[3 if call else 2 :] if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY))


def _clamp(sigma: Sigma, low: float, high: float) -> Sigma:
    return sigma.clamp(low, high) if isinstance(sigma, Tensor) else min(max(float(sigma), low), high)


def _dtype(module: Network) -> torch.dtype | None:
    """Dtype of the network's weights, None without any."""
    if isinstance(module, nn.Module):
        for p in module.parameters():
            if p.is_floating_point():
                return p.dtype
    return None


def _rows(name: str, value: Any, x: Tensor) -> Any:
    """A condition for each row of x."""
    n = x.shape[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.full((n,), value, device=x.device)
    if not isinstance(value, Tensor):
        return value
    value = value[None] if value.ndim == 0 else value
    if value.shape[0] not in (1, n):
        raise InputError(f"condition '{name}' has {value.shape[0]} rows for {n} samples: give it 1 row or {n}")
    return value.expand(n, *value.shape[1:])
