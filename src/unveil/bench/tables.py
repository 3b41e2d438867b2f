"""Pages of results that are measured once in a while: the protocol of mixtures, and problems that are not linear.

Made by ``make docs`` from ``docs/results/*.jsonl``, to which ``unveil bench mixtures`` and ``unveil bench nonlinear``
add rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from ..io.ledger import Ledger, Row
from . import mixtures, nonlinear, scenes

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
of what such draws have among themselves: 1 is perfect, but for a spread of about {spread:.0%}. In brackets the ratio of
standard deviations. A dash: the solver does not take the problem, or was not run; a point estimate has its error of the
mean instead, in posterior standard deviations, in italics. Each is one run of one seed: where modes lie apart, as in
phase-2, their shares, and with them the distance, change from seed to seed.

{table}
"""


FAITHFUL = 1.25
"""Factor between the error and what the samples say it is, beyond which a page speaks of it."""

SCENES = """# Instruments

{made} The command that adds to that file, and draws the strips, is
`unveil bench scenes --out docs/results/scenes.jsonl --pictures docs/images/scenes`.

What instruments measure of images that are known and that no prior of this package was trained on, reconstructed by
solvers and by the classical methods of each instrument; these may choose their parameters with the truth at hand. PSNR
in dB, a mean over the images. Of the samples: `mean` is that of their mean, `sample` that of one; `90 %` and
`50 %` the share of pixels whose truth lies in intervals of the samples that should hold it that often; `spread` the
root mean square error of the mean in units of what the samples say it is: 1 is calibrated, more is over-confident.
Options of the solvers, the spread of `daps` above all, were chosen on the first image of each scene, the one that is
shown, with a few samples of it. `deviation` is the samples' standard deviation, `error` that of the mean, on one scale.
{parts}"""


def results(root: Path) -> dict[str, str]:
    """The pages as Markdown by their file name under ``docs/``; none for results that are not there."""
    folder, out = root / "docs" / "results", {}
    rows = mixtures.read(folder / "mixtures.jsonl")
    if rows:
        out["mixtures.md"] = mixtures_page(rows)
    rows = Ledger(folder / "nonlinear.jsonl", ("solver", "setting", "problem", "samples")).rows
    if rows:
        out["nonlinear.md"] = nonlinear_page(rows)
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
    """The page of problems with reference posteriors."""
    most = max(row["samples"] for row in rows if "sw2_floor" in row)
    spread = mean(row["sw2_spread"] for row in rows if "sw2_spread" in row)
    return NONLINEAR.format(
        made=MADE.format(file="nonlinear.jsonl"),
        references=_references().rstrip(),
        samples=most,
        spread=spread,
        table=_nonlinear_table(rows).rstrip(),
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


def _nonlinear_table(rows: Sequence[Row]) -> str:
    head = "| solver | evaluations | " + " | ".join(nonlinear.NAMES) + " |\n"
    out = head + "|---|--:|" + "--:|" * len(nonlinear.NAMES) + "\n"
    for solver, setting in dict.fromkeys((row["solver"], row["setting"]) for row in rows):
        its = {row["problem"]: row for row in rows if (row["solver"], row["setting"]) == (solver, setting)}
        cost = f"{mean(row['nfe'] for row in its.values()):.0f}"
        if any(row["vjps"] for row in its.values()):
            cost += f" + {mean(row['vjps'] for row in its.values()):.0f} vjp"
        cells = [_cell(its.get(name)) for name in nonlinear.NAMES]
        out += f"| {' '.join(filter(None, (solver, setting)))} | {cost} | {' | '.join(cells)} |\n"
    return out


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "DONE":
        return str(row["status"]).lower()
    if "sw2_floor" not in row:
        return f"*{row['mean']:.2f}*"
    return f"{row['sw2_floor']:.1f} ({row['std']:.2f})"


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
