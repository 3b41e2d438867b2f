"""Small figures without a plotting library: axes, curves, bands and bars, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..io.atomic import write_atomic

INK, GREY, BLUE, ORANGE, BAND = "#222222", "#999999", "#2f6db5", "#d9822b", "#e3e8ef"

FINE = 3
"""Everything is drawn this many times as large, and reduced: smooth lines."""

Points = Sequence[tuple[float, float]]


class Figure:
    """A grid of panels of ``size`` (width, height) pixels, white."""

    def __init__(self, rows: int, columns: int, size: tuple[int, int] = (320, 260)) -> None:
        self.columns, self.size = columns, (size[0] * FINE, size[1] * FINE)
        self.image = Image.new("RGB", (columns * self.size[0], rows * self.size[1]), "white")

    def panel(self, k: int, x: tuple[float, float], y: tuple[float, float], title: str = "") -> Panel:
        """The k-th panel, row by row, with axes over the intervals x and y."""
        row, column = divmod(k, self.columns)
        return Panel(self.image, (column * self.size[0], row * self.size[1]), self.size, x, y, title)

    def save(self, path: Path) -> Path:
        """Write the figure as PNG, atomically."""
        small = self.image.resize((self.image.width // FINE, self.image.height // FINE), Image.Resampling.LANCZOS)
        return write_atomic(path, lambda p: small.save(p, format="PNG", optimize=True))


class Panel:
    """Axes in a part of an image; coordinates are those of the data."""

    def __init__(
        self,
        image: Image.Image,
        at: tuple[int, int],
        size: tuple[int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        title: str,
    ) -> None:
        self.draw, self.x, self.y = ImageDraw.Draw(image), x, y
        self.left, self.right = at[0] + 48 * FINE, at[0] + size[0] - 14 * FINE
        self.top, self.bottom = at[1] + 26 * FINE, at[1] + size[1] - 42 * FINE
        self.font = ImageFont.load_default(11 * FINE)
        self.text((self.left, at[1] + 6 * FINE), title, INK)

    def text(self, at: tuple[float, float], words: str, colour: str = INK, anchor: str = "la") -> None:
        """Words at a place in pixels of the large image."""
        self.draw.text(at, words, fill=colour, font=self.font, anchor=anchor)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point of the data."""
        u = (x - self.x[0]) / (self.x[1] - self.x[0])
        v = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + u * (self.right - self.left), self.bottom - v * (self.bottom - self.top)

    def band(self, lower: Points, upper: Points, colour: str = BAND) -> None:
        """What lies between two curves."""
        self.draw.polygon([self.place(*p) for p in (*lower, *reversed(upper))], fill=colour)

    def bars(self, edges: Sequence[float], heights: Sequence[float], colour: str = BLUE) -> None:
        """Bars between neighbouring edges."""
        for a, b, h in zip(edges, edges[1:], heights, strict=False):
            (x0, y0), (x1, y1) = self.place(a, h), self.place(b, 0)
            self.draw.rectangle([x0 + FINE, y0, x1 - FINE, y1], fill=colour)

    def line(self, points: Points, colour: str = INK, width: float = 1.6) -> None:
        """A curve through points."""
        self.draw.line([self.place(*p) for p in points], fill=colour, width=round(width * FINE), joint="curve")

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> None:
        """The frame, ticks with their numbers, and labels; drawn last, over the data."""
        self.draw.rectangle([self.left, self.top, self.right, self.bottom], outline=GREY, width=FINE)
        for t in x_ticks:
            at = self.place(t, self.y[0])
            self.draw.line([at, (at[0], at[1] + 4 * FINE)], fill=GREY, width=FINE)
            self.text((at[0], at[1] + 6 * FINE), f"{t:g}", INK, "ma")
        for t in y_ticks:
            at = self.place(self.x[0], t)
            self.draw.line([at, (at[0] - 4 * FINE, at[1])], fill=GREY, width=FINE)
            self.text((at[0] - 7 * FINE, at[1]), f"{t:g}", INK, "rm")
        self.text(((self.left + self.right) / 2, self.bottom + 22 * FINE), x_label, INK, "ma")
        self.text((self.right, self.top - 4 * FINE), y_label, GREY, "rd")

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Names and colours, in the upper left corner."""
        for k, (name, colour) in enumerate(entries):
            y = self.top + (12 + 15 * k) * FINE
            self.draw.line([(self.left + 10 * FINE, y), (self.left + 28 * FINE, y)], fill=colour, width=2 * FINE)
            self.text((self.left + 33 * FINE, y), name, INK, "lm")
