"""What a restoration works on: the problem made from a photograph, and the file that lets a run go on without it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..io.atomic import write_atomic
from ..io.images import ImageFormat, in_colour, read_image, resized_alpha
from ..operators import Grayscale, Identity, Operator
from ..priors.base import Prior
from ..problem import Problem, as_noise
from .tasks import KERNELS, MASKS, Asked, file_of, operator_for, read_kernel, read_mask

FORMAT = 1
PROBLEM = "problem.safetensors"


@dataclass(frozen=True)
class Job:
    """A photograph made into a problem.

    ``plain`` is the problem of the picture itself [C, H, W]; ``problem`` that of the signal that the prior knows, which
    for a grey photograph and a colour prior is a colour image seen through its luminance. ``form`` is what the restored
    file will be, ``measured_form`` what the measurement's is. ``truth`` [C, H, W] is None where it is not known.
    """

    asked: Asked
    plain: Problem
    problem: Problem
    form: ImageFormat
    measured_form: ImageFormat
    truth: Tensor | None
    parameters: dict[str, Tensor]
    files: dict[str, dict[str, str]]
    notes: tuple[str, ...] = ()

    def picture(self, x: Tensor) -> Tensor:
        """Signals [N, ...] as pictures [N, C, H, W], not clipped."""
        return x if self.plain.shape == self.problem.shape else Grayscale()(x)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the restored picture."""
        shape = self.plain.shape or ()
        return shape[-2], shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the solver runs; what is kept here stays on the CPU."""
        return torch.device(self.asked.device)

    def save(self, folder: Path, recipe: dict[str, Any]) -> Path:
        """Write ``problem.safetensors``: all that a resumed run needs, so that the photograph may go."""
        tensors = {"y": self.plain.y, **{f"parameter.{k}": v for k, v in self.parameters.items()}}
        for name, value in (
            ("truth", self.truth),
            ("alpha", self.form.alpha),
            ("measured_alpha", self.measured_form.alpha),
        ):
            if value is not None:
                tensors[name] = value
        header = {
            "format": FORMAT,
            "asked": asdict(self.asked),
            "form": _plain_form(self.form),
            "measured_form": _plain_form(self.measured_form),
            "files": self.files,
            "notes": list(self.notes),
            "recipe": recipe,
            "channels": self.problem.shape[0],
        }
        data = {k: v.cpu().clone().contiguous() for k, v in tensors.items()}
        return write_atomic(folder / PROBLEM, lambda p: save_file(data, p, {"unveil-job": json.dumps(header)}))

    @classmethod
    def load(cls, folder: Path) -> tuple[Job, dict[str, Any]]:
        """The job in a folder, and the recipe of its run. Raises :class:`CheckpointError` if there is none."""
        path = folder / PROBLEM
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no run to go on with ({PROBLEM} is missing)")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("unveil-job", "{}"))
                data = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is truncated or not a run's file ({error}): start the run anew") from None
        if header.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {header.get('format')}, this version reads {FORMAT}: start the run anew"
            )
        asked = Asked(**header["asked"])
        parameters = {k.removeprefix("parameter."): v for k, v in data.items() if k.startswith("parameter.")}
        plain, problem = _problems(asked, data["y"], parameters, header["channels"])
        job = cls(
            asked,
            plain,
            problem,
            _form(header["form"], data.get("alpha")),
            _form(header["measured_form"], data.get("measured_alpha")),
            data.get("truth"),
            parameters,
            header["files"],
            tuple(header["notes"]),
        )
        return job, header["recipe"]


def prepare(photo: str | Path, asked: Asked, channels: int | None) -> Job:
    """Read the photograph and make the problem; ``channels`` are those that the prior knows.

    ``asked`` comes from :func:`unveil.app.tasks.resolve`. Raises :class:`InputError`.
    """
    image, form = read_image(photo)
    files = {"photo": fingerprint(photo)}
    for name, forms in (("mask", MASKS), ("kernel", KERNELS)):
        path = file_of(getattr(asked, name), forms)
        if path is not None and path.is_file():
            files[name] = fingerprint(path)
    notes = ["the file holds several pictures: the first is taken"] if form.several else []
    if asked.measured:
        y, truth = _measured(image, asked, notes), None
        sized = y
    else:
        truth = _croppable(image, asked, notes)
        sized = truth
    parameters: dict[str, Tensor] = {}
    if asked.task == "inpaint":
        parameters["mask"] = read_mask(str(asked.mask), (sized.shape[-2], sized.shape[-1]), asked.seed)
    if asked.task == "deblur":
        parameters["kernel"] = read_kernel(str(asked.kernel))
    if truth is not None:
        operator = operator_for(asked, parameters, tuple(truth.shape))
        assert asked.noise is not None
        y = Problem.simulate(truth[None], operator, asked.noise, asked.seed).y[0]
        form = _cropped_alpha(form, truth)
    plain, problem = _problems(asked, y[None], parameters, channels)
    shape = plain.shape or ()
    if asked.task == "colorize":
        form = in_colour(form)
    measured_form = replace(resized_alpha(form, (y.shape[-2], y.shape[-1])), channels=y.shape[0])
    form = resized_alpha(form, (shape[-2], shape[-1]))
    return Job(asked, plain, problem, form, measured_form, truth, parameters, files, tuple(notes))


def _problems(asked: Asked, y: Tensor, parameters: dict[str, Tensor], channels: int | None) -> tuple[Problem, Problem]:
    """The problem of the picture, and that of the prior's signal."""
    assert asked.noise is not None
    open_shape = _open_operator(asked, parameters).shape_in(tuple(y.shape[1:]))
    assert open_shape is not None
    operator = operator_for(asked, parameters, tuple(open_shape))
    noise = as_noise(asked.noise)
    plain = Problem(y, operator, noise)
    have = open_shape[0]
    if channels in (None, have):
        return plain, plain
    if (channels, have) != (3, 1):
        what = "colours" if have == 3 else "grey"
        raise InputError(
            f"the prior knows images of {channels} channel(s), the photograph {have} ({what}): choose another --prior"
        )
    luminance = Grayscale(in_shape=(3, *open_shape[1:]))
    seen = luminance if isinstance(operator, Identity) else operator @ luminance
    return plain, Problem(y, seen, noise)


