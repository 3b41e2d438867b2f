"""Report pages: one HTML file with its pictures inside, nothing fetched from anywhere, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

from .._version import __version__
from ..io.images import encode

MAX_SIDE = 1024
"""Larger pictures are reduced for the page."""
PNG_PIXELS = 300_000
"""Pictures of more pixels are embedded as JPEG of high quality."""


@dataclass(frozen=True)
class Figure:
    """A picture [C, H, W] in [0, 1] with a title and a line below it, as JPEG if a ``quality`` is given."""

    title: str
    image: Tensor
    caption: str = ""
    quality: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text; ``best`` names (row, column) cells to set in bold. Columns but the first ``left`` are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A heading with facts (label, value, words), a text, pictures and a table; any of them may be missing."""

    title: str
    text: str = ""
    facts: Sequence[tuple[str, str, str]] = ()
    figures: Sequence[Figure] = ()
    table: Table | None = None
    code: str = ""
    details: bool = field(default=False)


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML of a report."""
    body = "\n".join(_section(s) for s in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(title)}</h1>\n<p class=lead>{escape(lead)}</p></header>\n{body}\n"
        f"<footer>unveil {__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def heat(values: Tensor) -> Tensor:
    """Values [1, H, W] in [0, 1] as colours [3, H, W]: black (NaN, too), violet, red, orange, pale yellow."""
    stops = torch.tensor([[0, 0, 4], [80, 18, 123], [183, 55, 84], [251, 140, 30], [252, 255, 164]]) / 255
    at = values[0].nan_to_num(0).clamp(0, 1) * (len(stops) - 1)
    low = at.floor().long().clamp(max=len(stops) - 2)
    part = (at - low)[..., None]
    return (stops[low] * (1 - part) + stops[low + 1] * part).permute(2, 0, 1)


def _section(section: Section) -> str:
    parts = []
    if section.text:
        parts.append("".join(f"<p>{escape(line)}</p>" for line in section.text.split("\n")))
    if section.facts:
        cells = "".join(
            f"<div><dt>{escape(label)}</dt><dd><b>{escape(value)}</b>{_small(words)}</dd></div>"
            for label, value, words in section.facts
        )
        parts.append(f"<dl>{cells}</dl>")
    if section.figures:
        columns = 3 if len(section.figures) in (3, 5, 6, 9) else 4
        inner = "".join(_figure(f) for f in section.figures)
        parts.append(f'<div class=figures style="--columns: {columns}">{inner}</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    if section.code:
        parts.append(f"<pre>{escape(section.code)}</pre>")
    inside = "\n".join(parts)
    if section.details:
        return f"<details><summary>{escape(section.title)}</summary>{inside}</details>"
    return f"<section><h2>{escape(section.title)}</h2>{inside}</section>"


def _small(words: str) -> str:
    return f"<small>{escape(words)}</small>" if words else ""


def _figure(figure: Figure) -> str:
    height, width = figure.image.shape[-2:]
    caption = f"<span>{escape(figure.caption)}</span>" if figure.caption else ""
    source = _embedded(figure.image, figure.quality)
    return (
        f'<figure><img src="{source}" width={width} height={height} alt="{escape(figure.title)}">'
        f"<figcaption><b>{escape(figure.title)}</b>{caption}</figcaption></figure>"
    )


def _embedded(image: Tensor, quality: int | None = None) -> str:
    """A picture as a data address."""
    height, width = image.shape[-2:]
    longest = max(height, width)
    if longest > MAX_SIDE:
        size = (max(1, round(height * MAX_SIDE / longest)), max(1, round(width * MAX_SIDE / longest)))
        image = torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    small = quality is None and image.shape[-2] * image.shape[-1] <= PNG_PIXELS
    data = encode(image) if small else encode(image, kind="JPEG", quality=quality or 92)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data).decode()}"


def _table(table: Table) -> str:
    head = "".join(f"<th{'' if k < table.left else ' class=n'}>{escape(h)}</th>" for k, h in enumerate(table.head))
    rows = []
    for r, row in enumerate(table.rows):
        cells = []
        for c, text in enumerate(row):
            inner = f"<b>{escape(text)}</b>" if (r, c) in table.best else escape(text)
            cells.append(f"<td{'' if c < table.left else ' class=n'}>{inner}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d636b; --line: #dfe2e6; --paper: #fcfcfb; --card: #f3f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7e9; --soft: #9aa1aa; --line: #33373d; --paper: #15171a; --card: #1e2125; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .35em; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 2.4em 0 .7em; font-weight: 650; }
p { max-width: 72ch; margin: 0 0 .8em; }
.lead, small, footer, figcaption span { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 1px; margin: 1.2em 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
dl div { background: var(--paper); padding: 12px 16px; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; }
dd b { display: block; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: .8rem; line-height: 1.35; }
.figures { display: grid; gap: 24px 16px; margin: 1.2em 0;
  --column: max(180px, (100% - (var(--columns) - 1) * 16px) / var(--columns));
  grid-template-columns: repeat(auto-fill, minmax(var(--column), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--card); }
figcaption { padding-top: 6px; font-size: .875rem; line-height: 1.4; }
figcaption b { font-weight: 600; }
figcaption span { display: block; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1.2em 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: min(100%, 560px); }
th, td { text-align: left; padding: 6px 20px 6px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; color: var(--soft); }
.n { text-align: right; }
details { margin: 2.4em 0; border-top: 1px solid var(--line); padding-top: 12px; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); padding: 16px; border-radius: 6px; overflow: auto; max-height: 480px;
  font: .8rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
footer { margin-top: 3em; font-size: .8rem; }
"""
