"""Super-resolution networks with feedback, attention or distillation: sizes, costs, learning, and their special parts against independent arithmetic."""
from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks.cost import executed_multiply_accumulates, parameter_count
from csist.networks.sr.blocks import Shift
from csist.networks.sr.cfgn import Cfgn, contrast
from csist.networks.sr.ctnet import Ctnet, Transformation
from csist.networks.sr.dctlsa import Body, Dctlsa, LinearAttention, cut_windows, join_windows, mirrored
from csist.networks.sr.egasr import BranchAttention, EdgeFilters, Egasr
from csist.networks.sr.fenet import Fenet, FrequencyGate, split_frequencies
from csist.networks.sr.srfbn import Srfbn

SMALL = {
    Srfbn: {"features": 4, "groups": 2, "steps": 2},
    Ctnet: {"features": 8, "blocks": 2},
    Dctlsa: {"features": 4, "heads": 2, "modules": 2},
    Egasr: {"features": 4, "groups": 2, "blocks": 1},
    Fenet: {"features": 8, "blocks": 2},
    Cfgn: {"features": 8, "blocks": 2},
}
ALL = pytest.mark.parametrize("kind", list(SMALL), ids=lambda kind: kind.__name__)


def small(kind, ratio=3, seed=0, **options):
    """A tiny network of a kind with reproducible random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return kind(ratio, **{**SMALL[kind], **options}).eval()


@lru_cache
def full_size(kind, ratio=3, **options):
    """The network with the paper's options."""
    return kind(ratio, **options).eval()


@lru_cache
def some_data(count=4, ratio=3):
    data = csist100k("test", count)
    return torch.from_numpy(data.frames).float(), torch.from_numpy(SubpixelGrid(ratio=ratio).image(data.targets)).float()


def largest(tensor):
    return float(tensor.detach().abs().max())


# Sizes and costs


@pytest.mark.parametrize(
    "kind, ratio, printed, dead",
    [
        (Srfbn, 3, 372_724, 0),
        (Ctnet, 3, 400_321, 53_248),  # 1 x 1 convolutions that are never called
        (Dctlsa, 3, 864_994, 0),
        (Egasr, 3, 2_896_690, 443_904 + 41_472 + 4_608),  # convolutions never called, fixed templates, biases without effect
        (Fenet, 3, 682_498, 0),  # of the toolkit's class; the paper prints the cited network's 0.348 M
        (Cfgn, 3, 530_685, 0),
        (Cfgn, 5, 537_613, 0),
        (Cfgn, 7, 548_005, 0),
    ],
)
def test_parameter_counts_are_those_of_the_paper_less_what_has_no_use(kind, ratio, printed, dead):
    assert parameter_count(full_size(kind, ratio)) == printed - dead


@pytest.mark.parametrize(
    "kind, ratio, options, giga",
    [
        (Srfbn, 3, (("variant", "released"),), 3.217),
        (Ctnet, 3, (), 2.737),
        (Dctlsa, 3, (), 13.423),
        (Egasr, 3, (), 17.732),
        (Fenet, 3, (), 5.286),
        (Cfgn, 3, (), 4.066),
        (Cfgn, 5, (), 4.120),
        (Cfgn, 7, (), 4.200),
    ],
)
def test_multiply_accumulates_of_64_frames_are_those_measured_on_the_toolkit(kind, ratio, options, giga):
    """To the digits of the measurement: what is left out here cost the toolkit nothing, and interpolation and pooling are not counted."""
    assert 64e-9 * executed_multiply_accumulates(full_size(kind, ratio, **dict(options))) == pytest.approx(giga, abs=6e-4)


def test_each_further_step_of_srfbn_costs_another_pass_through_its_block_but_no_parameters():
    cost = {steps: executed_multiply_accumulates(small(Srfbn, steps=steps)) for steps in (1, 2, 4)}
    assert cost[4] - cost[1] == 3 * (cost[2] - cost[1]) > 0
    assert parameter_count(small(Srfbn, steps=1)) == parameter_count(small(Srfbn, steps=4))


# Shapes and precision


@ALL
@pytest.mark.parametrize("ratio", [1, 3, 5, 7])
def test_output_shapes_for_every_ratio_and_both_input_shapes(kind, ratio):
    network, (frames, _) = small(kind, ratio), some_data(2)
    with torch.no_grad():
        flat, channel = network(frames), network(frames[:, None])
    assert flat.shape == (2, 11 * ratio, 11 * ratio) and flat.dtype == torch.float32
    assert torch.equal(flat, channel)


