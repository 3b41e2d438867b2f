"""The U-Net of the shipped priors: any size, samples that do not mix, size on disk."""

from __future__ import annotations

import pytest
import torch

from unveil.priors.networks.unet import UNet, count_parameters


def small(**changes: object) -> UNet:
    """A tiny network with random weights everywhere (fresh ones are zero in the last layers)."""
    torch.manual_seed(0)
    network = UNet(**{"widths": (8, 16), "blocks": 1, "features": 16, **changes})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return network.eval()


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (7, 13), (33, 64), (64, 50)])
def test_any_size(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        out = small()(x, torch.tensor([-0.5, 0.1]))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert out.std() > 1e-3


def test_a_multiple_is_not_padded_and_padding_only_matters_near_the_border() -> None:
    network = small()
    x = torch.randn(1, 3, 64, 64)
    c = torch.zeros(1)
    with torch.inference_mode():
        whole, cut = network(x, c), network(x[..., :62, :], c)
    assert torch.allclose(whole[..., :30, :], cut[..., :30, :], atol=1e-5)
    assert not torch.allclose(whole[..., 56:62, :], cut[..., 56:62, :], atol=1e-3)


def test_samples_of_a_batch_do_not_mix() -> None:
    network = small()
    x, c = torch.randn(5, 3, 24, 24), torch.linspace(-1, 1, 5)
    with torch.inference_mode():
        together = network(x, c)
        alone = torch.cat([network(x[k : k + 1], c[k : k + 1]) for k in range(5)])
        others = network(torch.cat([x[:1], 100 * x[1:]]), c)
    assert (together - alone).abs().max() <= 1e-6 * together.abs().max()
    assert (others[0] - together[0]).abs().max() <= 1e-6 * together.abs().max()


def test_memory_layout_does_not_matter() -> None:
    network = small()
    x, c = torch.randn(2, 3, 16, 16), torch.zeros(2)
    with torch.inference_mode():
        one, other = network(x, c), network(x.contiguous(memory_format=torch.channels_last), c)
    assert torch.allclose(one, other, atol=1e-6 * float(one.abs().max()))


def test_the_noise_level_matters_and_a_fresh_network_gives_zero() -> None:
    x = torch.randn(1, 3, 16, 16)
    network = small()
    with torch.inference_mode():
        difference = network(x, torch.tensor([-1.0])) - network(x, torch.tensor([0.5]))
        fresh = UNet(widths=(8, 16))(x, torch.zeros(1))
    assert difference.abs().max() > 1e-3
    assert torch.equal(fresh, torch.zeros_like(x))


@pytest.mark.parametrize("canvas", [(), (2, 2, 2)])
def test_gradients_reach_the_input_and_match_finite_differences(canvas: tuple[int, ...]) -> None:
    network = small(canvas=canvas).double()
    c = torch.zeros(1, dtype=torch.float64)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    direction, weight = (
        torch.randn(1, 3, 6, 6, dtype=torch.float64),
        torch.randn(1, 3, 6, 6, dtype=torch.float64),
    )
    (gradient,) = torch.autograd.grad((network(x, c) * weight).sum(), x)
    with torch.no_grad():
        step = 1e-5 * direction
        numeric = ((network(x + step, c) - network(x - step, c)) * weight).sum() / 2e-5
    assert torch.isclose((gradient * direction).sum(), numeric, rtol=1e-4)


def test_channels_and_classes() -> None:
    network = small(channels=1, out_channels=2, classes=4)
    x, c = torch.randn(2, 1, 10, 10), torch.zeros(2)
    with torch.inference_mode():
        one, two, none = (
            network(x, c, torch.tensor([0, 1])),
            network(x, c, torch.tensor([0, 2])),
            network(x, c),
        )
        unlabelled = network(x, c, torch.tensor([4, 4]))
    assert one.shape == (2, 2, 10, 10)
    assert torch.allclose(one[0], two[0], atol=1e-5)
    assert not torch.allclose(one[1], two[1], atol=1e-3)
    assert not torch.allclose(one[0], none[0], atol=1e-3)
    assert torch.equal(none, unlabelled)


def test_a_canvas_paints_what_the_condition_says_where_it_is() -> None:
    network = small(texts=4, canvas=(3, 4, 4))  # 16 x 16 pixels, folded by 2, two levels
    x, c = torch.zeros(2, 3, 16, 16), torch.zeros(2)
    texts = torch.eye(4)[:2]
    with torch.inference_mode():
        together, other = network(x, c, text=texts), network(x[:1], c[:1], text=texts[1:])
        network.canvas.mix.weight.zero_()
        without = network(x, c, text=texts)
    assert torch.allclose(together[1], other[0], atol=1e-5)
    assert (together - without).flatten(1).std(1).min() > 1e-2  # it differs from place to place
    assert UNet(**network.config).config == network.config
    with pytest.raises(ValueError, match=r"canvas of \(4, 4\), not \(2, 4\)"):
        network(torch.zeros(1, 3, 8, 16), c[:1])


def test_size_of_the_photo_network() -> None:
    network = UNet(widths=(48, 64, 128, 192))
    assert count_parameters(network) == 5_977_580
    assert 2 * count_parameters(network) < 15e6  # bytes in half precision
    assert UNet(**network.config).config == network.config


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one width"):
        UNet(widths=())
    with pytest.raises(ValueError, match="knows no classes"):
        small()(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
