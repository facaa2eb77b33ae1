"""Super-resolution networks built of residual blocks: SRCNN, EDSR, RCAN, HAN, RDN, SAN."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks.cost import PAPER_BATCH, executed_multiply_accumulates, parameter_count
from csist.networks.sr.blocks import ChannelAttention, Shift, single_precision
from csist.networks.sr.edsr import Edsr
from csist.networks.sr.han import ChannelSpatialAttention, Han, LayerAttention
from csist.networks.sr.rcan import Rcan, attention_group
from csist.networks.sr.rdn import Rdn, dense_block
from csist.networks.sr.san import RegionNonLocal, San, SecondOrderAttention, attend, covariance, quarters, square_root
from csist.networks.sr.srcnn import Srcnn

TINY = {
    Srcnn: {"features": 8, "mapped": 4},
    Edsr: {"features": 8, "blocks": 2},
    Rcan: {"features": 8, "groups": 2, "blocks": 2, "reduction": 4},
    Han: {"features": 8, "groups": 2, "blocks": 2, "reduction": 4},
    Rdn: {"features": 8, "blocks": 2, "layers": 3, "growth": 4},
    San: {"features": 8, "groups": 2, "blocks": 2, "reduction": 4, "inner": 2},
}
NETWORKS = list(TINY)
every_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)


def tiny(network, ratio=3, seed=0, **options):
    """A small network with reproducible weights, none of them zero, so that every part acts."""
    torch.manual_seed(seed)
    made = network(ratio, **{**TINY[network], **options})
    for value in made.parameters():
        if value.requires_grad and not value.any():
            nn.init.normal_(value, std=0.1)
    return made.eval()


def on_paper(network, ratio=3, **options):
    """A network of the paper's size that holds no numbers."""
    with torch.device("meta"):
        return network(ratio, **options)


def some_frames(count):
    return torch.from_numpy(csist100k("test", count).frames).float()


def batch_of(count, ratio=3):
    data = csist100k("test", count)
    return torch.from_numpy(data.frames).float(), torch.from_numpy(SubpixelGrid(ratio=ratio).image(data.targets))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest(tensor):
    return float(tensor.abs().max())


def silence(*layers):
    """Make layers answer zero."""
    for layer in layers:
        for value in layer.parameters():
            nn.init.zeros_(value)


# Sizes


@pytest.mark.parametrize(
    "network, options, count",
    [
        (Srcnn, {}, 19_393),
        (Edsr, {}, 1_552_197),
        (Rcan, {}, 1_078_729),
        (Han, {}, 64_341_727),
        (Rdn, {}, 22_305_729),
        (San, {"released": True}, 4_441_620),
        (San, {}, 4_441_620 - 38_034),
    ],
)
def test_parameter_counts_are_those_of_the_paper(network, options, count):
    assert parameter_count(on_paper(network, **options)) == count


@pytest.mark.parametrize("network, giga", [(Srcnn, 1.345), (Edsr, 12.035), (Rcan, 8.231), (Han, 494.824), (Rdn, 172.693)])
def test_multiply_accumulates_are_those_of_the_published_code(network, giga):
    """Convolutions and matrix products that the published code executes on 64 frames, to the last printed digit."""
    assert PAPER_BATCH * executed_multiply_accumulates(on_paper(network)) / 1e9 == pytest.approx(giga, abs=0.0005)


def test_san_saves_only_the_centring_of_the_covariance():
    """The published code takes means off by a product with a 121 x 121 matrix, ten times; subtracting them is exact and free. The rest is the same."""
    centring = 10 * 64 * 121**2
    released = executed_multiply_accumulates(on_paper(San, released=True))
    assert PAPER_BATCH * (released + centring) / 1e9 == pytest.approx(36.980, abs=0.0005)
    pooled, whole = (sum(pixels * keys for pixels, keys in sizes) for sizes in ([(25, 4), (30, 6), (30, 6), (36, 9)], [(p, p) for p in (25, 30, 30, 36)]))
    assert executed_multiply_accumulates(on_paper(San)) - released == 2 * 2 * 8 * (whole - pooled)  # two uses, two products, eight channels


