"""unveil: signals from incomplete, noisy, non-linear measurements, with diffusion and flow models as priors.

problem = unveil.Problem(y, unveil.operators.Blur(kernel), unveil.Gaussian(0.05))
result = unveil.solve(problem, unveil.load_prior("photos"), "daps", samples=16)
result.mean, result.std, result.interval(0.9)

Names are imported when they are first used (PEP 562), so that the command line answers ``--help`` without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import errors as errors
    from . import metrics as metrics
    from . import noise as noise
    from . import operators as operators
    from . import priors as priors
    from . import problem as problem
    from . import registry as registry
    from . import run as run
    from . import schedules as schedules
    from . import solvers as solvers
    from . import tuning as tuning
    from .errors import CheckpointError, InputError, NotCompatible, UnknownName, UnveilError
    from .noise import Gaussian, Noise, NoNoise, Poisson, PoissonGaussian, Reward, estimate_sigma
    from .operators import as_operator, example_operator
    from .priors import GaussianMixturePrior, GaussianPrior, Prior, as_prior, load_prior
    from .problem import Problem
    from .registry import register
    from .run import Budget, Comparison, Result, Status, Stream, compare, fit, sample, solve, stream
    from .schedules import Schedule
    from .solvers import Run, Solver, State, get_solver, list_solvers
    from .tuning import tune

_MODULES = (
    "errors", "metrics", "noise", "operators", "priors", "problem", "registry", "run", "schedules", "solvers",
    "tuning",
)  # fmt: skip
_HOME = {
    "errors": ("CheckpointError", "InputError", "NotCompatible", "UnknownName", "UnveilError"),
    "noise": ("Gaussian", "NoNoise", "Noise", "Poisson", "PoissonGaussian", "Reward", "estimate_sigma"),
    "operators": ("as_operator", "example_operator"),
    "priors": ("GaussianMixturePrior", "GaussianPrior", "Prior", "as_prior", "load_prior"),
    "problem": ("Problem",),
    "registry": ("register",),
    "run": ("Budget", "Comparison", "Result", "Status", "Stream", "compare", "fit", "sample", "solve", "stream"),
    "schedules": ("Schedule",),
    "solvers": ("Run", "Solver", "State", "get_solver", "list_solvers"),
    "tuning": ("tune",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def list_operators() -> list[str]:
    """Names of the registered operators."""
    from .registry import names

    return names("operator")


def list_priors() -> list[str]:
    """Names of the priors that ship and of those that installed packages add."""
    from .registry import names

    return names("prior")


if not TYPE_CHECKING:  # a type checker that sees it takes every name for granted

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name not in _MODULE_OF:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_MODULE_OF})


__all__ = [
    "Budget",
    "CheckpointError",
    "Comparison",
    "Gaussian",
    "GaussianMixturePrior",
    "GaussianPrior",
    "InputError",
    "NoNoise",
    "Noise",
    "NotCompatible",
    "Poisson",
    "PoissonGaussian",
    "Prior",
    "Problem",
    "Result",
    "Reward",
    "Run",
    "Schedule",
    "Solver",
    "State",
    "Status",
    "Stream",
    "UnknownName",
    "UnveilError",
    "__version__",
    "as_operator",
    "as_prior",
    "compare",
    "estimate_sigma",
    "example_operator",
    "fit",
    "get_solver",
    "list_operators",
    "list_priors",
    "list_solvers",
    "load_prior",
    "operators",
    "register",
    "sample",
    "schedules",
    "solve",
    "stream",
    "tune",
]