@ALL
@pytest.mark.parametrize("ratio", [3, 5])
def test_windows_run_where_the_architecture_allows(kind, ratio):
    network, origin = small(kind, ratio), torch.zeros(2, 2, dtype=torch.long)
    windows = some_data(2)[0][:, 3:8, 3:8]
    if kind is Ctnet:
        assert not network.windows
        with pytest.raises(ValueError, match="at least 7 x 7 pixels; got 5 x 5"):
            network(windows, origin)
    else:
        with torch.no_grad():
            assert network(windows, origin).shape == (2, 5 * ratio, 5 * ratio)


def test_dctlsa_spends_as_much_on_a_window_as_on_a_frame_so_it_is_not_trained_on_windows():
    assert not Dctlsa.windows
    frame, window = (executed_multiply_accumulates(Dctlsa(plane=FocalPlane((n, n)), modules=1)) for n in (11, 5))
    assert window > 0.9 * frame


def test_frames_larger_than_an_attention_window_take_several():
    network = small(Dctlsa, plane=FocalPlane((9, 9)), window=4)
    with torch.no_grad():
        assert network(torch.rand(2, 9, 9)).shape == (2, 27, 27)


@ALL
def test_under_autocast_the_answer_is_float32_and_nearly_the_same(kind):
    network, (frames, _) = small(kind), some_data(2)
    with torch.no_grad():
        expected = network(frames)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(frames)
    assert found.dtype == torch.float32
    assert largest(found - expected) < 0.1 * largest(expected)


@ALL
def test_every_sample_is_treated_alone(kind):
    network, (frames, _) = small(kind), some_data(4)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        together = network(frames)
        torch.testing.assert_close(network(frames[order]), together[order], rtol=1e-4, atol=1e-4 * largest(together))
        torch.testing.assert_close(network(frames[1:2]), together[1:2], rtol=1e-4, atol=1e-4 * largest(together))


@ALL
def test_weights_survive_a_round_trip(kind):
    first, second, (frames, _) = small(kind, seed=0), small(kind, seed=1), some_data(1)
    with torch.no_grad():
        assert not torch.equal(first(frames), second(frames))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(frames), second(frames))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (Srfbn, {"variant": "paper"}, "variant must be one of cited, released; got 'paper'"),
        (Srfbn, {"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        (Dctlsa, {"heads": 3}, "features must be a multiple of heads; got 4 features and 3 heads"),
        (Ctnet, {"features": 6}, "features must be a multiple of 4; got 6"),
        (Fenet, {"features": 6}, "features must be a multiple of 4; got 6"),
        (Egasr, {"blocks": 0}, "blocks must be a whole number of at least 1; got 0"),
        (Cfgn, {"blocks": 2.5}, "blocks must be a whole number of at least 1; got 2.5"),
        (Cfgn, {"ratio": 2}, "odd"),
    ],
)
def test_impossible_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**SMALL[kind], **options})


# Learning


@ALL
@pytest.mark.parametrize("ratio", [3, 5])
def test_every_parameter_but_frozen_shifts_learns(kind, ratio):
    network, (frames, truth) = small(kind, ratio).train(), some_data(4, ratio)
    sum(network.loss(frames, truth).values()).backward()
    shifts = {id(parameter) for module in network.modules() if isinstance(module, Shift) for parameter in module.parameters()}
    assert len(shifts) == (4 if kind is Srfbn else 0)
    for name, parameter in network.named_parameters():
        if id(parameter) in shifts:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and largest(parameter.grad) > 0, name


@ALL
def test_one_step_of_the_optimiser_lowers_the_loss(kind):
    network, (frames, truth) = small(kind).train(), some_data(4)
    optimiser = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=1e-4)

    def loss():
        return sum(network.loss(frames, truth).values())

    before = loss()
    before.backward()
    optimiser.step()
    with torch.no_grad():
        assert float(loss()) < float(before)


# SRFBN


def test_one_step_of_srfbn_is_a_network_without_feedback():
    network, (frames, _) = small(Srfbn, steps=1), some_data(2)
    with torch.no_grad():
        centred = frames[:, None] - 127.5
        features = network.narrow(network.lift(centred))
        smooth = nn.functional.interpolate(frames[:, None], scale_factor=3, mode="bilinear")
        expected = network.image(network.enlarge(network.feedback(features, features))) + smooth
        torch.testing.assert_close(network(frames), expected[:, 0], rtol=1e-5, atol=1e-3)


