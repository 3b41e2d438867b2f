"""``unveil reconstruct``: measured data in; a reconstruction, its uncertainty and classical methods out."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..classical.instruments import METHODS
from ..errors import CheckpointError, InputError
from ..io.atomic import write_atomic, write_text
from ..io.data import DataFormat, read_data, write_data
from ..metrics import psnr, ssim
from ..operators import Grayscale, Identity, Operator
from ..operators.combine import Affine
from ..priors.base import Prior
from ..problem import Problem
from ..run import Result, Status, solve, stream
from ..run.recipe import recipe, schedule_of, solver_of
from ..run.result import misfit_words
from ..solvers import choose, get_solver
from ..solvers.base import Solver
from .device import pick
from .instruments import SUITED, Measured, measure
from .job import PROBLEM, fingerprint, open_prior, tiled
from .progress import Bar
from .restore import CHECKPOINT, REPORT, _arguments, _threads, _tidy, empty_folder
from .scan import Scan, read_scan
from .tasks import SETTINGS, STEPS, Asked, typed

FORMAT = 2
SUITED_WORDS = "of this instrument's solvers the one whose samples differ by as much as they err"
NAMES = {
    "zero-filled": "zero-filled",
    "tv": "total variation",
    "fbp": "filtered back-projection",
    "sart": "SART",
    "mlem": "MLEM",
    "interpolated": "interpolated",
    "hio": "hybrid input-output",
}


@dataclass(frozen=True)
class Slice:
    """One reconstructed slice, in the instrument's units: images [C, H, W], complex where the signal is.

    ``pictures`` hold "reconstruction", "uncertainty" (with more than one sample) and the classical methods' images;
    ``scores`` what was measured of those against ``truth``. ``samples`` is how many samples count.
    """

    result: Result
    pictures: dict[str, Tensor]
    black: float
    white: float
    samples: int = 1
    truth: Tensor | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """All slices, and what they are of."""

    scan: Scan
    asked: Asked
    slices: tuple[Slice, ...]
    reason: str = ""
    """Why the solver was picked, where "auto" was asked for."""

    @property
    def words(self) -> str:
        """What the misfit means."""
        fits = [s.result.misfit for s in self.slices if s.result.misfit is not None]
        if not fits:
            return "there is no noise to compare the misfit with"
        return misfit_words(float(torch.cat([f.flatten() for f in fits]).mean()))

    @property
    def failed(self) -> bool:
        """Whether a run did not come to its end, or an image holds anything but numbers."""
        done = all(s.result.status is Status.DONE for s in self.slices)
        return not (done and all(bool(torch.isfinite(s.pictures["reconstruction"].abs()).all()) for s in self.slices))


def reconstruct(
    path: str | Path,
    instrument: str,
    config: str | Path | None,
    asked: Asked,
    out: str | Path,
    truth: str | Path | None = None,
    quiet: bool = False,
) -> Reconstruction:
    """Reconstruct a measured file into the folder ``out``.

    Of ``asked`` what is not of a photograph's task counts. ``truth`` is a file of images in the instrument's units, to
    score with. Raises an :class:`UnveilError` before anything is computed or written if that cannot be done;
    KeyboardInterrupt leaves a checkpoint.
    """
    folder = empty_folder(out)
    asked = replace(asked, device=str(pick(asked.device)), threads=asked.threads or torch.get_num_threads())
    asked = replace(asked, goal=asked.goal or ("mmse" if asked.samples == 1 else "sample"))
    if asked.samples < 1:
        raise InputError(f"--samples must be at least 1, got {asked.samples}")
    _threads(asked)
    scan = read_scan(path, instrument, config)
    scan = replace(scan, files={"file": _file(path), **scan.files})
    if truth is not None:
        scan = _with_truth(scan, truth)
    prior = open_prior(asked.prior)
    problem, fitted = _problem(scan, 0, prior)[1:]
    _check_output(scan, problem.shape[1:])
    plan = plan_of(asked, problem, scan.instrument)
    if asked.sigma_start is None:
        asked = replace(asked, sigma_start=plan.sigma_start)
    run = stream(problem, tiled(fitted, _size(problem)), plan.solver, steps=plan.steps, **_arguments(asked))
    why = {"auto": plan.reason, "start": plan.start}
    made = _tidy({**recipe(run, str(asked.goal)), **{key: value for key, value in why.items() if value}})
    _save(folder, scan, asked, made)
    return _run(folder, scan, asked, prior, made, quiet)


def resume(out: str | Path, quiet: bool = False) -> Reconstruction | None:
    """Go on with the run in a folder, to the bits of one without interruption; None if it is complete.

    Raises :class:`CheckpointError` if there is no run, or its files are damaged.
    """
    folder = Path(out)
    scan, asked, made = _load(folder)
    if (folder / REPORT).is_file():
        return None
    pick(asked.device, "go on where the run began")
    _threads(asked)
    return _run(folder, scan, asked, open_prior(asked.prior), made, quiet)


def is_reconstruction(folder: Path) -> bool:
    """Whether a folder holds a run of ``unveil reconstruct``."""
    try:
        with safe_open(folder / PROBLEM, framework="pt") as file:
            return "unveil-scan" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


# -- the problem -------------------------------------------------------------------------------------------------------


def _file(path: str | Path) -> str:
    where = Path(path)
    return json.dumps(fingerprint(where)) if where.is_file() else str(path)


def _with_truth(scan: Scan, truth: str | Path) -> Scan:
    values = read_data(truth)[0]
    if not bool(torch.isfinite(torch.view_as_real(values) if values.is_complex() else values).all()):
        raise InputError(f"the truth {truth} holds NaN or infinite values")
    values = values.abs() if values.is_complex() and scan.instrument != "mri" else values
    values = values[None] if values.ndim == 2 or (values.ndim == 3 and scan.instrument == "mosaic") else values
    if values.shape[0] == scan.count and scan.count != len(scan.slices):
        values = values[list(scan.slices)]
    shape = _measured(scan, 0, 1).operator.in_shape or ()
    if values.shape[0] != len(scan.slices) or tuple(values.shape[-2:]) != tuple(shape[-2:]):
        raise InputError(
            f"the truth {truth} has shape {tuple(values.shape)}, the images [{len(scan.slices)}, {shape[-2:]}]"
        )
    return replace(scan, arrays={**scan.arrays, "truth": values}, files={**scan.files, "truth": str(truth)})


def _problem(scan: Scan, k: int, prior: Prior) -> tuple[Measured, Problem, Prior]:
    """A slice as measured for a prior, its problem, and the prior in its units."""
    channels = prior.shape[0]
    found = _measured(scan, k, channels)
    shape = tuple(found.operator.in_shape or ())
    if found.complex_signal:
        return found, Problem(found.y, found.operator, found.noise, shape, prior.value_range), prior
    operator: Operator = found.operator
    if channels == 3 and shape[0] == 1:  # a prior of colours, seen through its luminance
        grey = Grayscale(in_shape=(3, *shape[1:]))
        operator = grey if isinstance(operator, Identity) else _after(operator, grey)
        shape = (3, *shape[1:])
    elif channels not in (None, shape[0]):
        raise InputError(
            f"the prior knows signals of {channels} channel(s), {scan.instrument} measures {shape[0]}: choose another "
            "--prior"
        )
    return found, Problem(found.y, operator, found.noise, shape), prior.in_range(0.0, 1.0)


def _measured(scan: Scan, k: int, channels: int | None) -> Measured:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are notes of the scan already
        return measure(scan, k, channels)


def _after(operator: Operator, inner: Operator) -> Operator:
    """``operator @ inner``, an offset staying outside."""
    if isinstance(operator, Affine):
        return (operator.operator @ inner) + operator.offset
    return operator @ inner


def _size(problem: Problem) -> tuple[int, int]:
    return problem.shape[-2], problem.shape[-1]


@dataclass(frozen=True)
class Plan:
    """The solver of a run and its steps; where "auto" was asked for why it is this one, the kind of the classical image
    that it starts at, "" for none, and the level of noise there."""

    solver: Solver
    steps: int
    reason: str = ""
    start: str = ""
    sigma_start: float | None = None


def plan_of(asked: Asked, problem: Problem, instrument: str) -> Plan:
    """How a problem of an instrument is solved. Raises where no solver fits."""
    if asked.solver == "auto":
        suited = SUITED[instrument]
        if asked.goal == "sample" or suited.start:
            made = get_solver(suited.solver, **{**suited.options, **typed(suited.solver, asked.options)})
            if made.unfit(problem.white) is None:
                return Plan(made, asked.steps or suited.steps, SUITED_WORDS, suited.start, suited.sigma_start)
        choice = choose(problem, str(asked.goal), samples=asked.samples, steps=asked.steps)
        own = typed(choice.solver.name, asked.options)
        return Plan(choice.solver.with_options(**own), asked.steps or choice.steps, choice.reason)
    name, own = asked.solver, typed(asked.solver, asked.options)
    solver = get_solver(name, **{**SETTINGS.get((name, ""), {}), **own})
    if solver.unfit(problem.white) is not None:  # what suits linear problems may not suit this one
        solver = get_solver(name, **own)
    return Plan(solver, asked.steps or STEPS.get(name, solver.default_steps))


# -- what lets a run go on ---------------------------------------------------------------------------------------------


def _save(folder: Path, scan: Scan, asked: Asked, made: dict[str, Any]) -> None:
    import tomli_w

    header = {
        "format": FORMAT,
        "instrument": scan.instrument,
        "table": scan.table,
        "slices": list(scan.slices),
        "count": scan.count,
        "form": asdict(scan.form),
        "files": scan.files,
        "notes": list(scan.notes),
        "asked": asdict(asked),
        "recipe": made,
    }
    data = {k: v.cpu().clone().contiguous() for k, v in scan.arrays.items()}
    write_atomic(folder / PROBLEM, lambda p: save_file(data, p, {"unveil-scan": json.dumps(header)}))
    facts = {"files": scan.files, "instrument": {"name": scan.instrument, **_tidy(scan.table)}, "run": made}
    text = "# What was run; [instrument] is the configuration of unveil reconstruct --config.\n\n" + tomli_w.dumps(
        facts
    )
    write_text(folder / "recipe.toml", text)


def _load(folder: Path) -> tuple[Scan, Asked, dict[str, Any]]:
    path = folder / PROBLEM
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("unveil-scan", "{}"))
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a run's file ({error}): start the run anew") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {header.get('format')}, this version reads {FORMAT}: start anew")
    form = header["form"]
    form |= {"spacing": tuple(form["spacing"]), "affine": tuple(tuple(row) for row in form["affine"])}
    scan = Scan(
        header["instrument"],
        header["table"],
        arrays,
        tuple(header["slices"]),
        header["count"],
        DataFormat(**form),
        header["files"],
        tuple(header["notes"]),
    )
    return scan, Asked(**header["asked"]), header["recipe"]


# -- running -----------------------------------------------------------------------------------------------------------


def _run(folder: Path, scan: Scan, asked: Asked, prior: Prior, made: dict[str, Any], quiet: bool) -> Reconstruction:
    device = torch.device(asked.device)
    solver, schedule = solver_of(made), schedule_of(made)
    slices = []
    for k, number in enumerate(scan.slices):
        measured, problem, fitted = _problem(scan, k, prior)
        home = folder / "slices" / f"{number:04d}"
        classic = _classic(measured, home)
        if (home / "result.json").is_file():
            result = Result.load(home)
        else:
            title = f"{scan.instrument}, {solver.name}"
            title += f", slice {k + 1} of {len(scan.slices)}" if len(scan.slices) > 1 else ""
            start = str(made.get("start", ""))
            with Bar(title, len(schedule), quiet=quiet) as bar:
                result = solve(
                    problem.to(device),
                    tiled(fitted, _size(problem)).to(device),
                    solver,
                    goal=str(asked.goal),
                    schedule=schedule,
                    **{**_arguments(asked), "seed": asked.seed + number},
                    x_init=classic[start][0].expand(problem.shape) if start else None,
                    on_step=bar,
                    checkpoint=home / CHECKPOINT,
                    resume=(home / CHECKPOINT).is_file(),
                ).to("cpu")
            result.save(home)
            if result.status is Status.DONE:
                (home / CHECKPOINT).unlink(missing_ok=True)
        slices.append(_judged(scan, k, measured, result, classic))
    outcome = Reconstruction(scan, asked, tuple(slices), str(made.get("auto", "")))
    write(folder, outcome)
    return outcome


def _classic(measured: Measured, home: Path) -> dict[str, Tensor]:
    """The classical methods' images [1, ...] by kind, made once."""
    kept = home / "classic.safetensors"
    if not kept.is_file():
        home.mkdir(parents=True, exist_ok=True)
        problem = Problem(measured.y, measured.operator, measured.noise)
        found = {kind: METHODS[kind](problem).contiguous() for kind in measured.kinds}
        write_atomic(kept, lambda p: save_file(found, p))
    return load_file(kept)