@every_network
@pytest.mark.parametrize("ratio", [1, 3, 5])
def test_output_shapes_for_every_ratio_window_and_frame(network, ratio):
    made = tiny(network, ratio)
    frames = some_frames(2)
    with torch.no_grad():
        whole = made(frames)
        window = made(frames[:, 3:8, 4:9], torch.tensor([[3, 4], [3, 4]]))
    assert whole.shape == (2, 11 * ratio, 11 * ratio) and whole.dtype == torch.float32
    assert window.shape == (2, 5 * ratio, 5 * ratio) and window.dtype == torch.float32
    assert torch.isfinite(whole).all() and torch.isfinite(window).all()


@every_network
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_networks_follow_their_plane(network, size):
    made = tiny(network, plane=FocalPlane((size, size)))
    with torch.no_grad():
        image = made(255 * torch.rand(2, size, size))
    assert image.shape == (2, 3 * size, 3 * size) and torch.isfinite(image).all()


@every_network
@pytest.mark.parametrize("wrong", [0, -2, 1.5, True])
def test_options_that_count_nothing_are_refused(network, wrong):
    for option in set(TINY[network]):
        with pytest.raises(ValueError, match=option):
            network(**{**TINY[network], option: wrong})


@pytest.mark.parametrize("network", [Rcan, Han, San])
def test_a_reduction_to_nothing_is_refused(network):
    with pytest.raises(ValueError, match="from 1 to the 8 features"):
        network(**{**TINY[network], "reduction": 9})


# Training


@every_network
def test_every_parameter_learns(network):
    made = tiny(network).train()
    sum(made.loss(*batch_of(2)).values()).backward()
    learned = {name: value.grad for name, value in made.named_parameters() if value.requires_grad}
    assert all(grad is not None and largest(grad) > 0 for grad in learned.values()), [name for name, grad in learned.items() if grad is None or not grad.any()]
    frozen = sum(value.numel() for value in made.parameters() if not value.requires_grad)
    assert frozen == (4 if network is Edsr else 0)  # the two shifts


def test_the_unused_part_of_the_released_san_gets_no_gradient():
    made = tiny(San, released=True).train()
    sum(made.loss(*batch_of(2)).values()).backward()
    unreached = {name.split(".")[0] for name, value in made.named_parameters() if value.grad is None}
    assert unreached == {"unused", "unused_gains"}


@every_network
def test_optimiser_steps_lower_the_loss(network):
    made, batch = tiny(network).train(), batch_of(4)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        loss = sum(made.loss(*batch).values())
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > losses[1] > losses[2] > losses[3]


@every_network
def test_half_precision_gives_float32_close_to_single_precision(network):
    made, frames = tiny(network), some_frames(2)
    with torch.no_grad():
        single = made(frames)
        with torch.autocast("cpu", torch.bfloat16):
            half = made(frames)
    assert half.dtype == torch.float32
    assert largest(half - single) < 0.05 * largest(single)


@every_network
def test_answers_depend_neither_on_batch_mates_nor_on_the_memory_format(network):
    made, frames = tiny(network), some_frames(3)
    with torch.no_grad():
        together = made(frames)
        alone = torch.cat([made(frame[None]) for frame in frames])
        last = made.to(memory_format=torch.channels_last)(frames)
    scale = largest(together)
    assert largest(together - alone) < 1e-4 * scale and largest(together - last) < 1e-4 * scale


# SRCNN and EDSR


@pytest.mark.parametrize("ratio", [3, 5])
def test_srcnn_interpolates_onto_the_subpixel_grid(ratio):
    """With convolutions that pass their input on, the middle sub-pixel of each pixel holds the pixel's value: positions do not move."""
    network, frames = Srcnn(ratio), some_frames(2)
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1
    with torch.no_grad():
        image = network(frames)
    middle = ratio // 2
    torch.testing.assert_close(image[:, middle::ratio, middle::ratio], frames, rtol=1e-5, atol=1e-3)


def test_edsr_takes_middle_grey_off_and_puts_it_back():
    network, frames = tiny(Edsr), some_frames(2)
    inner = network.layers[1:4]
    with torch.no_grad():
        expected = network.layers[4][0](inner(frames[:, None] - 127.5))[:, 0] + 127.5
        torch.testing.assert_close(network(frames), expected)
    assert [module.bias.item() for module in network.modules() if isinstance(module, Shift)] == [-127.5, 127.5]


