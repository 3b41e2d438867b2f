"""Random streams belong to a sample: not to a batch, a chunk, an order of draws, or another purpose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unveil.errors import InputError
from unveil.rng import Rng, single


def keys(*samples, seed=0):
    return [(seed, k) for k in samples]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_sample_is_the_same_in_every_batch(dtype, kind):
    if kind == "uniform" and dtype.is_complex:
        pytest.skip("uniform values are real")
    like = torch.empty(4, 3, 5, dtype=dtype)
    together = getattr(Rng(keys(0, 1, 2, 3), 7), kind)(like)
    backwards = getattr(Rng(keys(3, 2, 1, 0), 7), kind)(like)
    alone = getattr(Rng(keys(2), 7), kind)(like[:1])
    assert together.dtype == dtype
    assert together.shape == like.shape
    assert torch.equal(together.flip(0), backwards)
    assert torch.equal(together[2:3], alone)


def test_poisson_counts_of_a_sample_are_the_same_in_every_batch():
    mean = torch.tensor([[0.0, 3.0], [50.0, 1e4], [2.0, 0.5]])
    together = Rng(keys(0, 1, 2)).poisson(mean)
    assert torch.equal(together[1:2], Rng(keys(1)).poisson(mean[1:2]))
    assert together[0, 0] == 0
    assert torch.equal(together, together.round())


def test_every_part_of_the_key_matters():
    like = torch.empty(1, 64, dtype=torch.float64)
    streams = {
        "plain": Rng([(0, 0)], 0, "run"),
        "seed": Rng([(1, 0)], 0, "run"),
        "sample": Rng([(0, 1)], 0, "run"),
        "step": Rng([(0, 0)], 1, "run"),
        "purpose": Rng([(0, 0)], 0, "measure"),
        "negative seed": Rng([(-1, 0)], 0, "run"),
        "large seed": Rng([(2**63 + 5, 0)], 0, "run"),
    }
    values = {k: r.normal(like) for k, r in streams.items()}
    values["second draw"] = streams["plain"].normal(like)
    names = list(values)
    for i, a in enumerate(names):
        for b in names[:i]:
            # independent streams of 64 values have a correlation of 1/8: 5 sigma is 0.63
            c = torch.corrcoef(torch.cat([values[a], values[b]]))[0, 1]
            assert abs(float(c)) < 0.63, (a, b)
    # swapping the parts of a key gives another stream
    assert not torch.equal(Rng([(2, 3)], 5).normal(like), Rng([(3, 2)], 5).normal(like))
    assert not torch.equal(Rng([(0, 1)], 2).normal(like), Rng([(0, 2)], 1).normal(like))


def test_draws_depend_on_their_number_and_on_nothing_drawn_before():
    like = torch.empty(2, 8)
    a, b = Rng(keys(0, 1), 3), Rng(keys(0, 1), 3)
    a.normal(like)
    b.uniform(torch.empty(2, 1000))
    assert torch.equal(a.normal(like), b.normal(like))
    assert a.draw == b.draw == 2


def test_single_and_double_precision_differ_but_both_are_normal():
    for dtype in (torch.float32, torch.float64):
        z = single(11, 4).normal(torch.empty(4, 50_000, dtype=dtype)).double()
        n = z.numel()
        assert abs(float(z.mean())) < 5 / math.sqrt(n)
        assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
        assert abs(float((z**3).mean())) < 5 * math.sqrt(15 / n)
        assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)
        inside = float((z.abs() < 1).double().mean())
        p = math.erf(1 / math.sqrt(2))
        assert abs(inside - p) < 5 * math.sqrt(p * (1 - p) / n)
        # rows, and steps, are independent of each other
        rows = torch.corrcoef(z)
        assert float((rows - torch.eye(4)).abs().max()) < 5 / math.sqrt(50_000)


def test_the_first_values_of_many_streams_are_normal_too():
    # a weak key schedule would correlate neighbouring streams
    z = single(0, 4000).normal(torch.empty(4000, 2, dtype=torch.float64))
    steps = torch.stack([Rng([(0, 0)], i).normal(z[:1])[0] for i in range(4000)])
    for values in (z, steps):
        assert abs(float(values.mean())) < 5 / math.sqrt(8000)
        assert abs(float(values.var()) - 1) < 5 * math.sqrt(2 / 8000)
        lag = (values[1:] * values[:-1]).mean()
        assert abs(float(lag)) < 5 / math.sqrt(8000)


def test_complex_values_have_unit_mean_square():
    z = single(3).normal(torch.empty(1, 100_000, dtype=torch.complex128))[0]
    n = z.numel()
    assert abs(float(z.abs().square().mean()) - 1) < 5 / math.sqrt(n)
    for part in (z.real, z.imag):
        assert abs(float(part.var()) - 0.5) < 5 * 0.5 * math.sqrt(2 / n)
    assert abs(float((z.real * z.imag).mean())) < 5 * 0.5 / math.sqrt(n)


def test_uniform_values_fill_the_interval():
    u = single(4).uniform(torch.empty(1, 100_000, dtype=torch.float64))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 1e5)
    assert abs(float(u.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / 1e5)


@pytest.mark.parametrize("mean", [0.3, 4.0, 200.0])
def test_poisson_counts_have_the_mean_as_variance(mean):
    k = single(5).poisson(torch.full((1, 100_000), mean, dtype=torch.float64))
    n = k.numel()
    assert abs(float(k.mean()) - mean) < 5 * math.sqrt(mean / n)
    assert abs(float(k.var()) - mean) < 5 * math.sqrt((mean + 2 * mean**2) / n)


def test_a_stream_serves_as_many_rows_as_it_has_keys():
    with pytest.raises(InputError, match="noise of 3 samples, this stream has 2"):
        Rng(keys(0, 1)).normal(torch.empty(3, 4))


def test_rows_together_share_the_stream_of_their_first():
    """Independent among themselves, of the rows' own streams and of other measurements; the same in every batch."""
    own, like = Rng(keys(0, 1, 2) + keys(0, 1, 2, seed=1), 4), torch.empty(6, 5000)
    both = own.together(3)
    x = both.normal(like)
    assert torch.equal(x[3:], Rng(keys(0, 1, 2, seed=1), 4).together(3).normal(like[:3]))
    assert torch.equal(x[:2], Rng(keys(0, 1), 4).together(2).normal(like[:2]))  # not of how many they are
    assert float(torch.corrcoef(torch.cat([x, own.normal(like)])).fill_diagonal_(0).abs().max()) < 5 / 5000**0.5
    mean = torch.tensor([1e4, 3.0, 0.5]).repeat(2)[:, None].expand(6, 2000)
    torch.testing.assert_close(both.poisson(mean).mean(1), mean[:, 0], rtol=0.08, atol=0)
    assert not torch.equal(x, both.normal(like))
    with pytest.raises(InputError, match="4 samples"):
        both.normal(like[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.complex64])
