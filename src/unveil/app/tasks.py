"""The tasks of ``unveil restore``: from words to operators, and the settings that suit each one."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..io.images import read_image
from ..operators import Blur, Downsample, Grayscale, Identity, Inpainting, Operator, kernels
from ..operators.blur import BOUNDARIES
from ..operators.resize import KINDS
from ..priors.base import Prior
from ..problem import Problem
from ..rng import single
from ..solvers import Choice, choose, get_solver
from ..solvers.base import Solver
from .device import pick

TASKS = ("inpaint", "deblur", "superres", "denoise", "colorize")
GOALS = ("sample", "mmse", "map")

OWN: dict[str, tuple[str, ...]] = {
    "mask": ("inpaint",),
    "kernel": ("deblur",),
    "boundary": ("deblur",),
    "scale": ("superres",),
    "kind": ("superres",),
}
"""Options that belong to some tasks only."""

SIMULATED: dict[str, Any] = {
    "mask": "random:0.7",
    "kernel": "gaussian:2",
    "boundary": "circular",
    "scale": 4,
    "kind": "bicubic",
    "noise": 0.02,
}
MEASURED: dict[str, Any] = {"boundary": "reflect", "scale": 4, "kind": "bicubic", "noise": 0.01}
"""What is not said, is this."""

STEPS = {
    "aps": 250,
    "bird": 60,
    "ccdf": 20,
    "daps": 60,
    "davi": 150,
    "dcdp": 8,
    "ddnm": 50,
    "ddpg": 60,
    "ddrm": 20,
    "dds": 50,
    "diffpir": 60,
    "ddsmc": 30,
    "dmplug": 40,
    "dpg": 40,
    "dps": 100,
    "eki": 30,
    "enkg": 15,
    "fk-steering": 30,
    "flair": 40,
    "fps": 60,
    "fps-smc": 30,
    "ilvr": 60,
    "kadkhodaie-simoncelli": 60,
    "mcgdiff": 30,
    "mmps": 60,
    "pigdm": 60,
    "pmc": 100,
    "pnp-dm": 12,
    "projdiff": 50,
    "red-diff": 100,
    "repaint": 20,
    "resample": 50,
    "rsld": 100,
    "scg": 20,
    "score-ald": 100,
    "score-prior": 40,
    "score-prior-surrogate": 250,
    "score-sde": 30,
    "sds": 100,
    "smcdiff": 30,
    "sitcom": 10,
    "smrd": 25,
    "snips": 100,
    "tds": 30,
}
"""Steps that restore a photograph of 256 x 256 in well under a minute on two cores; else the solver's own number.

Those that learn (aps, davi, score-prior, score-prior-surrogate) take two to five minutes on 64 x 64 pixels.
"""

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("aps", ""): {"batch": 8, "measurements": 2, "prior_steps": 6},
    ("bird", ""): {"ddim_steps": 3, "lr": 0.05},
    ("bird", "inpaint"): {"lr": 0.1},
    ("ccdf", "inpaint"): {"sigma_start": 5.0},
    ("ccdf", "colorize"): {"sigma_start": 5.0},
    ("davi", ""): {
        "batch": 16,
        "measurements": 4,
        "prior_steps": 6,
        "hidden": 32,
        "perturb": 0.03,
        "lam": 1.0,
        "skew": 1.0,
        "lag": 1.0,
    },
    ("dcdp", ""): {"purify_steps": 6, "lr": 0.1},
    ("dcdp", "inpaint"): {"lr": 0.3},
    ("ddpg", ""): {"gamma": 30.0, "zeta": 1.0},
    ("ddpg", "inpaint"): {"decay": False},
    ("ddpg", "colorize"): {"decay": False},
    ("ddpg", "denoise"): {"gamma": 8.0, "zeta": 0.5},
    ("diffpir", ""): {"zeta": 1.0, "sigma_start": 1.0, "lam": 0.5},
    ("diffpir", "inpaint"): {"sigma_start": 2.0, "lam": 1.0},
    ("diffpir", "colorize"): {"sigma_start": 0.6, "spacing": "uniform"},
    ("dmplug", ""): {"ddim_steps": 2, "lr": 0.2},
    ("dps", ""): {"zeta": 3.0},  # the authors' 0.3 is for 1000 steps, each as long as one of 100
    ("lgd-mc", ""): {"zeta": 10.0},
    ("dmap", ""): {"zeta": 1.0},  # the same, of 0.1
    ("dpps", ""): {"zeta": 10.0},  # the same, of 1
    ("daps", ""): {"inner": "exact", "spread": 0.5, "sigma_start": 2.0},
    ("ddrm", ""): {"eta": 0.85},
    ("ddnm", ""): {"eta": 0.85},
    ("mmps", ""): {"iterations": 1},
    ("mpgd", ""): {"rate": 3.0, "eta": 1.0},
    ("mpgd", "colorize"): {"rate": 4.0},
    ("mpgd", "denoise"): {"rate": 0.85, "eta": 0.5},
    ("peng", ""): {"threshold": 0.2, "order": 1},
    ("pigdm", ""): {"weight": "added", "order": 1},
    ("pmc", ""): {"weight": 1.0, "step_size": 1.0, "anneal": 0.8},
    ("pmc", "superres"): {"sigma_end": 0.05},
    ("pmc", "denoise"): {"weight": 0.0, "step_size": 0.5, "anneal": 0.9},
    ("pnp-dm", ""): {"inner_steps": 6},
    ("projdiff", "deblur"): {"lr": 0.2},
    ("projdiff", "superres"): {"lr": 0.5},
    ("repaint", ""): {"jump_length": 5, "repeats": 3},
    ("resample", ""): {"every": 2},
    ("resample", "inpaint"): {"every": 1},
    ("rsld", ""): {"rho": 0.0, "lam": 0.5, "lr": 0.1, "decay": False},
    ("score-ald", ""): {"sigma_start": 1.5, "sigma_end": 0.06, "keep_level": True},
    ("score-prior", ""): {"batch": 2, "ode_steps": 6},
    ("score-prior-surrogate", ""): {"batch": 8, "lr": 0.02},
    ("sitcom", ""): {"inner_steps": 6, "lr": 0.05},
    ("smrd", ""): {"keep_level": True},
    ("tmpd", ""): {"order": 1},
    ("snips", ""): {"step_size": 1.0, "sigma_start": 1.5, "sigma_end": 0.06, "keep_level": True},
    ("red-diff", "inpaint"): {"lr": 0.1, "lam": 0.5},
    ("red-diff", "deblur"): {"lr": 0.1, "lam": 0.1},
}
"""Options by solver and task; "" means every task. What the user sets goes over them.

