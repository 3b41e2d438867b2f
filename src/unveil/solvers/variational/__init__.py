"""Variational inference: fit a simple distribution to the posterior."""

from __future__ import annotations

SOLVERS = {
    "flair": "FLAIR",
    "red-diff": "REDDiff",
    "rsld": "RSLD",
    "sds": "SDS",
    "smrd": "SMRD",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""
