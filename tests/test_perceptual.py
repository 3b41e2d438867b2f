"""Perceptual distances are what they say."""

from __future__ import annotations

import pytest
import torch

from unveil import perceptual as module
from unveil.bench.images import truth
from unveil.errors import InputError
from unveil.perceptual import MOBILENET, AlexNet, _of_package, lpips, mobilenet, perceptual


def test_lpips_is_the_weighted_distance_of_unit_features(tmp_path):
    torch.manual_seed(0)
    state = AlexNet().state_dict()
    widths = (64, 192, 384, 256, 256)
    ones = {f"lin{k}.model.1.weight": torch.ones(1, c, 1, 1) for k, c in enumerate(widths)}
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "alex.pth")
    torch.save(ones, tmp_path / "ones.pth")
    torch.save({k: 2 * v for k, v in ones.items()}, tmp_path / "twos.pth")
    a, b = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    once, twice = (lpips(tmp_path / "alex.pth", tmp_path / f"{n}.pth") for n in ("ones", "twos"))
    assert once.name == "LPIPS"
    assert once(a, a).abs().max() == 0
    torch.testing.assert_close(twice(a, b), 2 * once(a, b))
    torch.testing.assert_close(once(a, b)[1:], once(a[1:], b[1:]))
    # by hand: at each depth, the mean over pixels of |u - v|^2 of unit vectors
    expected = 0.0
    for u, v in zip(once.features(a[:1]), once.features(b[:1]), strict=True):
        u, v = u.flatten(2)[0].double(), v.flatten(2)[0].double()
        expected += float((u / (u.norm(dim=0) + 1e-10) - v / (v.norm(dim=0) + 1e-10)).square().sum(0).mean())
    assert float(once(a, b)[0]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="same size"):
        once(a, b[:1])


def test_a_backbone_that_is_not_there(monkeypatch, tmp_path):
    perceptual.cache_clear()
    monkeypatch.setenv("UNVEIL_ALEXNET", str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="not a file"):
        perceptual()
    monkeypatch.delenv("UNVEIL_ALEXNET")
    monkeypatch.setattr(module, "_alexnet_file", lambda: None)
    monkeypatch.setattr(module, "_of_package", lambda *_: None)
    assert perceptual() is None
    perceptual.cache_clear()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(InputError, match="SHA-256"):
        mobilenet(tmp_path / "other.pth")


@pytest.mark.skipif(_of_package(*MOBILENET) is None, reason="the weights are in a package that is not installed")
def test_the_distance_sees_what_the_eye_sees():
    distance, x = mobilenet(_of_package(*MOBILENET)), truth("mountain", 64)[None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    steps = [float(distance(x + s * noise, x)) for s in (0.0, 0.02, 0.05, 0.1)]
    assert steps == sorted(steps)
    assert steps[0] == 0
    # a shift by two pixels is far in mean square, and near to the eye; a strong blur is the other way round
    small = torch.nn.functional.avg_pool2d(x, 8)
    blurred = torch.nn.functional.interpolate(small, x.shape[-2:], mode="bilinear")
    assert distance(x.roll(2, -1), x) < 0.7 * distance(blurred, x)
