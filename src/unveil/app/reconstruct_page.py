"""The report of ``unveil reconstruct``."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from .pages import cost_facts
from .reconstruct import Reconstruction, Slice
from .report import Figure, Section, Table, heat, page

TITLES = {
    "mri": "Magnetic resonance imaging",
    "ct": "Computed tomography",
    "pet": "Positron emission tomography",
    "mosaic": "A sensor's mosaic",
    "interferometer": "Radio interferometry",
    "diffraction": "Coherent diffraction",
}
SHOWN = 8
"""Slices that are shown; all are in the files."""


def page_of(outcome: Reconstruction, recipe: str) -> str:
    """The page: pictures of every method side by side, the uncertainty, scores where the truth is known."""
    scan, solver = outcome.scan, outcome.slices[0].result.recipe["solver"]
    name = _name(scan.files.get("file", ""))
    data = " x ".join(map(str, scan.arrays["y"].shape[1:]))
    lead = f"{name}: {len(scan.slices)} of {scan.count} slices, data of {data}."
    notes = "\n".join(f"Note: {note}." for note in scan.notes)
    sections = [Section("Data", notes, _facts(outcome))]
    for number, part in list(zip(scan.slices, outcome.slices, strict=True))[:SHOWN]:
        title = "Reconstruction" if len(scan.slices) == 1 else f"Slice {number}"
        sections.append(Section(title, figures=_figures(part)))
    if outcome.slices[0].scores:
        sections.append(_scores(outcome))
    sections.append(Section("Recipe", "recipe.toml: what was run.", code=recipe, details=True))
    return page(f"{TITLES[scan.instrument]} with {solver}", lead, sections)


def _name(file: str) -> str:
    path = json.loads(file)["path"] if file.startswith("{") else file
    return str(path).rsplit("/", 1)[-1]


def _facts(outcome: Reconstruction) -> list[tuple[str, str, str]]:
    result = outcome.slices[0].result
    rows = [("Images in units of", f"{outcome.slices[0].white:.4g}", "what is shown white, in the data's units")]
    if result.misfit is not None:
        rows.append(("Chi-square per degree of freedom", f"{float(result.misfit.mean()):.3g}", outcome.words))
    return [*rows, *cost_facts(result)]


def _figures(part: Slice) -> list[Figure]:
    scale = part.white - part.black

    def shown(x: Tensor) -> Tensor:
        x = x.abs() if x.is_complex() else x
        return ((x - part.black) / scale).clamp(0, 1).float()[..., :, :]

    pictures, samples, truth = part.pictures, part.samples, part.truth
    out = []
    if truth is not None:
        out.append(Figure("Truth", shown(truth)))
    for name, x in pictures.items():
        if name not in ("reconstruction", "uncertainty"):
            out.append(Figure(name[0].upper() + name[1:], _flat(shown(x)), _words(part, name, "classical method")))
    words = (
        f"mean of {samples} samples" if samples > 1 else "one sample" if part.result.goal == "sample" else "estimate"
    )
    drawn = part.result.samples.shape[1]
    if samples < drawn:
        words += f" (of {drawn}; the others explain the data worse)"
    out.append(
        Figure("Reconstruction", _flat(shown(pictures["reconstruction"])), _words(part, "reconstruction", words))
    )
    if "uncertainty" in pictures:
        std = pictures["uncertainty"].float().square().mean(0, keepdim=True).sqrt()
        top = max(float(std.flatten().quantile(0.995)) if std.numel() < 10**7 else float(std.max()), 1e-30)
        out.append(
            Figure(
                "Uncertainty", heat(_flat(std / top)), f"standard deviation of {samples} samples; brightest: {top:.3g}"
            )
        )
    if truth is not None:
        error = (shown(pictures["reconstruction"]) - shown(truth)).abs().mean(0, keepdim=True)
        top = max(float(error.max()), 1e-30)
        out.append(Figure("Error", heat(_flat(error / top)), f"brightest: {top * scale:.3g}"))
    return out


def _flat(x: Tensor) -> Tensor:
    """[C, H, W]; of a volume its middle slice."""
    return x if x.ndim == 3 else x[:, x.shape[1] // 2]


def _words(part: Slice, name: str, words: str) -> str:
    values = part.scores.get(name)
    if values is None:
        return words
    text = f"{words}; PSNR {values['psnr']:.2f} dB"
    return text + (f", SSIM {values['ssim']:.3f}" if "ssim" in values else "")


def mean_scores(outcome: Reconstruction) -> dict[str, dict[str, float]]:
    """Of each method, over slices."""
    out: dict[str, dict[str, float]] = {}
    for name, values in outcome.slices[0].scores.items():
        shared = [key for key in values if all(key in s.scores[name] for s in outcome.slices)]
        out[name] = {key: float(torch.tensor([s.scores[name][key] for s in outcome.slices]).mean()) for key in shared}
    return out


def held(values: dict[str, float]) -> str:
    """How much of the truth the samples' intervals hold, beside what they should."""
    return f"{values['coverage']:.1%} of the truth between samples that should hold {values['nominal']:.1%}"


def _scores(outcome: Reconstruction) -> Section:
    rows = []
    table = mean_scores(outcome)
    for name, values in table.items():
        rows.append(
            [
                name,
                f"{values['psnr']:.2f}",
                f"{values['ssim']:.4f}" if "ssim" in values else "",
                f"{values['coverage']:.1%} ({values['nominal']:.1%})" if "coverage" in values else "",
            ]
        )
    best = max(range(len(rows)), key=lambda r: float(rows[r][1]))
    head = ["method", "PSNR (dB)", "SSIM", "truth held by the samples"]
    words = "Against the truth, between what is shown black and white."
    if any("coverage" in values for values in table.values()):
        words += " In brackets the share of the truth that should lie between the samples."
    return Section("Scores", words, table=Table(head, rows, frozenset({(best, 1)})))
