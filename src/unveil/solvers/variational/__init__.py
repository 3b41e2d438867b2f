"""Variational inference: fit a simple distribution to the posterior."""

from __future__ import annotations

SOLVERS = {
    "aps": "APS",
    "davi": "DAVI",
    "flair": "FLAIR",
    "red-diff": "REDDiff",
    "rsld": "RSLD",
    "score-prior": "ScorePrior",
    "score-prior-surrogate": "ScorePriorSurrogate",
    "sds": "SDS",
    "smrd": "SMRD",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""

FITTED = ("aps", "davi", "score-prior", "score-prior-surrogate")
"""Those that learn a network, in a run or ahead of it (``unveil fit``)."""
