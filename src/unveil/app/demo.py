"""``unveil demo``: a photograph through four problems, several solvers each, against a classical baseline."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Screen
from torch import Tensor

from ..classical.photographs import baseline
from ..io.atomic import write_text
from ..priors.base import Prior
from ..run import solve
from .device import pick
from .job import Job, open_prior, prepare, tiled
from .pages import physics_words, score_words, spread_figure
from .progress import Bar
from .report import Figure, Section, Table, page
from .restore import Outcome, empty_folder, judge, measurement_picture, score
from .tasks import Asked, resolve, solver_for

PHOTO = "pagoda.png"


@dataclass(frozen=True)
class Entry:
    """A solver in the demo: its number of steps and samples, and options beyond those that suit the task."""

    solver: str
    steps: int
    samples: int = 1
    options: dict[str, Any] = field(default_factory=dict)


SOLVERS = (
    Entry("diffpir", 60),
    Entry("red-diff", 60),
    Entry("daps", 36),
    Entry("ddnm", 20),
    Entry("ddrm", 15, samples=3),
)

PROBLEMS = (
    ("Inpainting, 70 % lost", Asked("inpaint", mask="random:0.7")),
    ("Inpainting, a box", Asked("inpaint", mask="box:48")),
    ("Deblurring", Asked("deblur", kernel="gaussian:2")),
    ("Super-resolution x 4", Asked("superres", scale=4)),
)

HEAD = ("method", "NFE", "seconds", "PSNR (dB)", "SSIM", "chi-square / dof")


def photos() -> Path:
    """The folder of the photographs that ship with the package."""
    return Path(__file__).parents[1] / "data" / "photos"


def demo(
    out: Path,
    photo: Path | None,
    console: Console,
    prior: str = "photos",
    problems: tuple[tuple[str, Asked], ...] = PROBLEMS,
    solvers: tuple[Entry, ...] = SOLVERS,
    device: str = "auto",
) -> Path:
    """Run everything, print a table, and write one report; returns its path."""
    folder = empty_folder(out)
    photo = photo or photos() / PHOTO
    start = time.monotonic()
    device = str(pick(device))
    network = open_prior(prior).to(device)
    sections, screen = [], Screen(title=f"{photo.name}, restored", title_justify="left", box=None, pad_edge=False)
    for k, name in enumerate(("task", "method", "NFE", "s", "PSNR", "SSIM", "chi2")):
        screen.add_column(name, justify="left" if k < 2 else "right", no_wrap=True)
    for title, asked in problems:
        job = prepare(photo, resolve(replace(asked, prior=prior, device=device)), network.shape[0])
        section, rows = _problem(title, job, tiled(network, job.size), solvers)
        sections.append(section)
        for k, row in enumerate(rows):
            screen.add_row(title if k == 0 else "", *row)
        screen.add_row()
    console.print(screen)
    console.print(
        "PSNR in dB; chi2: misfit per degree of freedom, 1 is what the noise explains", style="dim", highlight=False
    )
    seconds = time.monotonic() - start
    lead = (
        f"{photo.name}, degraded in four ways and restored by {len(solvers)} solvers with the prior '{prior}', each "
        f"against a classical method. {seconds:.0f} s in all, threads: {torch.get_num_threads()}, device: {device}."
    )
    path = write_text(folder / "report.html", page("Four problems, one prior", lead, sections))
    console.print(f"{seconds:.0f} s in all", highlight=False)
    return path


def _problem(title: str, job: Job, prior: Prior, solvers: tuple[Entry, ...]) -> tuple[Section, list[list[str]]]:
    assert job.truth is not None
    began = time.perf_counter()
    classic = baseline(job.asked.task, job.plain, job.truth)
    spent = time.perf_counter() - began
    known = score(classic[1], job.truth)
    shown = measurement_picture(job)[0].clamp(0, 1)
    figures = [Figure("Original", job.truth, "the truth"), Figure("Measurement", shown, "what is known")]
    figures.append(Figure(classic[0][0].upper() + classic[0][1:], classic[1].clamp(0, 1), score_words(known)))
    rows = [[classic[0], "", f"{spent:.1f}", f"{known['psnr']:.2f}", f"{known['ssim']:.3f}", ""]]
    for entry in solvers:
        outcome = restored_by(job, prior, entry, classic)
        rows.append(_row(entry.solver, outcome, "restored"))
        figures.append(Figure(entry.solver, outcome.pictures["restored"], score_words(outcome.scores["restored"])))
        if entry.samples > 1:
            rows.append(_row(f"{entry.solver}, mean of {entry.samples}", outcome, "mean"))
            name = f"{entry.solver}, mean of {entry.samples}"
            figures.append(Figure(name, outcome.pictures["mean"], score_words(outcome.scores["mean"])))
            std = spread_figure(outcome.pictures["std"], entry.samples)
            figures.append(replace(std, title=f"{entry.solver}, standard deviation"))
    best = frozenset((max(range(len(rows)), key=lambda r: float(rows[r][c])), c) for c in (3, 4))
    words = physics_words(job.asked)
    text = words[0].upper() + words[1:] + "."
    return Section(title, text, figures=figures, table=Table(HEAD, rows, best)), rows


def restored_by(job: Job, prior: Prior, entry: Entry, classic: tuple[str, Tensor]) -> Outcome:
    """A problem solved as the entry says, and judged."""
    goal = "sample" if entry.samples > 1 else "mmse"
    asked = replace(job.asked, solver=entry.solver, options=entry.options, steps=entry.steps, goal=goal)
    solver, steps = solver_for(asked, job.problem)
    problem = job.problem.to(job.device)
    with Bar(f"{asked.task}, {entry.solver}", steps) as bar:
        result = solve(
            problem, prior, solver, goal=goal, samples=entry.samples, steps=steps, seed=asked.seed, on_step=bar
        )
    return judge(job, result.to("cpu"), classic)


def _row(name: str, outcome: Outcome, key: str) -> list[str]:
    values, chi2, result = outcome.scores[key], outcome.chi2[key], outcome.result
    # evaluations are per sample, and the mean is made of all of them
    nfe = result.nfe * (result.samples.shape[1] if key == "mean" else 1)
    text = f"{nfe:.0f}" + (f" + {result.vjps:.0f} vjp" if result.vjps else "")
    seconds = (
        result.seconds if key == "mean" or result.samples.shape[1] == 1 else result.seconds / result.samples.shape[1]
    )
    return [
        name,
        text,
        f"{seconds:.1f}",
        f"{values['psnr']:.2f}",
        f"{values['ssim']:.3f}",
        f"{chi2:.2f}" if chi2 else "",
    ]