def test_srfbns_steps_share_weights_feed_back_and_are_all_asked_to_be_right():
    frames, truth = some_data(2)
    networks = [small(Srfbn, steps=steps) for steps in (1, 2, 3)]
    with torch.no_grad():
        images = [network(frames) for network in networks]
        assert largest(images[1] - images[0]) > 0 and largest(images[2] - images[1]) > 0
        errors = [(image - truth).square().mean() for image in images]
        torch.testing.assert_close(networks[-1].loss(frames, truth)["discrepancy"], sum(errors) / 3)


def test_srfbn_as_released_has_no_feedback_and_the_wrong_offset():
    frames, _ = some_data(2)
    cited, released = small(Srfbn, steps=1), small(Srfbn, steps=None, variant="released")
    assert small(Srfbn, steps=None).steps == 4 and released.steps == 1
    with torch.no_grad():
        torch.testing.assert_close(released(frames), cited(frames) - 127.5 - 255.0, rtol=1e-5, atol=1e-3)


# CTNet


def test_ctnets_layer_is_its_formula():
    torch.manual_seed(0)
    layer = Transformation(6, 4, nn.ReLU())
    image = torch.randn(1, 6, 7, 7)
    weight = {name: value.detach().numpy() for name, value in layer.named_parameters()}

    def mix(name, channels):
        return np.tensordot(weight[f"{name}.weight"][:, :, 0, 0], channels, 1)

    pixels = image[0].numpy()
    means = pixels[:, :6, :6].reshape(6, 3, 2, 3, 2).mean((2, 4))
    nearest = np.arange(7) * 3 // 7
    mixed = mix("mix", pixels)
    gate = 1 / (1 + np.exp(-mixed - mix("mix_means", means)[:, nearest[:, None], nearest]))
    first = np.maximum(mixed * gate, 0)
    second = [np.maximum(ndimage.correlate(one, kernel[0], mode="constant"), 0) for one, kernel in zip(first, weight["neighbours.weight"])]
    expected = np.concatenate([first, second]) + np.maximum(mix("shortcut", pixels), 0)
    np.testing.assert_allclose(layer(image)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


# DCTLSA


def test_linear_attention_is_a_plain_loop_over_queries_and_places():
    torch.manual_seed(0)
    attention = LinearAttention(6, heads=3)
    features = torch.randn(2, 6, 3, 3)
    with torch.no_grad():
        found, qkv = attention.attend(features), attention.qkv(features).flatten(2).double().numpy()
    for sample in range(2):
        for head in range(3):
            query, key, value = (qkv[sample, 6 * part + 2 * head : 6 * part + 2 * head + 2] for part in range(3))  # (2, 9) each
            weight = np.exp(key) / np.exp(key).sum(1, keepdims=True)
            for place in range(9):
                expected = sum((query[:, place] @ weight[:, other]) * value[:, other] for other in range(9)) / np.sqrt(2)
                np.testing.assert_allclose(found[sample, 2 * head : 2 * head + 2].flatten(1)[:, place], expected, rtol=1e-4, atol=1e-5)


def test_the_keys_biases_of_linear_attention_change_nothing():
    torch.manual_seed(0)
    attention, features = LinearAttention(6, heads=3), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        before = attention.attend(features)
        attention.qkv.bias[6:12] += torch.randn(6)
        torch.testing.assert_close(attention.attend(features), before)
        attention.qkv.bias[12:] += 1
        assert largest(attention.attend(features) - before) > 0.01
    network = full_size(Dctlsa)
    assert sum(module.qkv.bias.numel() // 3 for module in network.modules() if isinstance(module, LinearAttention)) == 1_320


@pytest.mark.parametrize("size", [2, 5, 11, 16])
def test_images_are_mirrored_as_numpy_does(size):
    image = torch.rand(1, 2, size, size)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 16 - size), (0, 16 - size)), mode="reflect")
    assert np.array_equal(mirrored(image, 16).numpy(), expected)


def test_windows_are_cut_row_by_row_and_joined_again():
    image = torch.rand(2, 3, 12, 12)
    windows = cut_windows(image, 4)
    assert windows.shape == (18, 3, 4, 4)
    for sample in range(2):
        for row in range(3):
            for column in range(3):
                assert torch.equal(windows[9 * sample + 3 * row + column], image[sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4])
    assert torch.equal(join_windows(windows, 3), image)


