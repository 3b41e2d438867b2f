"""Explicit approximations of the likelihood score grad log p(y | x_t)."""

from __future__ import annotations

SOLVERS = {
    "ccdf": "CCDF",
    "ddnm": "DDNM",
    "ddpg": "DDPG",
    "ddrm": "DDRM",
    "dds": "DDS",
    "dmap": "DMAP",
    "dmps": "DMPS",
    "dpps": "DPPS",
    "dps": "DPS",
    "dsg": "DSG",
    "freedom": "FreeDoM",
    "ilvr": "ILVR",
    "kadkhodaie-simoncelli": "KadkhodaieSimoncelli",
    "lgd-mc": "LGDMC",
    "mcg": "MCG",
    "mmps": "MMPS",
    "mpgd": "MPGD",
    "peng": "Peng",
    "pigdm": "PiGDM",
    "repaint": "RePaint",
    "score-ald": "ScoreALD",
    "score-sde": "ScoreSDE",
    "snips": "SNIPS",
    "tmpd": "TMPD",
}
"""Name of each solver and its class, in the file of that name (``-`` becomes ``_``)."""
