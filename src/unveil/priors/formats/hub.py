"""Folders of the Hugging Face hub: at one commit, every file's checksum verified, and offline once they are here."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from pathlib import Path

from ...errors import InputError
from .files import PICKLES, TORCH_FILES, verify

PARTS = ("scheduler", "unet", "transformer", "vae", "vqvae")
WANTED = ["model_index.json", "config.json", "scheduler_config.json", *(f"{part}/*.json" for part in PARTS)]
WEIGHTS = ["diffusion_pytorch_model*", *(f"{part}/diffusion_pytorch_model*" for part in PARTS)]


def hub_name(text: str) -> tuple[str, str] | None:
    """``org/name@revision`` in its two parts (the second empty if it is left out); None if it is no such name."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]*))?", text)
    if match is None or Path(match[1]).suffix in (".safetensors", *TORCH_FILES, *PICKLES):
        return None
    return match[1], match[2] or ""


def hub_folder(name: str, revision: str) -> Path:
    """The folder of a model on the hub at a commit, downloaded if it is not in the hub's cache.

    Only what a prior or an autoencoder needs is downloaded: configurations, and weights as safetensors. Every file must
    have the checksum under which the hub keeps it: the SHA-256 for weights, git's SHA-1 for text. Raises
    :class:`InputError` without a commit, network, space, access, or the extra ``diffusers``, and for a damaged file.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):
        said = f"'{revision}' is not one" if revision else "none was given"
        raise InputError(
            f"there is no folder {name}; to load it from the hub, name the commit, 40 hexadecimal digits ({said}): "
            f"'{name}@<commit>', as the hub shows it under Files and versions; a branch or a tag can move"
        )
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(f"loading {name} from the hub needs the extra: pip install 'unveil[diffusers]'") from None
    wanted = [*WANTED, *(f"{w}.safetensors" for w in WEIGHTS)]
    skip = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # of every attempt without a network; what matters is raised below
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=skip))
    except errors.GatedRepoError:
        raise InputError(
            f"{name} asks for consent: give it on its page on the hub, then log in: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{name} has no commit {revision} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no folder {name}, and no model of that name on the hub (or a private one)"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(
                f"no space left for {name}: free some, or set HF_HOME to a folder on another disk"
            ) from None
        raise InputError(_unreachable(name, revision, error)) from None
    except Exception as error:
        # what the network's libraries raise has no common ancestor but this one
        raise InputError(_unreachable(name, revision, error)) from None
    finally:
        logger.setLevel(level)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        _check(file, name)
    return folder


def _unreachable(name: str, revision: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"{name}@{revision[:7]} is not in the hub's cache and could not be downloaded ({reason}): connect, or copy its "
        "folder here and name that"
    )


def _check(file: Path, name: str) -> None:
    """The hub's cache names every file by its checksum, and links to it."""
    wanted = file.resolve().name
    if re.fullmatch("[0-9a-f]{64}", wanted):
        verify(file, wanted)
    elif re.fullmatch("[0-9a-f]{40}", wanted):
        data = file.read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() != wanted:
            raise InputError(f"{file} of {name} is damaged (its SHA-1 is not {wanted}): delete it, and load it again")
    else:
        raise InputError(
            f"{file} of {name} has no checksum in the hub's cache (a copy without links?): name the folder itself to "
            "load it without one"
        )
