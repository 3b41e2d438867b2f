"""Train a prior from a card: `train(card, out)`.

Each worker is a process with one thread that does its own gradient steps; every `average_every` steps the
weights of all workers are averaged (local SGD, Stich 2019, arXiv 1805.09767). This needs little communication
and, on a machine shared with others, suffers little from a slow neighbour. Crops, noise levels and noise of
step s on worker r come from streams seeded by (seed, s, r), so there is no random state to save and a resumed
run continues exactly.

The workers are started here, or by torchrun or accelerate on one or several machines, which then say how many there
are. On CUDA devices a worker has one each.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CheckpointError, InputError, UnveilError
from ..io.atomic import append_line
from ..processes import end_with_parent
from . import checkpoint
from .latents import Latents
from .objectives import objective, validate
from .optim import MuonAdam
from .recipe import Recipe, draw_sigma, first_stage, rate_factor, read_card, replan
from .sources import open_source
from .start import load_start

# glibc hands every large tensor back to the kernel by default and fetches it anew: keep them.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
}


def train(
    card: Path,
    out: Path,
    *,
    resume: bool = False,
    data: Path | None = None,
    steps: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Train the network of a card; returns the last checkpoint's folder, which `export` turns into weights.

    Args:
        card: TOML with `[network]`, `[data]` (see `training.data`) and `[training]` (`recipe.Recipe`) tables.
        out: folder for checkpoints, `log.jsonl` and the plan; those of a first stage (`[training.first]`) go to its
            folder `first`.
        resume: go on from the newest checkpoint in `out`; without it `out` must hold none.
        data: cache folder of packages and packed images.
        steps: another total of steps than the card's; on resume the learning rate anneals from where it is.
        device: "auto" (CUDA where there is a device, else the CPU), "cpu" or "cuda".

    Raises InputError for a bad card or folder or a full disk, CheckpointError for a checkpoint that does not fit.
    """
    tables = read_card(card)
    stage = partial(_stage, card, tables, data=data, device=device, say=say)
    last = _stages(tables.get("training", {}), out, resume, stage, say, steps)
    if dist.is_initialized():
        dist.destroy_process_group()
    return last


def _stages(
    table: Mapping[str, Any],
    out: Path,
    resume: bool,
    stage: Callable[..., Path],
    say: Callable[[str], None],
    steps: int | None = None,
) -> Path:
    """A stage, after those that come first, each in the folder `first` of the next."""
    recipe, first = Recipe.from_table(table), first_stage(table)
    if first is not None:
        before, planned = out / "first", Recipe.from_table(first)
        recipe = replace(recipe, start=str(before))
        if checkpoint.newest(out) is None:
            if not (resume and _finished(before, planned)):
                say(f"first stage, {planned.steps} steps, in {before}")
                _stages(first, before, resume, stage, say)
            resume = False
    return stage(recipe, out, resume, steps)


def _finished(run: Path, recipe: Recipe) -> bool:
    last = checkpoint.newest(run)
    return last is not None and int(checkpoint.read_part(last, "shared")["step"]) >= recipe.steps


