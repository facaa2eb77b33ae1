"""ACT and the HiT networks: sizes and costs against the printed ones, attention against plain loops, and that everything can learn."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks.cost import PAPER_BATCH, executed_multiply_accumulates, parameter_count
from csist.networks.sr.actnet import PATCH, WIDE, Actnet, Attention
from csist.networks.sr.actnet import cut as cut_tokens
from csist.networks.sr.actnet import join as join_tokens
from csist.networks.sr.hit_sr import HitSir, HitSng, HitSrf, NgramContext, PositionBias, SpatialChannelCorrelation, Surroundings, cut, join, mirror

HIT = [HitSir, HitSng, HitSrf]
TINY = {Actnet: {"features": 16, "stages": 2, "blocks": 1}, **{network: {"blocks": 1, "windows_px": (1, 4)} for network in HIT}}


def tiny(network, seed=0, **options):
    """A small network with reproducible random weights."""
    torch.manual_seed(seed)
    return network(**{**TINY[network], **options})


def on_meta(network, **options):
    """A network without numbers, for counting."""
    with torch.device("meta"):
        return network(**options)


def batch_of(ratio=3, count=2):
    data = csist100k("test", count)
    return torch.from_numpy(data.frames).float(), torch.from_numpy(SubpixelGrid(ratio=ratio).image(data.targets))


# Sizes and costs


@pytest.mark.parametrize("network, count", [(HitSir, 769_361), (HitSng, 951_681), (HitSrf, 844_241)])
def test_hit_parameter_counts_are_those_of_the_paper(network, count):
    assert parameter_count(on_meta(network)) == count


def test_the_base_of_photographs_does_not_explain_hit_sngs_count():
    assert parameter_count(on_meta(HitSng, windows_px=(4, 8, 16, 32, 48, 64), base=8)) == 1_009_881


@pytest.mark.parametrize("network, printed, tolerance", [(HitSir, 7.357, 1e-4), (HitSng, 13.324, 1e-4), (HitSrf, 7.945, 4e-3)])
def test_hit_multiply_accumulates_are_those_of_the_paper(network, printed, tolerance):
    """For 64 frames, with fvcore's five operations for every number that a layer norm touches."""
    whole, normalised = on_meta(network), []
    for layer in whole.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.register_forward_hook(lambda layer, inputs, output: normalised.append(inputs[0].numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        whole(torch.zeros(PAPER_BATCH, 11, 11, device="meta"))
    assert (counter.get_total_flops() // 2 + 5 * sum(normalised)) / 1e9 == pytest.approx(printed, rel=tolerance)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_actnets_printed_count_includes_unused_parameters(variant):
    network = on_meta(Actnet, variant=variant)
    assert parameter_count(network) == 46_175_105
    assert parameter_count(network) + network.dead_parameters == 46_212_033


def test_actnet_as_released_has_the_papers_multiply_accumulates():
    released, sound = (PAPER_BATCH * executed_multiply_accumulates(on_meta(Actnet, variant=variant)) / 1e9 for variant in ("released", "paper"))
    assert released == pytest.approx(62.80, rel=2e-3)
    assert sound > 1.2 * released  # 16 tokens instead of 9


@pytest.mark.parametrize("ratio", [3, 5])
@pytest.mark.parametrize("network", list(TINY))
def test_output_shapes_for_frames_and_windows(network, ratio):
    small, (frames, _) = tiny(network, ratio=ratio), batch_of()
    with torch.no_grad():
        flat, channel = small(frames), small(frames[:, None])
        window = small(frames[:, 2:7, 3:8], torch.zeros(2, 2, dtype=torch.long))
    assert flat.shape == (2, 11 * ratio, 11 * ratio) and flat.dtype == torch.float32
    assert torch.equal(flat, channel)
    assert window.shape == (2, 5 * ratio, 5 * ratio)


@pytest.mark.parametrize("network, size", [(Actnet, 1), (Actnet, 13), (HitSir, 1), (HitSng, 1), (HitSng, 13)])
def test_networks_follow_their_plane(network, size):
    assert tiny(network, plane=FocalPlane((size, size)))(torch.zeros(1, size, size)).shape == (1, 3 * size, 3 * size)


@pytest.mark.parametrize(
    "network, options, message",
    [
        (Actnet, {"variant": "other"}, "variant must be one of paper, released"),
        (Actnet, {"features": 24}, "multiple of 16"),
        (Actnet, {"stages": 0}, "stages must be at least 1"),
        (HitSir, {"features": 50}, "multiple of 2 x heads = 12"),
        (HitSir, {"windows_px": (5,)}, "window 5, base 2"),
    ],
)
def test_bad_options_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(network, **options)


# Learning


@pytest.mark.parametrize("network, options", [*((network, {}) for network in TINY), (Actnet, {"variant": "released"})])
def test_every_parameter_learns(network, options):
    """Except that windows of one pixel know only the offset zero: their position bias stays at zero until its last layer, whose bias alone can learn."""
    small = tiny(network, **options)
    small.loss(*batch_of())["discrepancy"].backward()
    still = [name for name, weight in small.named_parameters() if not weight.grad.abs().max() > 0]
    bias = "blocks.0.layers.0.correlation.bias."
    assert still == [name for name, _ in small.named_parameters() if name.startswith(bias) and name != bias + "layers.9.bias"]


@pytest.mark.parametrize("network", list(TINY))
def test_one_step_of_the_optimiser_lowers_the_loss(network):
    small, batch = tiny(network), batch_of()
    optimiser = torch.optim.Adam(small.parameters(), lr=1e-4)
    before = small.loss(*batch)["discrepancy"]
    before.backward()
    optimiser.step()
    with torch.no_grad():
        assert small.loss(*batch)["discrepancy"] < before.detach()


@pytest.mark.parametrize("network", list(TINY))
def test_samples_of_a_batch_do_not_touch_each_other(network):
    small, (frames, _) = tiny(network), batch_of(count=3)
    with torch.no_grad():
        together = small(frames)
        torch.testing.assert_close(small(frames[1:2])[0], together[1], rtol=1e-4, atol=1e-4 * float(together.abs().max()))


# HiT


def test_mirror_is_numpys_reflection_however_small_the_image():
    image = torch.rand(2, 3, 5, 4)
    found = mirror(image, 16)
    expected = np.pad(image.numpy(), ((0, 0), (0, 13), (0, 11), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(found.numpy(), expected)
    assert torch.equal(mirror(image[:, :1, :1], 4), image[:, :1, :1].expand(2, 4, 4, 4))
    assert torch.equal(mirror(image, 1), image)


def test_windows_are_cut_and_joined_again():
    image = torch.rand(2, 6, 9, 4)
    windows = cut(image, 3)
    assert torch.equal(windows[1, 1, 2], image[1, 3:6, 6:9])
    assert torch.equal(join(windows), image)


@pytest.mark.parametrize("window, base", [(1, 2), (2, 2), (6, 2), (4, 4)])
def test_position_bias_of_a_cell_is_the_mean_over_its_pixels(window, base):
    torch.manual_seed(0)
    cells = min(window, base)
    bias = PositionBias(3, 2, window, cells)
    with torch.no_grad():
        found = bias()
        assert found.shape == (2, window**2, cells**2)
        cell = window // cells
        offsets = [
            [[(row - i * cell - a, column - j * cell - b) for a, b in np.ndindex(cell, cell)] for i, j in np.ndindex(cells, cells)]
            for row, column in np.ndindex(window, window)
        ]  # for each pixel and each cell, those to the cell's pixels
        expected = bias.layers(torch.tensor(offsets).float()).mean(2)
        torch.testing.assert_close(found, expected.permute(2, 0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [2, 4])
def test_spatial_channel_correlation_is_its_formula(window):
    torch.manual_seed(0)
    features, heads, base = 32, 2, 2
    layer = SpatialChannelCorrelation(features, window, base, heads)
    with torch.no_grad():
        layer.pool.weight.copy_(torch.rand_like(layer.pool.weight))
        image = torch.randn(2, 5, 3, features)
        found = layer(image)
        padded = mirror(image, window)
        views, bias = layer.views(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy(), layer.bias().numpy()
        weights, constant = layer.pool.weight[0].numpy(), layer.pool.bias.item()
        expected = np.zeros_like(views)
        for sample in range(2):
            for top in range(0, padded.shape[1], window):
                for left in range(0, padded.shape[2], window):
                    place = (sample, slice(top, top + window), slice(left, left + window))
                    expected[place] = correlate(views[place], bias, weights, constant, heads)
        torch.testing.assert_close(found, layer.project(torch.from_numpy(expected))[:, :5, :3], rtol=1e-4, atol=1e-5)


def correlate(view, bias, weights, constant, heads):
    """One window (w, w, F) with 2 x 2 cells, by loops over pixels, cells, heads and channels."""
    side, half = len(view), view.shape[-1] // 2
    cell, width = side // 2, half // heads
    query, value = view[..., :half], view[..., half:]
    pooled = [
        constant + sum(weights[a * cell + b] * value[i * cell + a, j * cell + b] for a, b in np.ndindex(cell, cell)) for i, j in np.ndindex(2, 2)
    ]
    similar = [[(query[..., one] * value[..., other]).sum() / side**2 for other in range(half)] for one in range(half)]
    answer = np.zeros_like(view)
    for row, column in np.ndindex(side, side):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for number, summary in enumerate(pooled):
                weight = query[row, column, part] @ summary[part] / width + bias[head, row * side + column, number]
                answer[row, column, part] += weight * summary[part]
        for one in range(half):
            answer[row, column, half + one] = sum(similar[one][other] * value[row, column, other] for other in range(half))
    return answer


def test_ngram_context_is_the_mean_attention_of_groups_of_four_windows():
    torch.manual_seed(0)
    window, features, heads = 3, 8, 2
    context = NgramContext(features, window, heads)
    image = torch.randn(2, 6, 9, features)
    with torch.no_grad():
        found = context(image)
        assert found.shape == (2, 2, 3, features)
        words = torch.zeros(2, 2, 3, features // 2)
        for sample, row, column, pair in np.ndindex(words.shape):
            block = image[sample, row * 3 : row * 3 + 3, column * 3 : column * 3 + 3, 2 * pair : 2 * pair + 2]
            words[sample, row, column, pair] = (context.word.weight[0] * block.flatten()).sum() + context.word.bias[0]
        padded = words.numpy()
        after = torch.from_numpy(np.pad(padded, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="reflect"))
        before = torch.from_numpy(np.pad(padded, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="reflect"))
        for sample, row, column in np.ndindex(2, 2, 3):
            both = torch.cat([group_answer(context, grid[sample, row : row + 2, column : column + 2].reshape(4, -1), heads) for grid in (after, before)])
            torch.testing.assert_close(found[sample, row, column], context.merge(both), rtol=1e-4, atol=1e-5)


def group_answer(context, group, heads):
    """Softmax attention among four words (4, F), one head and one word at a time; their mean."""
    query, key, value = context.inward(group).chunk(3, dim=-1)
    width = query.shape[-1] // heads
    answer = torch.zeros_like(value)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(4):
            offset = [3 * (i // 2 - j // 2 + 1) + i % 2 - j % 2 + 1 for j in range(4)]
            scores = torch.stack([query[i, part] @ key[j, part] / width**0.5 + context.bias[offset[j], head] for j in range(4)])
            answer[i, part] = scores.softmax(0) @ value[:, part]
    return context.outward(answer).mean(0)


def test_hit_srfs_perceptron_sees_five_by_five_pixels():
    torch.manual_seed(0)
    look = Surroundings(3)
    image = torch.zeros(1, 9, 9, 3)
    changed = image.clone()
    changed[0, 4, 4, 1] = 1.0
    with torch.no_grad():
        moved = (look(changed) - look(image)).abs() > 0
    assert moved[0, 2:7, 2:7, 1].all() and moved.sum() == 25


# ACT


def test_tokens_are_cut_and_joined_again():
    image = torch.rand(2, 4, 12, 12)
    assert torch.equal(join_tokens(cut_tokens(image, PATCH), 12, PATCH), image)
    assert torch.equal(cut_tokens(image, PATCH)[1, 5], image[1, :, 3:6, 3:6].flatten())
    times = join_tokens(cut_tokens(torch.ones(1, 1, 12, 12), WIDE), 12, WIDE)[0, 0]
    expected = np.outer([1] * 3 + [2] * 6 + [1] * 3, [1] * 3 + [2] * 6 + [1] * 3)  # overlaps add up
    np.testing.assert_array_equal(times.numpy(), expected)


@pytest.mark.parametrize("own", [True, False])
def test_attention_is_its_formula(own):
    torch.manual_seed(0)
    layer, tokens, context = Attention(8, 2, own), torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    with torch.no_grad():
        found = layer(tokens) if own else layer(tokens, context)
        source = layer.norm(tokens) if own else layer.norm_context(context)
        query, key, value = layer.query(layer.norm(tokens)), *layer.key_value(source).split(8, dim=-1)
        expected = torch.zeros(3, 5, 8)
        for sample, token, head in np.ndindex(3, 5, 2):
            part = slice(4 * head, 4 * head + 4)
            scores = torch.stack([query[sample, token, part] @ one / 2.0 for one in key[sample, :, part]])
            expected[sample, token, part] = scores.softmax(0) @ value[sample, :, part]
        torch.testing.assert_close(found, layer.project(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant, tokens, missed", [("paper", 16, 0), ("released", 9, 40)])
def test_actnet_as_released_leaves_forty_pixels_without_a_token(variant, tokens, missed):
    network, seen = tiny(Actnet, variant=variant), {}
    network.embed.register_forward_hook(lambda layer, inputs, output: seen.update(tokens=output.shape[1]))
    network.fusions[0].register_forward_hook(lambda layer, inputs, output: seen.update(maps=inputs[0][:, 16:]))
    with torch.no_grad():
        network(batch_of()[0])
    assert seen["tokens"] == tokens
    assert int((seen["maps"] == 0).all(1)[0].sum()) == missed
    assert not missed or not seen["maps"][:, :, 9:].any() and not seen["maps"][:, :, :, 9:].any()


def test_actnet_as_released_needs_six_pixels():
    with pytest.raises(ValueError, match="at least 6 x 6 pixels; got 5 x 5"):
        tiny(Actnet, variant="released")(torch.zeros(1, 5, 5), torch.zeros(1, 2, dtype=torch.long))