Chosen by PSNR on the central 128 x 128 pixels of the four photographs that ship, with the prior ``photos``;
those of bird, dcdp, dmplug, projdiff, resample and sitcom on 96 x 96 pixels of the first, for three of the tasks.
dmap has ten times its own zeta, as dps has; tried on 64 x 64 pixels of the third, for four tasks.
dpps, lgd-mc, mpgd, peng, rsld and tmpd were tried on 64 x 64 pixels of one or two of them, for two to seven tasks.
daps, mmps, pmc, score-ald, snips and smrd were tried on 32 x 32 pixels of the mountain.
"""


@dataclass(frozen=True)
class Asked:
    """Everything that a user can say about a restoration; :func:`resolve` fills in what is None."""

    task: str
    measured: bool = False
    mask: str | None = None
    kernel: str | None = None
    boundary: str | None = None
    scale: int | None = None
    kind: str | None = None
    noise: float | None = None
    solver: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    samples: int = 1
    steps: int | None = None
    seed: int = 0
    goal: str | None = None
    prior: str = "photos"
    chunk: str = "auto"
    threads: int | None = None
    device: str = "auto"
    sigma_start: float | None = None
    budget: str | None = None

    def table(self) -> dict[str, Any]:
        """As a recipe holds it: without what is None."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Asked:
        """From a recipe. Raises :class:`InputError` for a key that does not belong there."""
        known = {f.name for f in fields(cls)}
        for key in table:
            if key not in known:
                raise InputError(str(unknown("entry of [job]", key, known)))
        if "task" not in table:
            raise InputError("the recipe's [job] has no task")
        return cls(**table)


def resolve(asked: Asked) -> Asked:
    """Fill in the task's defaults and check every value that can be checked without the photograph."""
    if asked.task not in TASKS:
        raise unknown("task", asked.task, TASKS)
    for option, tasks in OWN.items():
        if getattr(asked, option) is not None and asked.task not in tasks:
            raise InputError(f"--{option} belongs to {' and '.join(tasks)}, not to {asked.task}: leave it out")
    if asked.measured:
        if asked.task == "inpaint" and asked.mask is None:
            raise InputError("a measured photograph to inpaint needs --mask FILE (white = known, black = missing)")
        if asked.task == "deblur" and asked.kernel is None:
            raise InputError(
                "a measured photograph to deblur needs --kernel FILE, or gaussian:STD, box:K, motion:LENGTH,ANGLE"
            )
        if asked.task == "denoise" and asked.noise is None:
            raise InputError("say how noisy the photograph is: --noise STD, in units where white is 1 (0.1 is strong)")
    defaults = MEASURED if asked.measured else SIMULATED
    filled = {k: v for k, v in defaults.items() if getattr(asked, k) is None and (k not in OWN or asked.task in OWN[k])}
    goal = asked.goal or ("mmse" if asked.samples == 1 else "sample")
    threads = torch.get_num_threads() if asked.threads is None else asked.threads
    asked = replace(asked, goal=goal, threads=threads, device=str(pick(asked.device)), **filled)
    _check(asked)
    return asked