def _stage(
    card: Path,
    tables: dict[str, Any],
    recipe: Recipe,
    out: Path,
    resume: bool,
    steps: int | None = None,
    *,
    data: Path | None,
    device: str,
    say: Callable[[str], None],
) -> Path:
    """`train` for one recipe."""
    launched = int(os.environ.get("WORLD_SIZE", "0")) if "RANK" in os.environ else 0  # by torchrun or accelerate
    if launched:
        recipe = replace(recipe, workers=launched)
    last = checkpoint.newest(out)
    if resume and last is None:
        raise InputError(f"There is no checkpoint in {out} to resume from: leave out --resume.")
    if not resume:
        refuse_run(out)
    if last is not None:
        saved = checkpoint.read_part(last, "shared")
        asked, recipe = recipe, Recipe.from_table(saved["recipe"])
        if recipe.workers != asked.workers:
            raise CheckpointError(
                f"{out} was started with {recipe.workers} workers, not {asked.workers}: resume with as many."
            )
        planned: dict[str, Any] = {k: getattr(recipe, k) for k in ("steps", "decay_steps", "warmup_from")}
        if replace(asked, **planned) != recipe:
            say(f"[training] of {card} is not what {out} was started with: the run keeps its own.")
        if saved["network"] != tables.get("network", {}):
            raise CheckpointError(f"{last} has another [network] than {card}: use that run's card or another folder.")
        if steps is None and asked.steps != recipe.steps:
            say(f"{card} says {asked.steps} steps, the run in {out} has {recipe.steps}: --steps changes that.")
        if steps is not None and steps != recipe.steps:
            recipe = replan(recipe, int(saved["step"]), steps)
    elif steps is not None:
        recipe = replace(recipe, steps=steps, decay_steps=min(recipe.decay_steps, steps))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}") from error
    words = (recipe, tables, out, last, data, _device(device))
    if launched:
        _work_launched(words, say)
        found = checkpoint.newest(out)
        assert found is not None
        return found
    _tidy(out)  # what a killed run has left
    open_source(tables.get("data", {}), recipe, data, say)  # fetch and pack once, before the workers start
    try:
        if recipe.workers == 1:
            _work(0, *words, None)
        else:
            _work_together(words)
    finally:
        _tidy(out)
    final = checkpoint.newest(out)
    assert final is not None
    return final


def refuse_run(out: Path) -> None:
    """Raises InputError if a folder holds a run."""
    if checkpoint.newest(out) is not None:
        raise InputError(f"{out} holds a run already: use --resume, or another folder.")


def _tidy(out: Path) -> None:
    """Remove what is not whole."""
    for rest in out.glob("partial-*"):
        shutil.rmtree(rest, ignore_errors=True)
    for old in out.glob("rendezvous-*"):
        old.unlink(missing_ok=True)


def _device(wanted: str) -> str:
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is auto, cpu or cuda, not {wanted!r}.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here: use --device cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


Words = tuple[Recipe, dict[str, Any], Path, "Path | None", "Path | None", str]


def _work_launched(words: Words, say: Callable[[str], None]) -> None:
    """As one of the processes that a launcher has started; they find each other through its environment variables."""
    recipe, tables, out, _, cache, device = words
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=12))
    rank = dist.get_rank()
    if rank == 0:
        _tidy(out)
        open_source(tables.get("data", {}), recipe, cache, say)
    dist.barrier()
    _work(rank, *words, None)


def _work_together(words: Words) -> None:
    recipe, _, out = words[:3]
    os.environ.update(MALLOC)
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            _work_or_tell,
            args=(errors, *words, out / f"rendezvous-{os.getpid()}"),
            nprocs=recipe.workers,
            start_method="spawn",
        )
    except torch.multiprocessing.ProcessRaisedException:  # type: ignore[attr-defined]
        if errors.empty():
            raise
        raise errors.get() from None


def _work_or_tell(rank: int, errors: Any, *words: Any) -> None:
    """`_work` in a process of its own, which hands on what is the user's to mend."""
    end_with_parent()
    try:
        _work(rank, *words)
    except UnveilError as error:
        errors.put(error)
        raise


def has_fast_bf16(device: torch.device) -> bool:
    """True where the device multiplies bfloat16 natively; emulated it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(native() or tiles())


def average_(tensors: list[Tensor], workers: int) -> None:
    """Replace each tensor by its mean over the workers, with one message."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= workers
    start = 0
    for t in tensors:
        t.copy_(flat[start : start + t.numel()].view_as(t))
        start += t.numel()


