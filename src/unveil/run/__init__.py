"""Running a solver: the one loop, results, checkpoints, recipes."""

from __future__ import annotations

from .compare import Comparison, compare
from .fit import fit
from .result import Result
from .sample import sample
from .solve import solve
from .stream import Budget, Status, Stream, stream

__all__ = ["Budget", "Comparison", "Result", "Status", "Stream", "compare", "fit", "sample", "solve", "stream"]
