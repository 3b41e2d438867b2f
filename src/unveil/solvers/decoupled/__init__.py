"""Decoupled data consistency: a clean estimate, then the data, then noise again."""

from __future__ import annotations

SOLVERS = {
    "daps": "DAPS",
    "diffpir": "DiffPIR",
    "pnp-dm": "PnPDM",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""