def _check(asked: Asked) -> None:
    assert asked.noise is not None
    assert asked.threads is not None
    if not 0 <= asked.noise < float("inf"):
        raise InputError(f"--noise is a standard deviation >= 0 in units where white is 1, got {asked.noise:g}")
    if asked.noise > 2:
        raise InputError(
            f"--noise {asked.noise:g} is more than any image holds: white is 1 (say {asked.noise / 255:.3g}?)"
        )
    if asked.samples < 1:
        raise InputError(f"--samples must be at least 1, got {asked.samples}")
    if asked.steps is not None and asked.steps < 1:
        raise InputError(f"--steps must be at least 1, got {asked.steps}")
    if asked.threads < 1:
        raise InputError(f"--threads must be at least 1, got {asked.threads}")
    if not 0 <= asked.seed < 2**63:
        raise InputError(f"--seed is a number from 0 to 2^63 - 1, got {asked.seed}")
    if parse_budget(asked.budget) and asked.solver != "auto":
        raise InputError("--budget tells auto what to choose by: leave it out, or say --solver auto")
    if asked.sigma_start is not None and not 0 < asked.sigma_start < float("inf"):
        raise InputError(f"--sigma-start is a noise level > 0 in units where white is 1, got {asked.sigma_start:g}")
    if asked.scale is not None and asked.scale < 2:
        raise InputError(f"--scale is a whole number from 2 on, got {asked.scale}")
    if asked.goal not in GOALS:
        raise unknown("goal", str(asked.goal), GOALS)
    if asked.kind is not None and asked.kind not in KINDS:
        raise unknown("kind of downsampling", asked.kind, KINDS)
    if asked.boundary is not None and asked.boundary not in BOUNDARIES:
        raise unknown("boundary", asked.boundary, BOUNDARIES)
    if asked.chunk != "auto" and (not asked.chunk.isdigit() or int(asked.chunk) < 1):
        raise InputError(f"--chunk is 'auto' or a number from 1 on, got '{asked.chunk}'")


# -- masks and kernels -----------------------------------------------------------------------------------------------


def file_of(text: str | None, forms: tuple[str, ...]) -> Path | None:
    """The file that ``--mask`` or ``--kernel`` names, None if it is of the form NAME:NUMBERS."""
    return None if text is None or text.partition(":")[0] in forms else Path(text)


MASKS = ("random", "box")
KERNELS = ("gaussian", "box", "motion")


def read_mask(text: str, size: tuple[int, int], seed: int) -> Tensor:
    """The mask [H, W], 1 where a pixel is known, of a word or a file.

    ``random:SHARE`` is missing; ``box:SIZE`` or ``box:HxW`` is missing in the middle. In a file white is known and
    black is missing.
    """
    height, width = size
    path = file_of(text, MASKS)
    if path is not None:
        image, _ = read_image(path)
        if tuple(image.shape[1:]) != size:
            h, w = image.shape[1:]
            raise InputError(f"the mask {path} is {w} x {h} pixels, the photograph {width} x {height}: resize the mask")
        mask = (image.mean(0) > 0.5).float()
    else:
        name, _, numbers = text.partition(":")
        if name == "random":
            share = _numbers(text, numbers, 1)[0]
            if not 0 <= share < 1:
                raise InputError(f"--mask {text}: the share of missing pixels lies in [0, 1)")
            draws = single(seed, purpose="mask").uniform(torch.empty(1, height, width))
            mask = (draws[0] >= share).float()
        else:
            box = [int(n) for n in _numbers(text, numbers.replace("x", ","), None)]
            box = box * 2 if len(box) == 1 else box
            if len(box) != 2 or min(box) < 1 or box[0] > height or box[1] > width:
                raise InputError(f"--mask {text}: box:SIZE or box:HxW, at most {height}x{width}, the photograph's size")
            top, left = (height - box[0]) // 2, (width - box[1]) // 2
            mask = torch.ones(height, width)
            mask[top : top + box[0], left : left + box[1]] = 0
    if not bool(mask.any()):
        raise InputError(f"the mask {text} has no white pixel, nothing would be known: choose another --mask")
    return mask


