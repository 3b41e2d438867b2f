"""Sequential Monte Carlo: clouds of weighted particles, exact in the limit of many; and ensembles for black boxes."""

from __future__ import annotations

SOLVERS = {
    "fps-smc": "FPSSMC",
    "mcgdiff": "MCGDiff",
    "tds": "TDS",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""
