"""Tables of embedded texts: what is written is read, names however they are spelt, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import InputError
from unveil.priors.texts import Texts, write_texts


def test_names_are_found_however_they_are_spelt(tmp_path):
    rows = torch.nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    texts = Texts(write_texts(tmp_path / "t.safetensors", ["Grinning Face", "cat", "grinning face"], rows))
    assert texts.names == ["cat", "grinning face"]
    for spelling in ("grinning face", "GRINNING face", " grinning   face "):
        assert torch.allclose(texts(spelling), rows[:1], atol=1e-3)
    assert float(texts("cat").norm()) == pytest.approx(1, abs=1e-6)


def test_an_unknown_text_names_its_neighbours(tmp_path):
    texts = Texts(write_texts(tmp_path / "t.safetensors", ["grinning face", "cat"], torch.eye(2)))
    with pytest.raises(InputError, match=r"'cta' is not in the prior's table of 2 texts: did you mean cat\?"):
        texts("cta")
    with pytest.raises(InputError, match="names no encoder"):
        texts("submarine")


@pytest.mark.parametrize("kind", ["absent", "other", "short"])
def test_a_file_that_is_no_table(tmp_path, kind):
    path = tmp_path / "t.safetensors"
    if kind == "other":
        save_file({"weight": torch.zeros(2)}, path)
    if kind == "short":
        save_file({"embeddings": torch.zeros(2, 4)}, path, metadata={"names": '["a"]'})
    with pytest.raises(InputError, match=r"t\.safetensors (is no table of texts|has 1 names and embeddings)"):
        Texts(path)("a")
