"""Pages of results that are measured once in a while: the protocol of mixtures, and problems that are not linear.

Made by ``make docs`` from ``docs/results/*.jsonl``, to which ``unveil bench mixtures`` and ``unveil bench nonlinear``
add rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ..io.ledger import Ledger, Row
from . import mixtures, nonlinear, particles, scenes
from .exact import EXACT, KEYS, Setting
from .mixtures import interval

NEAR = 2
"""How many times the floor counts as near to it."""

MADE = "Made by `make docs` from `docs/results/{file}`; not to be edited by hand."

MIXTURES = """# Mixtures of 25 Gaussians

{made} The command that adds to that file, cell by cell, is
`unveil bench mixtures --out docs/results/mixtures.jsonl`; `--solver`, `-d`, `-m`, `--seeds` and `--budget` choose.

The test of MCGDiff (Cardoso, Janati El Idrissi, Le Corff, Moulines 2024, arXiv 2308.07983): a prior of 25 separated
modes in d dimensions, m noisy linear measurements, a posterior in closed form. Few measurements leave several modes
possible, and what is hard is how probable each one is. The distance is the sliced Wasserstein-1 distance of the
samples to as many exact draws, a mean over problems with its 95 % confidence interval (Student's t); exact draws have
the first line, and in round brackets is the mean as a multiple of theirs on the same problems. In square brackets: how
many problems, where others have more; a single one has no interval and says little, for problems differ. They are drawn
from seeds of ours, so that numbers of the paper compare in size only.

Every solver that takes the problems runs with its defaults; evaluations are per sample. {short} A solver that is slow
runs on fewer problems: on {fewest} at least, once the command has come to its end, and on more until it has spent the
budget, {budget:.0f} s on a cell if not stated. Point estimates and optimisers have no spread to speak of, and a
distance accordingly.

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


FAITHFUL = 1.25
"""Factor between the error and what the samples say it is, beyond which a page speaks of it."""

PARTICLES = """# Convergence with particles

{made} The command that adds to that file, cell by cell, is
`unveil bench particles --out docs/results/particles.jsonl`; `--solver`, `--problem`, `--steps`, `--runs` and
`--particles` choose.

Particle methods on problems with a Gaussian posterior, {runs} independent runs to a cell. In a cell stands the error of
the weighted mean with so many particles (root mean square over the runs, in posterior standard deviations), and behind
the semicolon the mean of the estimates of p(y) over its closed form, with its 95 % confidence interval. The slope is
that of the error on the number of particles in log-log, with its 95 % confidence interval: -1/2 in the limit. `bias`
is the part of the error that all runs share, with the most particles that it was measured with.

The estimates of p(y) are unbiased for the chain of so many steps, whose own p(y) is some per cent off. Where their
spread is large they are lopsided too: most runs are far too low, a rare one makes up for it, and an interval from the
runs that there were says little. `unveil.compare` calls an evidence unreliable from a relative error of 0.5 on.

On `texture-blur-0.5` the slopes of `fps-smc` and `mcgdiff` are flatter. It is not the steps: with four times as many
that of `fps-smc` is no steeper, and the bias is far below the error. It is their weights, whose twists ask of a
noisy particle what the data say of it as if the prior said little. Where the prior is narrow they are uneven, and the
limit begins at more particles: from 256 to 1024 the error of `fps-smc` falls with a slope of -0.44. Of `mcgdiff`, whose
twist is as narrow as the noise that is missing, weights of single steps may have no variance at all; its p(y) comes
from runs too rare to have been seen here. More steps make its slope steeper, not -1/2.
{tables}"""


SCENES = """# Instruments

{made} The command that adds to that file, and draws the strips, is
`unveil bench scenes --out docs/results/scenes.jsonl --pictures docs/images/scenes`.

What instruments measure of images that are known and that no prior of this package was trained on, reconstructed by
solvers and by the classical methods of each instrument; these may choose their parameters with the truth at hand. PSNR
in dB, a mean over the images. Of the samples: `mean` is that of their mean, `sample` that of one; `90 %` and
`50 %` the share of pixels whose truth lies in intervals of the samples that should hold it that often; `spread` the
root mean square error of the mean in units of what the samples say it is: 1 is calibrated, more is over-confident.
Options of the solvers, the spread of `daps` above all, were chosen on the first image of each scene (of one bit and PET
on two), the one that is shown, with a few samples of it; a spread that makes intervals right can leave single samples
noisy where nothing is measured. `deviation` is the samples' standard deviation, `error` that of the mean, on one scale.
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
        out["convergence.md"] = particles_page(rows)
    rows = Ledger(folder / "scenes.jsonl", scenes.KEYS).rows
    if rows:
        out["scenes.md"] = scenes_page(rows)
    return out


def mixtures_page(rows: Sequence[Row]) -> str:
    """The page of the protocol, a table for each number of samples and what it comes to."""
    parts = []
    for samples in sorted({row["samples"] for row in rows}):
        mine = [row for row in rows if row["samples"] == samples]
        counts = sorted({_seeds(mine, row["solver"], row["d"], row["m"]) for row in mine})
        problems = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(f"{samples} samples, {problems} problems to a cell.\n\n{mixtures.table(mine)}\n{_verdict(mine)}")
        failed = sorted({f"{row['solver']} (d = {row['d']}, m = {row['m']})" for row in mine if "sw1" not in row})
        if failed:
            parts.append(f"Runs that diverged and are left out: {', '.join(failed)}.\n")
    return MIXTURES.format(
        made=MADE.format(file="mixtures.jsonl"),
        short=" ".join(f"{name} has {_options(setting)}." for name, setting in mixtures.SHORT.items()),
        fewest=mixtures.FEWEST,
        budget=mixtures.BUDGET,
        tables="\n".join(parts).rstrip(),
    )


def _options(setting: Setting) -> str:
    return ", ".join([*(f"{k} = {v}" for k, v in setting.options.items()), f"{setting.steps} steps"])


def _verdict(rows: Sequence[Row]) -> str:
    """Who is how near to the floor: at most :data:`NEAR` times on all cells that were run, on some, on none."""
    groups: dict[str, list[str]] = {"all": [], "some": [], "none": []}
    for name, found in mixtures.ranking(rows).items():
        multiples = sorted(found.values())
        kind = "all" if multiples[-1] <= NEAR else "some" if multiples[0] <= NEAR else "none"
        span = " to ".join(dict.fromkeys(f"{v:.1f}" if v < 100 else f"{v:.3g}" for v in (multiples[0], multiples[-1])))
        ratios = [row["sw1"] / row["floor"] for row in rows if row["solver"] == name and "sw1" in row]
        words = f"{name} ({span}, {len(ratios)} problems"
        if kind == "all":
            cells = len(mixtures.DIMENSIONS) * len(mixtures.MEASUREMENTS)
            words += f" of {len(found)} of {cells} cells, {max(ratios):.1f} on the worst of them"
        groups[kind].append(f"{words})")
    heads = {
        "all": f"At most {NEAR} times the floor, on every cell that was run",
        "some": f"At most {NEAR} times on some cells, and more on others",
        "none": f"More than {NEAR} times on every cell",
    }
    lines = (f"- {heads[kind]}: {', '.join(names)}." for kind, names in groups.items() if names)
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False) for line in lines) + "\n"


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
    parts, rows = [], scenes.newest(rows)
    for name, scene in scenes.SCENES.items():
        done = [row for row in rows if row["scene"] == name]
        if not done:
            continue
        images = list(dict.fromkeys(row["image"] for row in done))
        out = "| method | mean | sample | 90 % | 50 % | spread | evaluations |\n|---|--:|--:|--:|--:|--:|--:|\n"
        solvers, notes = {}, []
        for solver in dict.fromkeys(row["solver"] for row in done):
            its = [row for row in done if row["solver"] == solver]
            if {row["image"] for row in its} == set(images):
                out += _scene_line(solver, its)
                solvers[solver] = mean(row["psnr"] for row in its)
                notes += _spread_words(solver, its)
        rivals = {}
        for rival in scene.rivals:
            rivals[rival] = mean(_first(done, image)["rivals"][rival] for image in images)
            out += f"| {rival} | {rivals[rival]:.2f} | | | | | |\n"
        if solvers:
            notes.insert(0, _margin_words(solvers, rivals))
        settings = "; ".join(dict.fromkeys(_setting(row) for row in done))
        title = f"\n## {scene.title}\n\nPrior `{scene.prior}`; {', '.join(images)}. {settings}.\n"
        parts.append(f"{title}\n{out}\n{' '.join(notes)}\n\n![{scene.title}](images/scenes/{name}.png)\n")
    return SCENES.format(made=MADE.format(file="scenes.jsonl"), parts="".join(parts))


def _setting(row: Row) -> str:
    parts = [f"{row['samples']} samples", f"{row['steps']} steps" if row["steps"] else "", row["setting"]]
    return f"`{row['solver']}`: {', '.join(filter(None, parts))}"


def _margin_words(solvers: dict[str, float], rivals: dict[str, float]) -> str:
    """How the best solver stands to the best classical method."""
    best, other = max(solvers, key=lambda s: solvers[s]), max(rivals, key=lambda r: rivals[r])
    gain = solvers[best] - rivals[other]
    how = f"{abs(gain):.2f} dB {'better' if gain > 0 else 'WORSE'}"
    return f"The mean of `{best}` is {how} than the best classical method, {other}."


def _spread_words(solver: str, rows: Sequence[Row]) -> list[str]:
    """What is to be said of samples that do not know their error."""
    spreads = [row["spread"] for row in rows if "spread" in row]
    ratio = mean(spreads) if spreads else 1.0
    if ratio > FAITHFUL:
        what = f"over-confident: its error is {ratio:.1f} times what its samples say"
        return [f"`{solver}` is {what}; its deviation shows where it may be wrong, not by how much."]
    if ratio < 1 / FAITHFUL:
        return [f"`{solver}` is too careful: its error is {ratio:.2f} times what its samples say."]
    return []


def _first(rows: Sequence[Row], image: str) -> Row:
    return next(row for row in rows if row["image"] == image)


def _scene_line(solver: str, rows: Sequence[Row]) -> str:
    covers = [row["cover"] for row in rows if "cover" in row]
    cover = [f"{mean(c[k] for c in covers):.0%}" if covers else "" for k in (0, 1)]
    spreads = [row["spread"] for row in rows if "spread" in row]
    figures = [f"{mean(row[key] for row in rows):.2f}" for key in ("psnr", "psnr_sample")]
    spread = f"{mean(spreads):.2f}" if spreads else ""
    return f"| {' | '.join((solver, *figures, *cover, spread))} | {mean(r['nfe'] for r in rows):.0f} |\n"