def _open_operator(asked: Asked, parameters: dict[str, Tensor]) -> Operator:
    """The task's operator, before the shape of its signals is known."""
    from ..operators import Blur, Downsample, Inpainting

    if asked.task == "deblur":
        return Blur(parameters["kernel"], asked.boundary or "circular")
    if asked.task == "superres":
        return Downsample(asked.scale or 4, asked.kind or "bicubic")
    if asked.task == "inpaint":
        return Inpainting(parameters["mask"])
    return Grayscale() if asked.task == "colorize" else Identity()


def _croppable(image: Tensor, asked: Asked, notes: list[str]) -> Tensor:
    """The clean photograph, cropped where the task cannot take its size."""
    if asked.task == "colorize" and image.shape[0] == 1:
        raise InputError("the photograph is grey, so there is no colour to take away: use --measured to colour it")
    if asked.task != "superres":
        return image
    scale = asked.scale or 4
    height, width = image.shape[1:]
    h, w = height - height % scale, width - width % scale
    if min(h, w) < scale:
        raise InputError(f"the photograph is {width} x {height}: too small to reduce by {scale}")
    if (h, w) != (height, width):
        notes.append(f"cropped from {width} x {height} to {w} x {h} pixels, multiples of the scale {scale}")
    return image[:, :h, :w].contiguous()


def _measured(image: Tensor, asked: Asked, notes: list[str]) -> Tensor:
    if asked.task == "colorize" and image.shape[0] == 3:
        notes.append("the photograph has colours already: its luminance is coloured anew")
        return Grayscale()(image[None])[0]
    return image


def _cropped_alpha(form: ImageFormat, truth: Tensor) -> ImageFormat:
    if form.alpha is None:
        return form
    return replace(form, alpha=form.alpha[:, : truth.shape[1], : truth.shape[2]].contiguous())


def _plain_form(form: ImageFormat) -> dict[str, Any]:
    profile, exif = (None if data is None else data.hex() for data in (form.profile, form.exif))
    facts = {"channels": form.channels, "bits": form.bits, "suffix": form.suffix, "profile": profile}
    return {**facts, "exif": exif, "dpi": form.dpi}


def _form(table: dict[str, Any], alpha: Tensor | None) -> ImageFormat:
    profile, exif = (bytes.fromhex(table[key]) if table.get(key) else None for key in ("profile", "exif"))
    dpi = (table["dpi"][0], table["dpi"][1]) if table.get("dpi") else None
    return ImageFormat(table["channels"], table["bits"], alpha, table["suffix"], profile, exif=exif, dpi=dpi)


def fingerprint(path: str | Path) -> dict[str, str]:
    """Absolute path and SHA-256 of a file, as a recipe records it."""
    path = Path(path)
    return {"path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def open_prior(name: str, size: tuple[int, int] | None = None) -> Prior:
    """The prior of a name or file, in tiles for photographs of more than 768 x 768 pixels."""
    from ..priors import load_prior

    prior = load_prior(name)
    return prior if size is None else tiled(prior, size)


TILE_PIXELS = 768 * 768


def tiled(prior: Prior, size: tuple[int, int]) -> Prior:
    """``prior`` over tiles where the image is large, so that memory does not grow with it."""
    if size[0] * size[1] <= TILE_PIXELS or any(n is not None for n in prior.shape[1:]):
        return prior
    try:
        from ..priors.combinators import Tiled
    except ImportError:
        return prior
    with torch.no_grad():
        return Tiled(prior, tile=512, margin=48)
