"""Files that are there whole, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import InputError


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a temporary file beside ``path``, then move it there; on failure nothing is left.

    What a link leads to is written, and the link stays. Raises :class:`InputError` for a device or a pipe, and with the
    system's reason (disk full, no permission).
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"cannot write {path}: it is a device or a pipe, which would be replaced: name a file")
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".unveil-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        raise InputError(f"cannot write {path}: {reason}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def append_line(path: str | Path, text: str) -> None:
    """Add a line to a text file, UTF-8: all of it, or none. Raises :class:`InputError` with the system's reason."""
    line = f"{text}\n".encode()
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically, UTF-8."""
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a binary file atomically."""
    return write_atomic(path, lambda p: p.write_bytes(data))
