"""Checkpoints: the state of an unfinished run in one file, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..io.atomic import write_atomic
from ..solvers.base import State
from .recipe import identity, recipe

if TYPE_CHECKING:
    from .stream import Stream

FORMAT = 1

Resume = tuple[State, float, float, float]
"""A state with what it cost: evaluations and back-propagations per sample, seconds."""


def save_checkpoint(run: Stream, path: str | Path, goal: str = "sample") -> Path:
    """Write the last good state of a run, atomically. Raises :class:`CheckpointError` before the first step."""
    if run.state is None:
        raise CheckpointError("there is nothing to save before the first step")
    state = run.state
    tensors = {"x": state.x, "x0": state.x0, **{f"aux.{k}": v for k, v in state.aux.items()}}
    header = {
        "format": FORMAT,
        "i": state.i,
        "nfe": run.nfe,
        "vjps": run.vjps,
        "seconds": run.seconds,
        "recipe": recipe(run, goal),
    }
    # a copy, because safetensors refuses tensors that share memory
    data = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    return write_atomic(path, lambda p: save_file(data, p, {"unveil-checkpoint": json.dumps(header)}))


def read_checkpoint(path: str | Path) -> tuple[Resume, dict[str, Any]]:
    """The state and cost in a checkpoint, and the recipe of its run.

    Raises :class:`CheckpointError` for a missing or truncated file, or one of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}: start the run anew")
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("unveil-checkpoint", "{}"))
            # in memory of their own: a product of matrices can differ in its last bit where a file has them unaligned
            data = {k: f.get_tensor(k).clone() for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error}): start the run anew") from error
    if not header:
        raise CheckpointError(f"{path} is not a checkpoint of this library: start the run anew")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')}, this version reads {FORMAT}: "
            f"use unveil {header.get('recipe', {}).get('unveil', 'of its time')}, or start the run anew"
        )
    aux = {k[4:]: v for k, v in data.items() if k.startswith("aux.")}
    try:
        state = State(data["x"], data["x0"], header["i"], aux)
        return (state, header["nfe"], header["vjps"], header["seconds"]), header["recipe"]
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged: its header has no {error}; start the run anew") from error


def resume_from(path: str | Path, run: Stream) -> None:
    """Put the state of a checkpoint into a run that has not begun.

    Raises :class:`CheckpointError` if the checkpoint belongs to another run, naming what differs.
    """
    (state, nfe, vjps, seconds), other = read_checkpoint(path)
    mine, its = json.loads(json.dumps(identity(recipe(run, "")))), identity(other)
    differ = [k for k in {**mine, **its} if mine.get(k) != its.get(k)]
    if differ:
        raise CheckpointError(f"{path} belongs to another run: {', '.join(differ)} differ; start the run anew")
    run.state, run.seconds = state.to(run.problem.device), seconds
    run.cost.forward, run.cost.backward = round(nfe * run.n), round(vjps * run.n)