class _Worker:
    """One process of a run: network, optimiser, moving average, and what it needs to go on."""

    def __init__(
        self,
        rank: int,
        recipe: Recipe,
        tables: dict[str, Any],
        out: Path,
        last: Path | None,
        cache: Path | None,
        device: str = "cpu",
    ) -> None:
        self.rank, self.recipe, self.out = rank, recipe, out
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', rank)}" if device == "cuda" else "cpu")
        self.table = dict(tables.get("network", {}))
        self.source = open_source(tables.get("data", {}), recipe, cache)
        self.held_out = self.source.held_out(recipe.validate_size, recipe.validate_count)[0] if rank == 0 else None
        self.task = objective(recipe.objective, recipe.sigma_data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            try:
                self.network = self.task.build(self.table)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"[network] cannot be built ({' '.join(str(error).split())}): correct it.") from error
            self.average = self.task.build(self.table)
        if recipe.start and last is None:
            load_start(self.network, recipe.start)
        self.config: dict[str, Any] = dict(self.network.config)  # type: ignore[arg-type]
        self.takes = {"label": self.config.get("classes", 0), "text": self.config.get("texts", 0)}
        self.average.load_state_dict(self.network.state_dict())
        for module in (self.network, self.average):
            module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = MuonAdam(self.network, recipe.lr_muon, recipe.lr_adam)
        self.step, self.averages = 0, 0
        self.seconds = self.cpu_seconds = 0.0
        self.plans = [[0, recipe.steps, recipe.decay_steps]]
        if last is not None:
            self._load(last)
        fast = has_fast_bf16(self.device) if recipe.precision == "auto" else recipe.precision == "bf16"
        self.dtype = torch.bfloat16 if fast else None
        wanted = shutil.which("g++") is not None if recipe.compile == "auto" else recipe.compile == "yes"
        self.run: Callable[..., Tensor] = torch.compile(self.network) if wanted else self.network

    def _load(self, folder: Path) -> None:
        shared = checkpoint.read_part(folder, "shared")
        mine = checkpoint.read_part(folder, f"worker-{self.rank}")
        self.network.load_state_dict(mine["network"])
        self.optimiser.load_state_dict(mine["optimiser"])
        self.average.load_state_dict(shared["average"])
        self.step, self.averages = int(shared["step"]), int(shared["averages"])
        self.seconds, self.cpu_seconds = float(shared["seconds"]), float(mine["cpu_seconds"])
        self.plans = shared["plans"]
        plan = [self.step, self.recipe.steps, self.recipe.decay_steps]
        if self.plans[-1][1:] != plan[1:]:
            self.plans.append(plan)

    def save(self, seconds: float, cpu_seconds: float) -> None:
        """Write this worker's parts; the first worker's include what is common to all."""
        mine = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        checkpoint.write_part(self.out, self.step, f"worker-{self.rank}", {**mine, "cpu_seconds": cpu_seconds})
        if self.rank == 0:
            recipe = asdict(self.recipe)
            recipe["sigma_range"] = list(self.recipe.sigma_range)
            shared = {
                "average": self.average.state_dict(),
                "network": self.table,
                "config": self.config,
                "recipe": recipe,
                "step": self.step,
                "averages": self.averages,
                "seconds": seconds,
                "plans": self.plans,
                "latent": getattr(self.source, "latent", None),
            }
            checkpoint.write_part(self.out, self.step, "shared", shared)

    def gradient_step(self) -> Tensor:
        """One step on one batch; returns the loss, detached."""
        r = self.recipe
        numpy_rng = np.random.default_rng([r.seed, self.step, self.rank])
        torch_rng = torch.Generator().manual_seed(int(numpy_rng.integers(2**62)))
        x0, known = self.source.draw(r.batch, numpy_rng)
        sigma = draw_sigma(r.batch, r, torch_rng)
        noise = torch.randn(x0.shape, generator=torch_rng)
        given = {k: v.to(self.device) for k, v in self.withhold(known, torch_rng).items()}
        x0, noise, sigma = x0.to(self.device), noise.to(self.device), sigma.to(self.device)
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            loss = self.task.loss(self.run, x0, noise, sigma, given)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(rate_factor(self.step, r))
        self.step += 1
        return loss.detach()

    def withhold(self, known: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The conditions that the network takes: texts mixed by `recipe.mix`, a share `recipe.drop` of all left out."""
        taken = {k: v for k, v in known.items() if self.takes[k]}
        if "text" in taken and self.recipe.mix:
            weight = self.recipe.mix * torch.rand(self.recipe.batch, 1, generator=generator)
            mixed = taken["text"] + weight * taken["text"].roll(1, 0)  # images are drawn at random, and so is the next
            taken["text"] = torch.nn.functional.normalize(mixed, dim=1)
        if taken and self.recipe.drop:
            none = torch.rand(self.recipe.batch, generator=generator) < self.recipe.drop
            if "label" in taken:
                taken["label"] = torch.where(none, self.takes["label"], taken["label"])
            if "text" in taken:
                taken["text"] = torch.where(none[:, None], 0.0, taken["text"])
        return taken

    @torch.no_grad()
    def update_average(self, elapsed_steps: int) -> None:
        """Move the averaged weights towards the present ones; young averages forget faster."""
        self.averages += 1
        keep = min(0.5 ** (elapsed_steps / self.recipe.ema_steps), self.averages / (self.averages + 9))
        for a, p in zip(self.average.parameters(), self.network.parameters(), strict=True):
            a.lerp_(p, 1 - keep)


def _crossed(step: int, passed: int, every: int) -> bool:
    """True if a multiple of `every` lies among the last `passed` steps; never for 0."""
    return every > 0 and step // every > (step - passed) // every


def _work(
    rank: int,
    recipe: Recipe,
    tables: dict[str, Any],
    out: Path,
    last: Path | None,
    cache: Path | None,
    device: str,
    rendezvous: Path | None,
) -> None:
    together = recipe.workers > 1
    if together:
        torch.set_num_threads(1)
    if together and not dist.is_initialized():
        # A worker that is stopped for a while must not end the run.
        store = dist.FileStore(str(rendezvous), recipe.workers)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=recipe.workers, timeout=timedelta(hours=12))
    w = _Worker(rank, recipe, tables, out, last, cache, device)
    started, cpu_started = time.monotonic(), time.process_time()
    first_step, saved_at, losses = w.step, started, []
    parameters = list(w.network.parameters())
    while w.step < recipe.steps:
        losses.append(w.gradient_step())
        at_end = w.step == recipe.steps
        if w.step % recipe.average_every and not at_end:
            continue
        # All workers are at the same step here; the first one decides whether to save.
        now = time.monotonic()
        due = at_end or now - saved_at > 60 * recipe.checkpoint_minutes
        loss = torch.stack(losses).mean()
        signal = torch.tensor([float(due) if rank == 0 else 0.0, float(loss)], device=w.device)
        if together:
            with torch.no_grad():
                average_([p.data for p in parameters], recipe.workers)
            dist.all_reduce(signal)
            due, loss = bool(signal[0] > 0), signal[1] / recipe.workers
        if not math.isfinite(float(loss)):
            raise CheckpointError(f"The loss is {float(loss)} at step {w.step}: lower the learning rates and resume.")
        w.update_average(len(losses))
        passed, losses = len(losses), []
        seconds = w.seconds + time.monotonic() - started
        if due:
            w.save(seconds, w.cpu_seconds + time.process_time() - cpu_started)
            if together:
                dist.barrier()
            if rank == 0:
                checkpoint.commit(out, w.step, recipe.workers + 1)
            saved_at = time.monotonic()
        if rank == 0 and (_crossed(w.step, passed, recipe.log_every) or at_end):
            rate = (w.step - first_step) * recipe.batch * recipe.workers / max(1e-9, time.monotonic() - started)
            record: dict[str, Any] = {
                "step": w.step,
                "loss": round(float(loss), 5),
                "lr": round(rate_factor(w.step - 1, recipe), 5),
                "images_per_second": round(rate, 2),
                "seconds": round(seconds, 1),
            }
            validating = _crossed(w.step, passed, recipe.validate_every) or at_end
            if validating and w.held_out is not None and len(w.held_out):
                record["psnr"] = validate(w.task, w.average, w.held_out, clip=not isinstance(w.source, Latents))
            append_line(out / "log.jsonl", json.dumps(record))
            left = (recipe.steps - w.step) * recipe.batch * recipe.workers / max(rate, 1e-9) / 60
            scores = "".join(f"  psnr@{k} {v:.2f}" for k, v in record.get("psnr", {}).items())
            line = f"step {w.step}/{recipe.steps}  loss {float(loss):.4f}  {rate:.1f} img/s  {left:.0f} min"
            print(line + scores, file=sys.stderr, flush=True)
    if together:
        dist.barrier()
        if rendezvous is not None:  # processes of a launcher stay together for the next stage
            dist.destroy_process_group()
