"""``make bench-network``: the part that restores photographs, on pieces of them."""

from __future__ import annotations

import re

from unveil.bench import network


def test_the_loss_of_half_precision_is_measured_on_every_problem(monkeypatch, capsys):
    monkeypatch.setattr(network, "_crop", lambda image: image[0][None, :3, 96:128, 96:128])
    assert network.loss(steps=8)
    text = capsys.readouterr().out
    rows = re.findall(r"^(inpaint 70 %|deblur|superres x4) +(\d+\.\d+) +\S+ +(\S+) lost", text, re.M)
    assert len(rows) == 3
    assert any(float(lost) for _, _, lost in rows)  # bfloat16 was in use
    assert all(5 < float(full) < 40 for _, full, _ in rows)
