import pytest
import torch

from workbench.nets.blocks import AttentionGate, DenseBlock, SubPixelUp
from workbench.nets.losses import deep_supervision, dice_cross_entropy, dice_loss
from workbench.nets.network import NetworkSettings, SlabNet


def test_dense_block_keeps_its_input_and_adds_growth():
    block = DenseBlock(5, 3, 4)
    x = torch.randn(2, 5, 6, 10)
    y = block(x)
    assert y.shape == (2, 17, 6, 10) and block.channels_out == 17
    assert torch.equal(y[:, :5], x)


def test_sub_pixel_starts_without_checkerboard():
    up = SubPixelUp(4, 3)
    y = up(torch.randn(1, 4, 5, 7))
    assert y.shape == (1, 3, 10, 14)
    quads = y.unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.allclose(quads.amax((-1, -2)), quads.amin((-1, -2)), atol=1e-6)  # ICNR: the four start equal


def test_gate_closes_and_opens():
    gate = AttentionGate(6, 5, 8, 4)
    skip, signal, coarse = torch.randn(2, 6, 8, 12), torch.randn(2, 5, 8, 12), torch.randn(2, 8, 4, 6)
    gated, attention = gate(skip, signal, coarse)
    assert attention.shape == (2, 1, 8, 12) and torch.allclose(gated, skip * attention)
    with torch.no_grad():
        gate.weigh.weight.zero_()
        gate.weigh.bias.fill_(-50)
    assert gate(skip, signal, coarse)[0].abs().max() < 1e-10


@pytest.mark.parametrize("stride", [1, 2])
def test_logits_have_the_slab_s_size(stride):
    settings = NetworkSettings(slices=5, extra=1, width=8, growth=4, layers=(1, 2, 1), stem_stride=stride)
    net = SlabNet(settings)
    x = torch.randn(2, 6, 2 * settings.multiple, 3 * settings.multiple)
    outputs = net(x)
    assert outputs[0].shape == (2, 1, *x.shape[-2:])
    assert len(outputs) == 3  # full size and the two scales of the decoder
    assert all(a.shape[-1] >= b.shape[-1] for a, b in zip(outputs, outputs[1:]))
    logits, maps = net.eval()(x, attention=True)
    assert logits.shape == (2, 1, *x.shape[-2:]) and len(maps) == 2
    assert all(0 <= m.min() and m.max() <= 1 for m in maps)


def test_every_weight_learns():
    net = SlabNet(NetworkSettings(width=8, growth=4, layers=(1, 1, 1)))
    x = torch.randn(2, 3, 16, 24)
    deep_supervision(net(x), (torch.rand(2, 1, 16, 24) > 0.5).float()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_even_stacks_are_refused():
    with pytest.raises(ValueError, match="odd"):
        NetworkSettings(slices=4)


def test_dice_loss_by_hand():
    sure = torch.tensor([[[[50.0, -50.0], [-50.0, -50.0]]]])
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert float(dice_loss(sure, target, smooth=0.0)) == pytest.approx(1 - 2 * 1 / (1 + 2))
    assert float(dice_loss(torch.full((1, 1, 2, 2), -50.0), torch.zeros(1, 1, 2, 2))) == pytest.approx(0, abs=1e-6)


def test_each_slab_counts_the_same_in_the_dice_loss():
    """One slab right in a single pixel, one wrong in all three: (0 + 1) / 2, however many pixels either has."""
    logits = torch.tensor([[[[50.0, -50.0, -50.0]]], [[[-50.0, -50.0, -50.0]]]])
    target = torch.tensor([[[[1.0, 0.0, 0.0]]], [[[1.0, 1.0, 1.0]]]])
    assert float(dice_loss(logits, target, smooth=0.0)) == pytest.approx(0.5)


def test_coarser_scales_count_half_against_the_share_of_target_in_their_pixels():
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]]])
    fine, coarse = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 1, 2)
    share = torch.tensor([[[[0.75, 0.0]]]])
    expected = dice_cross_entropy(fine, target) + dice_cross_entropy(coarse, share) / 2
    assert torch.allclose(deep_supervision([fine, coarse], target), expected)