def test_shared_rows_get_the_values_of_their_first(dtype):
    """In a batch of any size, and as one draw: what is drawn after it is the same."""
    like = torch.empty(6, 2, 5, dtype=dtype)
    own, shared = Rng(keys(0, 1, 2) + keys(0, 1, 2, seed=1), 4), Rng(keys(0, 1, 2) + keys(0, 1, 2, seed=1), 4)
    assert torch.equal(shared.normal(like, 3), own.normal(like)[[0, 0, 0, 3, 3, 3]])
    assert torch.equal(shared.normal(like), own.normal(like))


def test_many_streams_are_one_generator_set_anew(monkeypatch):
    """Making a generator takes many times as long as a number of it."""
    made, real = [], np.random.Generator
    monkeypatch.setattr(np.random, "Generator", lambda bits: made.append(bits) or real(bits))
    rng = Rng(keys(*range(100)), 2)
    rng.uniform(torch.empty(100, 1))
    rng.normal(torch.empty(100, 1))
    assert len(made) == 1


def test_values_do_not_change_between_versions():
    # recorded once: a change would silently change every result of every seed
    z = single(0).normal(torch.empty(1, 3, dtype=torch.float64))[0]
    assert z.tolist() == pytest.approx([3.072115107995261, -1.6877929949016683, 0.7643677866235756], rel=1e-15)
