"""Decoupled data consistency: a clean estimate, then the data, then noise again."""

from __future__ import annotations

SOLVERS = {
    "bird": "BIRD",
    "daps": "DAPS",
    "dcdp": "DCDP",
    "diffpir": "DiffPIR",
    "dmplug": "DMPlug",
    "pnp-dm": "PnPDM",
    "projdiff": "ProjDiff",
    "resample": "ReSample",
    "sitcom": "SITCOM",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""