def read_kernel(text: str) -> Tensor:
    """The kernel [h, w] of a word: ``gaussian:STD``, ``box:K``, ``motion:LENGTH,ANGLE``, or a file.

    A .npy or .txt file must sum to one; an image, whose brightness means nothing, is divided by its sum.
    """
    path = file_of(text, KERNELS)
    if path is not None:
        if not path.is_file():
            raise InputError(f"there is no kernel file {path} (or say {', '.join(f'{k}:...' for k in KERNELS)})")
        return kernels.read_kernel(path)
    name, _, numbers = text.partition(":")
    if name == "gaussian":
        return kernels.gaussian_kernel(_numbers(text, numbers, 1)[0])
    if name == "box":
        return kernels.box_kernel(int(_numbers(text, numbers, 1)[0]))
    values = _numbers(text, numbers, None)
    if len(values) not in (1, 2):
        raise InputError(f"--kernel {text}: say motion:LENGTH,ANGLE (pixels, degrees)")
    return kernels.motion_kernel(*values)


def _numbers(text: str, numbers: str, count: int | None) -> list[float]:
    try:
        values = [float(n) for n in numbers.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count) or not np.isfinite(values).all():
        raise InputError(f"cannot read '{text}': a number belongs after the colon, as in {text.partition(':')[0]}:2")
    return values


def operator_for(asked: Asked, parameters: dict[str, Tensor], shape: tuple[int, ...]) -> Operator:
    """The operator of a task on pictures [C, H, W]. Raises :class:`InputError` where the size does not fit."""
    if asked.task == "inpaint":
        return Inpainting(parameters["mask"], in_shape=shape)
    if asked.task == "deblur":
        return Blur(parameters["kernel"], asked.boundary or "circular", in_shape=shape)
    if asked.task == "superres":
        return Downsample(asked.scale or 4, asked.kind or "bicubic", in_shape=shape)
    if asked.task == "colorize":
        return Grayscale(in_shape=shape)
    return Identity(in_shape=shape)


# -- solvers ---------------------------------------------------------------------------------------------------------


def choice_for(asked: Asked, problem: Problem, prior: Prior | None = None) -> Choice | None:
    """What "auto" picks within the budget, None if the user named a solver."""
    if asked.solver != "auto":
        return None
    assert asked.goal is not None
    limits = parse_budget(asked.budget)
    return choose(problem, asked.goal, samples=asked.samples, steps=asked.steps, prior=prior, **limits)


def parse_budget(text: str | None) -> dict[str, float]:
    """``--budget`` as what :func:`unveil.solvers.choose` takes: ``nfe:100`` or ``seconds:30``, or both with a comma."""
    out: dict[str, float] = {}
    for part in text.split(",") if text else ():
        key, _, number = part.strip().partition(":")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if key not in ("nfe", "seconds") or not 0 < value < float("inf"):
            raise InputError(f"--budget is nfe:NUMBER, seconds:NUMBER, or both with a comma between, got '{text}'")
        out[key] = value
    return out


def solver_for(asked: Asked, problem: Problem, choice: Choice | None = None) -> tuple[Solver, int]:
    """The solver with the options that suit the task, the user's going over them, and the number of steps.

    ``choice`` is what "auto" has picked; it is asked here if need be.
    """
    choice = choice or choice_for(asked, problem)
    if choice is not None:
        return choice.solver.with_options(**typed(choice.solver.name, asked.options)), asked.steps or choice.steps
    name = asked.solver
    settings = {**SETTINGS.get((name, ""), {}), **SETTINGS.get((name, asked.task), {})}
    if name == "red-diff":
        settings = {**_red_diff(asked), **settings}
    solver = get_solver(name, **{**settings, **typed(name, asked.options)})
    return solver, asked.steps or STEPS.get(name, solver.default_steps)


def _red_diff(asked: Asked) -> dict[str, Any]:
    from ..solvers.variational.red_diff import TASKS as SETTINGS_OF

    name = {"inpaint": "inpaint-noisy" if asked.noise else "inpaint", "deblur": "deblur", "superres": "superres"}
    return dict(SETTINGS_OF.get(name.get(asked.task, "inpaint-noisy"), {}))


def typed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """``--set`` options as the types of the solver's hyper-parameters."""
    cls = type(get_solver(name))
    defaults = {f.name: f.default for f in fields(cls)}
    out = {}
    for key, value in options.items():
        if key not in defaults:
            raise InputError(str(unknown(f"option of {name}", key, defaults)))
        out[key] = _as_type(f"{name} {key}", value, defaults[key])
    return out


def _as_type(what: str, value: Any, default: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if default is None or default is MISSING or (type(value) is type(default)):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list", str: "a word"}
    raise InputError(f"{what} is {kind.get(type(default), type(default).__name__)}, such as {default}, got {value}")


def parse_options(settings: list[str]) -> dict[str, Any]:
    """``option=value`` words as a dictionary; values are read as JSON (numbers, true, lists), else as text."""
    out: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set takes option=value, got '{setting}'")
        try:
            out[key.strip().replace("-", "_")] = json.loads(text)
        except ValueError:
            out[key.strip().replace("-", "_")] = text
    return out