def _judged(scan: Scan, k: int, measured: Measured, result: Result, classic: dict[str, Tensor]) -> Slice:
    scale = measured.white - measured.black

    def units(x: Tensor) -> Tensor:
        """Signals [N, C, H, W] as images in the instrument's units."""
        if measured.complex_signal:
            return torch.complex(x[:, 0], x[:, 1])[:, None] * scale
        grey = x.shape[1] == 3 and (measured.operator.in_shape or (3,))[0] == 1
        return (Grayscale()(x) if grey else x) * scale + measured.black

    samples = units(_that_count(measured, result))
    pictures = {"reconstruction": units(result.estimate)[0] if len(samples) == 1 else samples.mean(0)}
    if len(samples) > 1:
        centred = (samples - samples.mean(0)).abs().square()
        pictures["uncertainty"] = (centred.sum(0) / (len(samples) - 1)).sqrt()
    pictures |= {NAMES[kind]: units(x)[0] for kind, x in classic.items()}
    scores, truth = {}, None
    if "truth" in scan.arrays:
        truth = scan.arrays["truth"][k].reshape(pictures["reconstruction"].shape)
        for name, x in pictures.items():
            if name != "uncertainty":
                scores[name] = _score(x, _facing(truth, x, measured), measured)
        truth = _facing(truth, pictures["reconstruction"], measured)
        if len(samples) >= 4 and not truth.is_complex() and not samples.is_complex():
            scores["reconstruction"] |= _held(samples, truth)
    return Slice(result, pictures, measured.black, measured.white, len(samples), truth, scores)


