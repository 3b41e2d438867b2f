"""Pages of results that are measured once in a while: the protocol of mixtures, and problems that are not linear.

Made by ``make docs`` from ``docs/results/*.jsonl``, to which ``unveil bench mixtures`` and ``unveil bench nonlinear``
add rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ..io.ledger import Ledger, Row
from . import mixtures, nonlinear, particles, scenes
from .exact import EXACT, KEYS
from .mixtures import interval

MADE = "Made by `make docs` from `docs/results/{file}`; not to be edited by hand."

MIXTURES = """# Mixtures of 25 Gaussians

{made} The command that adds to that file, cell by cell, is
`unveil bench mixtures --out docs/results/mixtures.jsonl`; `--solver`, `-d`, `-m` and `--seeds` choose.

The test of MCGDiff (Cardoso, Janati El Idrissi, Le Corff, Moulines 2024, arXiv 2308.07983): a prior of 25 separated
modes in d dimensions, m noisy linear measurements, a posterior in closed form. Few measurements leave several modes
possible, and what is hard is how probable each one is. The distance is the sliced Wasserstein-1 distance of the
samples to as many exact draws, a mean over problems with its 95 % confidence interval (Student's t); exact draws have
the first line, and in round brackets is the mean as a multiple of theirs on the same problems. In square brackets: how
many problems, where others have more. Problems are drawn from seeds of ours, so that numbers of the paper compare in
size only.

{tables}
"""

NONLINEAR = """# Not linear, not Gaussian

{made} The command that adds to that file is `unveil bench nonlinear --out docs/results/nonlinear.jsonl`.

Priors are Gaussian mixtures in 2, 3 and 8 dimensions (the number in a problem's name); the data are

- `phase`: magnitudes of complex linear measurements, sigma_y = 0.05, in 8 dimensions 0.1;
- `clip`: linear measurements clipped to [-0.3, 0.3], sigma_y = 0.05;
- `bits`: two bits of each linear measurement, sigma = 0.1;
- `photons`: Poisson counts, 20 where the signal is 1.

Reference posteriors come from adaptive quadrature in two and three dimensions, and from long runs of replica exchange
with Hamiltonian Monte Carlo in eight; `python -m unveil.bench.references` makes them again.

{references}

The distance is the sliced Wasserstein-2 distance of {samples} samples to as many draws of the reference, as a multiple
of what such draws have among themselves (both root mean squares over {exact} sets of draws): 1 is perfect. It is the
mean over {runs} runs with its 95 % confidence interval (Student's t); in round brackets the ratio of standard
deviations. The first line is what the draws themselves have, each set against the others: no solver can be told from a
perfect one by less than that. A dash: the solver does not take the problem, or was not run (as those without a line
were not). A point estimate has its error of the mean instead, in posterior standard deviations, in italics. "near"
counts the problems whose mean distance is at most 2.

In `phase-2` one draw in a thousand lies in a second mode; a set of draws that has none looks perfect there, and one
that has one is far off, so that the first line varies most in that column.

{table}
"""


PARTICLES = """# Particles

{made} The command that adds to that file, cell by cell, is
`unveil bench particles --out docs/results/particles.jsonl`; `--solver`, `--problem`, `--steps` and `--runs` choose.

Particle methods on problems with a Gaussian posterior, {runs} independent runs to a cell. In a cell stands the error of
the weighted mean with so many particles (root mean square over the runs, in posterior standard deviations), and behind
the semicolon the mean of the estimates of p(y) over its closed form, with its 95 % confidence interval. The slope is
that of the error on the number of particles in log-log, with its 95 % confidence interval: -1/2 in the limit.

The estimates of p(y) are unbiased for the chain of so many steps, whose own p(y) is some per cent off. Where their
spread is large they are lopsided too: most runs are far too low, a rare one makes up for it, and an interval from the
runs that there were says little. `unveil.compare` calls an evidence unreliable from a relative error of 0.5 on.
{tables}"""


SCENES = """# Instruments

{made} The command that adds to that file, and draws the strips, is
`unveil bench scenes --out docs/results/scenes.jsonl --pictures docs/images/scenes`.

What instruments measure of images that are known and that no prior of this package was trained on, reconstructed by
solvers and by the classical methods of each instrument; these may choose their parameters with the truth at hand. PSNR
in dB, a mean over the images. Of {samples} samples: `mean` is that of their mean, `sample` that of one; `90 %` and
`50 %` the share of pixels whose truth lies in intervals of the samples that should hold it that often; `spread` the
root mean square error of the mean in units of what the samples say it is: 1 is calibrated, more is over-confident.
{parts}"""


def results(root: Path) -> dict[str, str]:
    """The pages as Markdown by their file name under ``docs/``; none for results that are not there."""
    folder, out = root / "docs" / "results", {}
    rows = mixtures.read(folder / "mixtures.jsonl")
    if rows:
        out["mixtures.md"] = mixtures_page(rows)
    rows = Ledger(folder / "nonlinear.jsonl", KEYS).rows
    if rows:
        out["nonlinear.md"] = nonlinear_page(rows)
    rows = Ledger(folder / "particles.jsonl", particles.KEYS).rows
    if rows:
        out["particles.md"] = particles_page(rows)
    rows = Ledger(folder / "scenes.jsonl", scenes.KEYS).rows
    if rows:
        out["scenes.md"] = scenes_page(rows)
    return out


def mixtures_page(rows: Sequence[Row]) -> str:
    """The page of the protocol, a table for each number of samples."""
    parts = []
    for samples in sorted({row["samples"] for row in rows}):
        mine = [row for row in rows if row["samples"] == samples]
        counts = sorted({_seeds(mine, row["solver"], row["d"], row["m"]) for row in mine})
        problems = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"{samples} samples, {problems} problems to a cell.\n\n{mixtures.table(mine)}")
        failed = sorted({f"{row['solver']} (d = {row['d']}, m = {row['m']})" for row in mine if "sw1" not in row})
        if failed:
            parts.append(f"Runs that diverged and are left out: {', '.join(failed)}.\n")
    return MIXTURES.format(made=MADE.format(file="mixtures.jsonl"), tables="\n".join(parts).rstrip())


def _seeds(rows: Sequence[Row], solver: str, d: int, m: int) -> int:
    return sum(row["solver"] == solver and row["d"] == d and row["m"] == m for row in rows)


def nonlinear_page(rows: Sequence[Row]) -> str:
    """The page of problems with reference posteriors, of the largest number of samples."""
    most = max(row["samples"] for row in rows if "sw2_floor" in row)
    rows = [row for row in rows if row["samples"] == most or "sw2_floor" not in row]
    counts = [len({row["seed"] for row in rows if (row["solver"] == EXACT) == exact}) for exact in (False, True)]
    return NONLINEAR.format(
        made=MADE.format(file="nonlinear.jsonl"),
        references=_references().rstrip(),
        samples=most,
        runs=counts[0],
        exact=counts[1],
        table=nonlinear_table(rows).rstrip(),
    )


def _references() -> str:
    out = "| problem | method | what speaks for it |\n|---|---|---|\n"
    for name in nonlinear.NAMES:
        facts = nonlinear.load(name).posterior.facts  # type: ignore[union-attr]
        if facts["method"] == "quadrature":
            words = f"relative error below {_up(facts['relative_error'])}, {facts['cells']} cells"
            if "chains_from_mean" in facts:
                words += f"; chains agree to {facts['chains_from_mean']:.1f} standard errors"
        else:
            words = (
                f"R-hat {facts['rhat']:.4f}, effective sample size {facts['effective_size']:.0f}; evidence "
                f"{abs(facts['evidence_deviation']):.1f} and mean {facts['mean_deviation']:.1f} standard errors from "
                "weighted draws of the prior"
            )
        out += f"| {name} | {facts['method']} | {words} |\n"
    return out


def _up(value: float) -> str:
    """Rounded up to one digit."""
    digits = f"{value:.0e}"
    return digits if float(digits) >= value else f"{int(digits[0]) + 1}{digits[1:]}"


def nonlinear_table(rows: Sequence[Row]) -> str:
    """Markdown: per setting of a solver and problem the mean distance over floor, and its 95 % interval."""
    head = "| solver | evaluations | near | " + " | ".join(nonlinear.NAMES) + " |\n"
    out = head + "|---|--:|--:|" + "--:|" * len(nonlinear.NAMES) + "\n"
    for solver, setting in sorted({(row["solver"], row["setting"]) for row in rows}, key=lambda s: (s[0] != EXACT, s)):
        mine = [row for row in rows if (row["solver"], row["setting"]) == (solver, setting)]
        cost = f"{mean(row['nfe'] for row in mine):.0f}" if solver != EXACT else ""
        if any(row["vjps"] for row in mine):
            cost += f" + {mean(row['vjps'] for row in mine):.0f} vjp"
        its = [[row for row in mine if row["problem"] == name] for name in nonlinear.NAMES]
        words = " ".join(filter(None, (solver, setting)))
        out += f"| {words} | {cost} | {_near(its)} | {' | '.join(map(_cell, its))} |\n"
    return out


def _near(problems: Sequence[Sequence[Row]]) -> str:
    """On how many of the problems the mean distance is at most twice the floor."""
    done = [its for its in problems if its and all(row["status"] == "DONE" and "sw2_floor" in row for row in its)]
    near = sum(mean(row["sw2_floor"] for row in its) <= 2 for its in done)
    return f"{near} of {sum(map(bool, problems))}" if done else ""


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    lost = [row for row in rows if row["status"] != "DONE"]
    if lost:
        return f"{len(lost)} of {len(rows)} {str(lost[0]['status']).lower()}"
    if "sw2_floor" not in rows[0]:
        return f"*{interval([row['mean'] for row in rows])}*"
    return f"{interval([row['sw2_floor'] for row in rows], 1)} ({mean(row['std'] for row in rows):.2f})"


def particles_page(rows: Sequence[Row]) -> str:
    """The page of particle methods on Gaussians: a table for each problem."""
    parts = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == name]
        parts.append(f"\n`{name}`, {mine[0]['dimension']} dimensions:\n\n{particles.table(mine)}")
    runs = ", ".join(str(n) for n in sorted({row["runs"] for row in rows}))
    return PARTICLES.format(made=MADE.format(file="particles.jsonl"), runs=runs, tables="".join(parts))


def scenes_page(rows: Sequence[Row]) -> str:
    """The page of instruments: a table and a strip of pictures for each scene."""
    parts = []
    for name, scene in scenes.SCENES.items():
        done = [row for row in rows if row["scene"] == name and "psnr" in row]
        if not done:
            continue
        images = {row["image"] for row in done}
        parts.append(f"\n## {scene.title}\n\nPrior `{scene.prior}`, {len(images)} of its images.\n")
        out = "| method | mean | sample | 90 % | 50 % | spread | evaluations |\n|---|--:|--:|--:|--:|--:|--:|\n"
        for solver in dict.fromkeys(row["solver"] for row in done):
            its = [row for row in done if row["solver"] == solver]
            if {row["image"] for row in its} == images:
                out += _scene_line(solver, its)
        for rival in scene.rivals:
            value = mean(_first(done, image)["rivals"][rival] for image in images)
            out += f"| {rival} | {value:.2f} | | | | | |\n"
        parts.append(f"{out}\n![{scene.title}](images/scenes/{name}.png)\n")
    samples = ", ".join(str(n) for n in sorted({row["samples"] for row in rows}))
    return SCENES.format(made=MADE.format(file="scenes.jsonl"), samples=samples, parts="\n".join(parts))


def _first(rows: Sequence[Row], image: str) -> Row:
    return next(row for row in rows if row["image"] == image)


def _scene_line(solver: str, rows: Sequence[Row]) -> str:
    covers = [row["cover"] for row in rows if "cover" in row]
    cover = [f"{mean(c[k] for c in covers):.0%}" if covers else "" for k in (0, 1)]
    spreads = [row["spread"] for row in rows if "spread" in row]
    figures = [f"{mean(row[key] for row in rows):.2f}" for key in ("psnr", "psnr_sample")]
    spread = f"{mean(spreads):.2f}" if spreads else ""
    return f"| {' | '.join((solver, *figures, *cover, spread))} | {mean(r['nfe'] for r in rows):.0f} |\n"