def test_edsr_does_not_round_dim_subpixels_in_half_precision():
    """Next to 127.5 half precision has steps of one half; an answer of 0.3 must survive the shift back."""
    network = tiny(Edsr)
    last = network.layers[4][0]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -127.2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(some_frames(1)), torch.full((1, 33, 33), 0.3), rtol=0, atol=1e-4)


def test_single_precision_switches_autocast_off_and_bears_devices_without_it():
    left, right = noise(3, 4), noise(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (left @ right).dtype == torch.bfloat16
        with single_precision(left):
            assert (left @ right).dtype == torch.float32
    with single_precision(left.to("meta")):
        assert (left.to("meta") @ right.to("meta")).shape == (3, 3)


# RCAN and RDN


def test_channel_attention_weighs_channels_by_their_means():
    attention, image = ChannelAttention(6, reduction=3), noise(2, 6, 4, 4)
    first, last = attention.weigh[0], attention.weigh[2]
    with torch.no_grad():
        found = attention(image).numpy()
    for frame, answer in zip(image.numpy(), found):
        means = frame.reshape(6, -1).mean(1)
        inner = np.maximum(first.weight.detach().numpy()[:, :, 0, 0] @ means + first.bias.detach().numpy(), 0)
        weights = 1 / (1 + np.exp(-(last.weight.detach().numpy()[:, :, 0, 0] @ inner + last.bias.detach().numpy())))
        np.testing.assert_allclose(answer, frame * weights[:, None, None], rtol=1e-5, atol=1e-6)


def test_attention_groups_carry_their_input_past_every_level():
    """With all last convolutions of blocks and of the group at zero, nothing is added."""
    group, image = attention_group(4, blocks=3, reduction=2), noise(1, 4, 5, 5)
    silence(*(block[2] for block in group[:3]), group[3])
    assert torch.equal(group(image), image)


@pytest.mark.parametrize("network", [Edsr, Rcan])
def test_the_long_skip_carries_the_entrys_map_past_the_trunk(network):
    made, frames = tiny(network), some_frames(1)
    trunk = made.layers[-3]
    silence(trunk[-1])
    with torch.no_grad():
        head = made.layers[:-3](frames[:, None])
        torch.testing.assert_close(made(frames), made.layers[-2:](head)[:, 0])


def test_dense_blocks_read_all_earlier_layers():
    block, image = dense_block(4, growth=3, layers=3), noise(1, 4, 5, 5)
    read = [image]
    for layer in block[:3]:
        read.append(torch.relu(layer[0](torch.cat(read, dim=1))))
    assert [part.shape[1] for part in read] == [4, 3, 3, 3]
    torch.testing.assert_close(block(image), image + block[3](torch.cat(read, dim=1)))


def test_rdn_fuses_the_outputs_of_all_blocks():
    network, frames = tiny(Rdn), some_frames(1)
    with torch.no_grad():
        before = network(frames)
        for block in network.blocks:
            kept = block[-1].bias.clone()
            block[-1].bias += 1
            assert largest(network(frames) - before) > 1e-3
            block[-1].bias.copy_(kept)
        assert torch.equal(network(frames), before)
        silence(network.fusion)
        torch.testing.assert_close(network(frames), network.tail(network.shallow(frames[:, None]))[:, 0])  # the long skip starts at the first map


# HAN


def test_layer_attention_is_a_softmax_of_minus_the_gram_matrix():
    attention, maps = LayerAttention(), 0.3 * noise(2, 5, 3, 4, 4)
    assert torch.equal(attention(maps), maps.flatten(1, 2))  # the gain starts at zero
    nn.init.constant_(attention.gain, 0.7)
    gram = torch.einsum("bichw,bjchw->bij", maps, maps)
    weights = (gram.amax(2, keepdim=True) - gram).exp()
    weights = weights / weights.sum(2, keepdim=True)
    expected = maps + 0.7 * torch.einsum("bij,bjchw->bichw", weights, maps)
    torch.testing.assert_close(attention(maps), expected.reshape(2, 15, 4, 4))


def test_layer_attention_bears_grey_levels():
    """Products of grey levels reach 10^7; the softmax must be finite and its weights sum to one."""
    attention, maps = LayerAttention(), 255 * torch.rand(1, 4, 8, 11, 11, requires_grad=True)
    nn.init.ones_(attention.gain)
    mixed = attention(maps) - maps.flatten(1, 2)
    mixed.square().mean().backward()
    assert torch.isfinite(attention.gain.grad).all()
    low, high = (bound(maps.detach(), dim=1) for bound in (torch.amin, torch.amax))
    parts = mixed.detach().view(maps.shape)[0]
    assert (parts >= low - 1e-3).all() and (parts <= high + 1e-3).all()  # a mixture lies between its ingredients


def test_layer_attention_compares_layers_in_float32():
    """Two layers that half precision cannot tell apart still weigh differently."""
    attention, maps = LayerAttention(), torch.ones(1, 2, 1, 32, 32)
    maps[0, 1] += 1e-3
    nn.init.ones_(attention.gain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = attention(maps)[0, 0, 0, 0] - 1
    first = 1 / (1 + np.exp(-1.024))  # the first row of the Gram matrix is 1024, 1024 * 1.001
    assert float(mixed) == pytest.approx(first + (1 - first) * 1.001, abs=2e-5)


def test_channel_spatial_attention_looks_at_channel_row_and_column_neighbours():
    attention, image = ChannelSpatialAttention(), noise(1, 4, 5, 5)
    assert torch.equal(attention(image), image)
    nn.init.constant_(attention.gain, 0.4)
    padded = np.pad(image[0].numpy(), 1)
    kernel, bias = attention.kernel.detach().numpy(), attention.bias.item()
    response = np.array([[[(padded[c : c + 3, i : i + 3, j : j + 3] * kernel).sum() + bias for j in range(5)] for i in range(5)] for c in range(4)])
    expected = image[0].numpy() * (1 + 0.4 / (1 + np.exp(-response)))
    np.testing.assert_allclose(attention(image).detach().numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_han_shows_its_attention_the_newest_map_first():
    network, seen = tiny(Han), []
    network.layer_attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    maps = []
    for layer in network.body:
        layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        network(some_frames(1))
    assert len(maps) == 3
    assert torch.equal(seen[0], torch.stack(maps[::-1], dim=1))


def test_han_fuses_both_attentions_and_adds_the_entrys_map():
    network, frames = tiny(Han), some_frames(1)
    with torch.no_grad():
        head = network.head(frames[:, None])
        first, second = network.body[0](head), network.body[1](network.body[0](head))
        last = network.body[2](second)
        layers = network.layer_fusion(network.layer_attention(torch.stack([last, second, first], dim=1)))
        fused = network.fusion(torch.cat([network.channel_attention(last), layers], dim=1))
        torch.testing.assert_close(network(frames), network.tail(head + fused)[:, 0])


# SAN


def test_covariance_is_numpys():
    image = 50 + 10 * noise(2, 6, 5, 5)
    for frame, found in zip(image.double(), covariance(image.double())):
        np.testing.assert_allclose(found, np.cov(frame.reshape(6, 25), bias=True), rtol=1e-10)


def spd_matrices(low, count=3, size=8):
    """Symmetric matrices with eigenvalues from ``low`` to 1, and their roots by eigendecomposition, double precision."""
    basis = torch.linalg.qr(noise(count, size, size).double()).Q
    values = torch.linspace(low, 1, size).double()
    rebuild = lambda spectrum: basis @ torch.diag_embed(spectrum.expand(count, size)) @ basis.transpose(1, 2)
    return rebuild(values), rebuild(values.sqrt())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_square_root_is_that_of_the_eigendecomposition(scale):
    matrices, roots = spd_matrices(low=0.5)
    five = square_root(scale * matrices)
    torch.testing.assert_close(five, scale**0.5 * roots, rtol=0.05, atol=0.05 * scale**0.5)
    torch.testing.assert_close(square_root(scale * matrices, steps=12), scale**0.5 * roots)


def test_square_root_acts_on_each_eigenvalue_alone():
    """Five steps on a matrix are five scalar steps on its eigenvalues, however ill-conditioned it is."""
    matrices, _ = spd_matrices(low=1e-6)
    values, basis = torch.linalg.eigh(matrices)
    total = values.sum(1, keepdim=True)
    root, inverse = values / total, torch.ones_like(values)
    for _ in range(5):
        factor = (3 - inverse * root) / 2
        root, inverse = root * factor, factor * inverse
    expected = basis @ torch.diag_embed(root * total.sqrt()) @ basis.transpose(1, 2)
    torch.testing.assert_close(square_root(matrices), expected, rtol=1e-9, atol=1e-12)


def test_square_root_of_nothing_is_nothing_with_finite_gradients():
    image = torch.full((1, 4, 3, 3), 7.0, requires_grad=True)
    root = square_root(covariance(image))
    root.sum().backward()
    assert not root.any() and torch.isfinite(image.grad).all()


def test_second_order_attention_describes_channels_by_the_mean_row_of_the_root():
    attention, image = SecondOrderAttention(4, reduction=2), 100 * noise(2, 4, 6, 6)
    described = attention.describe(image)
    for frame, found in zip(image, described):
        values, basis = np.linalg.eigh(np.cov(frame.reshape(4, 36).double(), bias=True))
        root = basis * np.sqrt(values) @ basis.T  # the spectrum is narrow, so that five steps come close
        np.testing.assert_allclose(found[:, 0, 0], root.mean(0), rtol=0.1, atol=0.02 * np.abs(root).max())
    torch.testing.assert_close(attention(image), image * attention.weigh(described))


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_quarters_cover_the_image_once(size):
    image = torch.arange(size**2).view(1, 1, size, size)
    parts = quarters(image)
    assert [part.shape[2] for part in parts] == [size // 2, size // 2, size - size // 2, size - size // 2]
    assert torch.cat([part.flatten() for part in parts]).sort().values.tolist() == list(range(size**2))


def test_attention_between_pixels_is_the_sum_written_out():
    query, key, value = (noise(2, 3, 2, 4, seed=seed).double() for seed in range(3))
    found = attend(query, key, value)
    for frame in range(2):
        for pixel in range(8):
            weights = np.array([np.exp(sum(float(query[frame, c].flatten()[pixel] * key[frame, c].flatten()[k]) for c in range(3))) for k in range(8)])
            expected = (value[frame].reshape(3, 8).numpy() * weights / weights.sum()).sum(1)
            np.testing.assert_allclose(found[frame].reshape(3, 8)[:, pixel], expected, rtol=1e-4)


@pytest.mark.parametrize("pool", [False, True])
def test_non_local_block_keeps_quarters_apart(pool):
    torch.manual_seed(0)
    block, image = RegionNonLocal(4, inner=2, pool=pool), noise(1, 4, 11, 11)
    assert torch.equal(block(image), image)  # the output layer starts at zero
    nn.init.normal_(block.output.weight)
    other = image.clone()
    other[..., :5, 5:] += noise(1, 4, 5, 6, seed=1)
    with torch.no_grad():
        changed = [largest(after - before) > 0 for before, after in zip(quarters(block(image)), quarters(block(other)))]
        other[..., :5, 5:] = image[..., :5, 5:]
        other[..., 0, 5] += 3  # one pixel changes its whole quarter
        far = (block(other) - block(image))[..., :5, 5:]
    assert changed == [False, True, False, False]
    assert (far.abs().amax(1) > 0).all()


def test_san_adds_the_shared_source_after_every_group():
    """With groups that add nothing, two of them scale the non-local output by 1 + 2 gain; the non-local block then acts again, and the entry's map is added."""
    network, frames = tiny(San), some_frames(1)
    for group in network.groups:
        silence(*(block[2] for block in group[:2]), group[-1])
    nn.init.constant_(network.gain, 0.25)
    with torch.no_grad():
        head = network.head(frames[:, None])
        expected = network.tail(head + network.non_local(1.5 * network.non_local(head)))
        assert largest(network.non_local(head) - head) > 0.1
        torch.testing.assert_close(network(frames), expected[:, 0])


def test_released_san_differs_by_pooled_keys_and_values_only():
    sound, released = tiny(San), tiny(San, released=True)
    weights = {name: value for name, value in released.state_dict().items() if not name.startswith("unused")}
    sound.load_state_dict(weights)
    frames = some_frames(2)
    with torch.no_grad():
        assert largest(sound(frames) - released(frames)) > 0
        sound.non_local.pool = released.non_local.pool
        assert torch.equal(sound(frames), released(frames))


def test_counter_sees_the_matrix_products_of_the_root():
    """Twelve products for five steps: the first and the last need fewer than three."""
    counter = FlopCounterMode(display=False)
    with counter:
        square_root(torch.eye(6)[None])
    assert counter.get_total_flops() == 2 * 12 * 6**3