def _that_count(measured: Measured, result: Result) -> Tensor:
    """The samples [S, ...]; of an ambiguous problem those that explain the data as well as the best one."""
    result = result.unweighted()
    samples, far = result.samples[0], result.residual[0]
    return samples[far <= 1.05 * far.min()] if measured.ambiguous else samples


def _facing(truth: Tensor, x: Tensor, measured: Measured) -> Tensor:
    """The truth, or its mirror image through the middle where that is nearer and the data tell neither."""
    mirrored = truth.flip((-2, -1))
    turned = measured.ambiguous and bool((x - mirrored).abs().square().sum() < (x - truth).abs().square().sum())
    return mirrored if turned else truth


def _held(samples: Tensor, truth: Tensor) -> dict[str, float]:
    """The share of the truth between order statistics of samples [S, ...], and the share that should be: about 0.9.

    Between the k-th least and the k-th largest of S draws another one lies with probability (S + 1 - 2 k) / (S + 1).
    """
    count = len(samples)
    k = max(1, round(0.05 * (count + 1)))
    ordered = samples.sort(0).values
    inside = (truth >= ordered[k - 1]) & (truth <= ordered[count - k])
    return {"coverage": float(inside.float().mean()), "nominal": (count + 1 - 2 * k) / (count + 1)}