def test_the_second_attention_sees_windows_moved_by_half_their_size():
    """On 8 x 8 pixels in windows of 4, a change in a corner reaches its own window first, then everything that shares a moved window with that."""
    torch.manual_seed(0)
    body, image = Body(4, heads=2, window=4).eval(), torch.rand(1, 4, 8, 8)
    changed = image.clone()
    changed[:, 0, 0, 0] += 1
    with torch.no_grad():
        moved = (body(changed) - body(image)).abs().amax((0, 1)) > 1e-7
        assert bool(moved.all())
        body.pairs[1] = nn.Identity()
        moved = (body(changed) - body(image)).abs().amax((0, 1)) > 1e-7
    assert bool(moved[:4, :4].all()) and not bool(moved[4:].any()) and not bool(moved[:, 4:].any())


# EGASR


def test_edge_filters_are_sobels_and_laplacians_of_mixtures():
    torch.manual_seed(0)
    filters = EdgeFilters(2)
    image = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        nn.init.normal_(filters.strength)
        found, mixtures = filters(image)[0].double().numpy(), filters.mix(image)[0].double().numpy()
    operators = [
        lambda one: -ndimage.sobel(one, axis=0, mode="constant"),
        lambda one: -ndimage.sobel(one, axis=1, mode="constant"),
        lambda one: ndimage.laplace(one, mode="constant"),
    ]
    for k in range(6):
        expected = filters.strength[k].item() * operators[k // 2](mixtures[k]) + filters.offset[k].item()
        np.testing.assert_allclose(found[k], expected, rtol=1e-4, atol=1e-5)


def test_a_biased_mixture_with_its_border_filled_by_the_bias_gives_the_same_edges():
    """The toolkit's form of the filter: so its 96 biases in each module, 4,608 in all, have no effect."""
    torch.manual_seed(0)
    filters, image, bias = EdgeFilters(3), torch.randn(2, 3, 6, 6), torch.randn(9)
    with torch.no_grad():
        nn.init.normal_(filters.strength)
        padded = bias[:, None, None].expand(2, 9, 8, 8).clone()
        padded[:, :, 1:-1, 1:-1] += filters.mix(image)
        expected = nn.functional.conv2d(padded, filters.strength * filters.templates, filters.offset, groups=9)
        torch.testing.assert_close(filters(image), expected, rtol=1e-4, atol=1e-4)
    assert sum(module.mix.out_channels for module in full_size(Egasr).modules() if isinstance(module, EdgeFilters)) == 4_608


def test_branch_attention_takes_a_weighted_mean_of_its_branches():
    torch.manual_seed(0)
    fuse, first, second = BranchAttention(4), torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(fuse(first, first), first)
        found = fuse(first, second)
        share = (found - second) / (first - second)
    torch.testing.assert_close(share, share.mean((2, 3), keepdim=True).expand_as(share), rtol=1e-2, atol=1e-2)
    assert float(share.min()) > 0 and float(share.max()) < 1


# FENet


@pytest.mark.parametrize("size", [5, 8, 11])
def test_low_and_high_frequencies_make_up_the_image_and_the_low_ones_are_block_means(size):
    image = torch.rand(2, 3, size, size)
    low, high = split_frequencies(image)
    torch.testing.assert_close(low + high, image)
    cells = size // 4
    means = image[:, :, : 4 * cells, : 4 * cells].numpy().reshape(2, 3, cells, 4, cells, 4).mean((3, 5))
    nearest = np.arange(size) * cells // size
    np.testing.assert_allclose(low.numpy(), means[:, :, nearest[:, None], nearest], rtol=1e-5)


def test_fenets_convolutions_keep_length_and_direction_apart():
    torch.manual_seed(0)
    gate, image = FrequencyGate(4), torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        before = gate(image)
        length, direction = gate.out.parametrizations.weight.original0, gate.out.parametrizations.weight.original1
        direction *= 7
        torch.testing.assert_close(gate(image), before)
        length *= 2
        torch.testing.assert_close(gate(image), 2 * before)


# CFGN


def test_contrast_is_numpys_standard_deviation_plus_mean():
    image = torch.randn(2, 3, 5, 5)
    pixels = image.double().numpy()
    np.testing.assert_allclose(contrast(image)[:, :, 0, 0].numpy(), pixels.std((2, 3)) + pixels.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_contrast_of_a_constant_map_has_a_gradient():
    """A root has an infinite slope at zero, and a dark map would spoil the whole training with it."""
    image = torch.zeros(1, 2, 4, 4, requires_grad=True)
    contrast(image).sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 1 / 16))
