"""The training recipe of a card, its learning-rate plan and its distribution of noise levels."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """The `[training]` table of a card. All but `checkpoint_minutes` counts steps, never seconds."""

    objective: str = "edm"  # "edm", a denoiser; "flow", a velocity; "autoencoder"
    start: str = ""  # weights to begin with: the name of a prior of the zoo, a file, or the folder of a run
    steps: int = 1000
    batch: int = 16  # crops per worker and step
    size: int = 64  # side of the crops
    fixed_size: bool = False  # the crops are whole signals: the prior knows no other size
    workers: int = 1  # processes, one thread each; weights are averaged (local SGD)
    average_every: int = 16
    seed: int = 0
    lr_muon: float = 0.015  # 0: Adam for all parameters
    lr_adam: float = 2e-3
    warmup_steps: int = 100
    warmup_from: int = 0  # step at which the warm-up begins: not 0 where a finished run was extended
    decay_steps: int = 200  # linear decay to zero at the end
    ema_steps: float = 200.0  # half-life of the moving average of the weights
    sigma_data: float = 0.5
    sigma_log_mean: float = -1.0
    sigma_log_std: float = 1.5
    sigma_wide: float = 0.15  # fraction drawn log-uniformly from sigma_range instead
    sigma_range: tuple[float, float] = (0.002, 80.0)
    drop: float = 0.0  # share of the images whose label or text is withheld, for guidance without a classifier
    mix: float = 0.0  # most weight of another's text in one: what is near to a caption then means the same
    jitter: float = 0.1  # the rest is about images, see `crops.Crops`; generated data have ways of their own
    symmetries: int = 8
    contrast: float = 0.5
    warp: float = 0.0
    elastic: float = 0.0
    precision: str = "auto"  # "auto", "fp32", "bf16"
    compile: str = "auto"  # "auto" (when there is a C++ compiler), "yes", "no"
    checkpoint_minutes: float = 5.0
    validate_every: int = 0  # steps; 0: only at the end
    validate_size: int = 256
    validate_count: int = 32  # held-out images that are denoised
    log_every: int = 16

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.size, self.workers, self.average_every) < 1:
            raise InputError("[training] steps, batch, size, workers and average_every must be at least 1.")
        if self.objective not in ("edm", "flow", "autoencoder"):
            raise InputError(f"[training] objective is edm, flow or autoencoder, not {self.objective!r}.")
        numbers = all(type(s) in (int, float) for s in self.sigma_range)
        if not (numbers and len(self.sigma_range) == 2 and 0 < self.sigma_range[0] < self.sigma_range[1] < math.inf):
            raise InputError(f"[training] sigma_range is [low, high], 0 < low < high, not {list(self.sigma_range)}.")
        if self.precision not in ("auto", "fp32", "bf16") or self.compile not in ("auto", "yes", "no"):
            raise InputError("[training] precision is auto, fp32 or bf16; compile is auto, yes or no.")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Build from a card's table, of its last stage (see `first_stage`).

        Raises InputError for an unknown key or a value of another kind than the key's.
        """
        if not isinstance(table, Mapping):
            raise InputError(f"[training] is a table of keys and values, not {table!r}.")
        table = {k: v for k, v in table.items() if k != "first"}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(table) - known)
        if unknown:
            raise InputError(f"[training] does not know {unknown}: it knows {sorted(known)}.")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        for f in fields(cls):
            kind, value = type(f.default), values.get(f.name, f.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise InputError(f"[training] {f.name} is a value like {f.default!r}, not {value!r}.")
        return cls(**values)


def first_stage(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table of the stage before: of the keys in `[training.first]`, others as in `[training]`; None without one.

    The training of such a card goes on from its weights. It may have a `first` of its own.
    """
    if "first" not in table:
        return None
    if not isinstance(table["first"], Mapping):
        raise InputError(f"[training.first] is a table of keys and values, not {table['first']!r}.")
    return {**{k: v for k, v in table.items() if k != "first"}, **table["first"]}


def read_card(path: Path) -> dict[str, Any]:
    """A card's tables. Raises InputError if it is missing, not TOML, or has other things in the place of tables."""
    try:
        card = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no card {path}.") from error
    except OSError as error:
        raise InputError(f"The card {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    for key in ("network", "data", "training"):
        if not isinstance(card.get(key, {}), dict):
            raise InputError(f"{path}: [{key}] is a table of keys and values, not {card[key]!r}.")
    sources = card.get("data", {}).get("source", [])
    if not (isinstance(sources, list) and all(isinstance(source, dict) for source in sources)):
        raise InputError(f"{path}: sources are tables of their own, headed [[data.source]] in double brackets.")
    return card


def rate_factor(step: int, recipe: Recipe) -> float:
    """Factor on the peak rates for a step: warm-up, constant, linear decay to zero at `recipe.steps`."""
    warm = (step - recipe.warmup_from + 1) / max(1, recipe.warmup_steps)
    decay = (recipe.steps - step) / max(1, recipe.decay_steps)
    return max(0.0, min(1.0, warm, decay))


def replan(recipe: Recipe, step: int, steps: int) -> Recipe:
    """Another total of steps, from `step` on.

    Before the decay it moves; within it the rate goes on linearly from its present value to zero at `steps`;
    a run that was finished warms up and decays anew.
    """
    if steps <= step:
        raise InputError(f"The run is at step {step} already: --steps must be larger, not {steps}.")
    left = steps - step
    decay = (recipe.steps - step) / max(1, recipe.decay_steps)
    if decay <= 0:
        return replace(recipe, steps=steps, warmup_from=step, decay_steps=min(recipe.decay_steps, left))
    if decay < 1:
        return replace(recipe, steps=steps, decay_steps=math.ceil(left / decay))
    return replace(recipe, steps=steps, decay_steps=min(recipe.decay_steps, left))


def draw_sigma(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Noise levels [count]: log-normal, a fraction `sigma_wide` log-uniform, clipped to `sigma_range`."""
    low, high = (math.log(s) for s in recipe.sigma_range)
    normal = recipe.sigma_log_mean + recipe.sigma_log_std * torch.randn(count, generator=generator)
    wide = low + (high - low) * torch.rand(count, generator=generator)
    pick = torch.rand(count, generator=generator) < recipe.sigma_wide
    return torch.where(pick, wide, normal).clamp(low, high).exp()