def _score(x: Tensor, truth: Tensor, measured: Measured) -> dict[str, float]:
    """PSNR in dB and SSIM of magnitudes, black and white being 0 and 1."""

    def shown(v: Tensor) -> Tensor:
        v = v.abs() if v.is_complex() else v
        return ((v - measured.black) / (measured.white - measured.black)).clamp(0, 1)[None].float()

    out = {"psnr": float(psnr(shown(x), shown(truth)))}
    if min(truth.shape[-2:]) >= 11:
        out["ssim"] = float(ssim(shown(x), shown(truth)))
    return out


# -- writing -----------------------------------------------------------------------------------------------------------


def write(folder: Path, outcome: Reconstruction) -> None:
    """Images in the kind of file that the data came in, facts, and, last, the report."""
    from .reconstruct_page import page_of

    form, suffix = output(outcome.scan)
    for name in outcome.slices[0].pictures:
        images = torch.stack([s.pictures[name] for s in outcome.slices]).squeeze(1)
        images = images[0] if len(outcome.slices) == 1 else images
        if images.is_complex() and suffix in (".tif", ".fits"):
            images = images.abs()
        write_data(folder / f"{name.replace(' ', '-')}{suffix}", images, form)
    facts = {
        "status": "DONE" if not outcome.failed else "FAILED",
        "words": outcome.words,
        "notes": list(outcome.scan.notes),
        "slices": [
            {
                "number": number,
                "chi2": None if s.result.misfit is None else float(s.result.misfit.mean()),
                "nfe": s.result.nfe,
                "seconds": s.result.seconds,
                "black": s.black,
                "white": s.white,
                "scores": s.scores,
            }
            for number, s in zip(outcome.scan.slices, outcome.slices, strict=True)
        ],
    }
    write_text(folder / "result.json", json.dumps(facts, indent=1))
    if not outcome.failed:
        write_text(folder / REPORT, page_of(outcome, (folder / "recipe.toml").read_text(encoding="utf-8")))


def _check_output(scan: Scan, shape: tuple[int, ...]) -> None:
    """Write zeros where nobody sees them: a kind of file that cannot be written is said before anything is computed."""
    form, suffix = output(scan)
    with TemporaryDirectory() as folder:
        write_data(Path(folder) / f"image{suffix}", torch.zeros(len(scan.slices), *shape).squeeze(0), form)


def output(scan: Scan) -> tuple[DataFormat, str]:
    """What images are written as: the kind of file that the data came in, or what the configuration says."""
    form = scan.form
    suffix = str(scan.table.get("output", form.suffix or ".nii.gz"))
    if scan.instrument in ("ct", "pet"):
        form = replace(form, spacing=(float(scan.table.get("pixel", 1.0)),) * 2, affine=(), header="")
    return form, suffix
