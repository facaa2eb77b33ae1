"""The unfolded networks: sizes, physics, the two readings of DISTA-Net, weights files, and what a forward pass costs."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import csist.networks.registry as registry
import csist.networks.unfolding as unfolding
from csist.datasets import csist100k
from csist.evaluation import predict
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks import create_network, load_network
from csist.networks.cost import executed_multiply_accumulates, multiply_accumulates, paper_multiply_accumulates, parameter_count
from csist.networks.dista_net import DistaNetStage
from csist.networks.unfolding import UnfoldedNetwork, initial_matrix, soft_threshold
from csist.training import WINDOW, TrainingSet

NAMES = ["ista-net", "ista-net+", "dista-net"]  # the networks of stages; the others have test files of their own
PLANE = FocalPlane()


def fresh(name, ratio=3, seed=0, **options):
    """A network with reproducible random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return create_network(name, ratio=ratio, **options).eval()


def some_frames(count):
    return torch.from_numpy(csist100k("test", count).frames).float()


def largest(tensor):
    return float(tensor.abs().max())


# Sizes


@pytest.mark.parametrize(
    "name, ratio, options, count",
    [
        ("ista-net", 3, {}, 171_090),
        ("ista-net", 5, {}, 171_090),
        ("ista-net", 7, {}, 171_090),
        ("ista-net+", 3, {}, 336_978),
        ("ista-net+", 5, {}, 224_652),
        ("ista-net+", 7, {}, 224_652),
        ("dista-net", 3, {}, 2_179_104),
        ("dista-net", 3, {"variant": "released"}, 2_179_104),
        ("dista-net", 5, {}, 5_152_800),
        ("dista-net", 7, {}, 6_408_896),
        ("dista-net", 3, {"dynamic_transform": False}, 490_986),
        ("dista-net", 3, {"dynamic_threshold": False}, 2_137_410),
    ],
)
def test_parameter_counts_are_those_of_the_paper(name, ratio, options, count):
    assert parameter_count(fresh(name, ratio, start=False, **options)) == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [1, 3, 5, 7, 9])
def test_output_shapes_for_every_ratio_and_both_input_shapes(name, ratio):
    network = fresh(name, ratio, stages=2, start=False)
    frames = some_frames(3)
    with torch.no_grad():
        flat, channel = network(frames), network(frames[:, None])
    assert flat.shape == (3, 11 * ratio, 11 * ratio) and flat.dtype == torch.float32
    assert torch.equal(flat, channel)


@pytest.mark.parametrize("shape", [(11, 11), (2, 10, 11), (2, 10, 10), (2, 3, 11, 11), (2, 13, 13)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, 11, 11\)"):
        fresh("ista-net", stages=1, start=False)(torch.zeros(shape))


def test_networks_need_square_frames_and_follow_their_plane():
    with pytest.raises(ValueError, match="square"):
        create_network("ista-net", plane=FocalPlane((11, 9)), start=False)
    network = fresh("dista-net", plane=FocalPlane((7, 7)), stages=1, start=False)
    assert network(torch.zeros(2, 7, 7)).shape == (2, 21, 21)


def test_trajectory_begins_with_the_linear_start_and_ends_with_the_answer():
    network, frames = fresh("ista-net", stages=3), some_frames(2)
    with torch.no_grad():
        steps = network.trajectory(frames)
        assert len(steps) == 4
        assert torch.equal(steps[-1], network(frames))
    expected = torch.from_numpy(initial_matrix(PLANE, 3)).float() @ frames.flatten(1).T
    torch.testing.assert_close(steps[0].flatten(1), expected.T, rtol=1e-4, atol=1e-3)


# Gradients


def batch_of(ratio, count=4):
    data = csist100k("test", count)
    return torch.from_numpy(data.frames).float(), torch.from_numpy(SubpixelGrid(ratio=ratio).image(data.targets))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_but_the_first_step_length(name):
    """The linear start satisfies G Q = 1, so the first gradient G^T (G Q z - z) is zero and its step length has nothing to learn from."""
    network = fresh(name).train()
    sum(network.loss(*batch_of(3)).values()).backward()
    gradients = {key: largest(value.grad) for key, value in network.named_parameters()}
    first = gradients.pop("fcs.0.lambda_step")
    assert all(value > 0 for value in gradients.values()), [key for key, value in gradients.items() if not value > 0]
    others = [value for key, value in gradients.items() if key.endswith("lambda_step")]
    assert first < 1e-4 * max(others)  # what is left is float32 rounding


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_has_two_terms_and_windows_give_one_too(name):
    network, (frames, truth) = fresh(name, stages=2), batch_of(3)
    with torch.no_grad():
        terms = network.loss(frames, truth)
        assert set(terms) == {"discrepancy", "symmetry"}
        torch.testing.assert_close(terms["discrepancy"], (network(frames) - truth).square().mean())
        residuals = [residual for _, residual in network.unfold(frames, symmetry=True) if residual is not None]
        assert len(residuals) == 2
        torch.testing.assert_close(terms["symmetry"], 0.01 * sum(residual.square().mean() for residual in residuals))


@pytest.mark.parametrize("name", NAMES)
def test_the_symmetry_path_runs_only_when_asked_for(name):
    network, frames = fresh(name, stages=2, start=False), some_frames(1)
    calls = []
    for stage in network.fcs:
        stage.inverse = lambda features, inverse=stage.inverse: calls.append(1) or inverse(features)
    with torch.no_grad():
        plain = list(network.unfold(frames))
        assert len(calls) == 2
        asked = list(network.unfold(frames, symmetry=True))
    assert len(calls) == 2 + 4
    assert all(residual is None for _, residual in plain) and all(residual is not None for _, residual in asked[1:])
    assert torch.equal(plain[-1][0], asked[-1][0])


# The physics


class BareStage(nn.Module):
    """A stage without a transform: the next estimate is the gradient step, so that the physics can be seen alone."""

    def __init__(self):
        super().__init__()
        self.lambda_step = nn.Parameter(torch.tensor([0.3]))

    def forward(self, step, previous, symmetry):
        return step, None


@pytest.mark.parametrize("ratio", [1, 3, 5])
def test_the_separable_gradient_step_is_the_dense_one(ratio):
    network = UnfoldedNetwork(BareStage, 1, ratio, start=False)
    rng = np.random.default_rng(3)
    network.start_matrix.copy_(torch.from_numpy(rng.normal(size=tuple(network.start_matrix.shape))))
    frames = rng.uniform(0, 255, (2, 11, 11))
    with torch.no_grad():
        start, step = network.trajectory(torch.from_numpy(frames).float())
    steering = PLANE.steering_matrix(SubpixelGrid(ratio=ratio))
    before = start.double().numpy().reshape(2, -1)
    expected = before - 0.3 * (before @ steering.T - frames.reshape(2, -1)) @ steering
    np.testing.assert_allclose(step.numpy().reshape(2, -1), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_windows_gradient_step_uses_its_block_of_the_steering_matrix():
    ratio, origin = 3, torch.tensor([[0, 6], [3, 2]])
    network = UnfoldedNetwork(BareStage, 1, ratio, start=False)
    torch.manual_seed(0)
    network.start_matrix.normal_()
    windows = torch.rand(2, WINDOW, WINDOW) * 255
    with torch.no_grad():
        (start, _), (step, _) = network.unfold(windows, origin)
    steering = PLANE.steering_matrix(SubpixelGrid(ratio=ratio)).reshape(11, 11, 33, 33)
    for k, (row, column) in enumerate(origin.tolist()):
        block = steering[row : row + 5, column : column + 5, 3 * row : 3 * row + 15, 3 * column : 3 * column + 15].reshape(25, 225)
        before = start[k].double().numpy().ravel()
        expected = before - 0.3 * block.T @ (block @ before - windows[k].double().numpy().ravel())
        np.testing.assert_allclose(step[k].numpy().ravel(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("ratio", [3, 5])
def test_a_windows_linear_start_is_the_block_of_the_frames(ratio):
    """All light of a cluster lies in its window, so the frame's other columns of Q would be multiplied by zero."""
    data = csist100k("test", 200)
    samples = TrainingSet(data, ratio, seed=0)
    numbers = torch.arange(200)
    assert {0, 6} <= set(samples.origin.flatten().tolist()), "the sample must hold clusters at the border"
    windows, _, origin = samples.batch(numbers, "windows")
    frames, _, _ = samples.batch(numbers, "frames")
    network = fresh("ista-net", ratio, stages=1)
    with torch.no_grad():
        whole, part = network.linear_start(frames, None), network.linear_start(windows, origin)
    for k, (row, column) in enumerate((ratio * origin).tolist()):
        block = whole[k, 0, row : row + 5 * ratio, column : column + 5 * ratio]
        torch.testing.assert_close(part[k, 0], block, rtol=1e-4, atol=1e-3)


def test_a_window_that_is_the_whole_frame_changes_nothing():
    network, frames = fresh("dista-net", stages=2), some_frames(2)
    with torch.no_grad():
        assert torch.equal(network(frames, torch.zeros(2, 2, dtype=torch.long)), network(frames))


def test_on_frame_puts_a_windows_estimate_in_its_place():
    network = fresh("dista-net", stages=1, start=False)
    estimate = torch.arange(2 * 225.0).view(2, 1, 15, 15).requires_grad_()
    origin = torch.tensor([[0, 6], [4, 3]])
    frame = network.on_frame(estimate, origin)
    assert frame.shape == (2, 1, 33, 33)
    for k, (row, column) in enumerate((3 * origin).tolist()):
        assert torch.equal(frame[k, 0, row : row + 15, column : column + 15], estimate[k, 0])
        assert float(frame[k].detach().sum()) == float(estimate[k].detach().sum())  # zeros elsewhere
    frame.sum().backward()
    assert torch.equal(estimate.grad, torch.ones_like(estimate))
    assert network.on_frame(estimate, None) is estimate


def test_dista_nets_kernels_of_a_window_are_those_of_the_frame_it_lies_on():
    network = fresh("dista-net", stages=1)
    data = csist100k("test", 6)
    windows, _, origin = TrainingSet(data, 3, seed=0).batch(torch.arange(6), "windows")
    with torch.no_grad():
        placed = network.on_frame(network.linear_start(windows, origin), origin)
        whole = torch.zeros_like(placed)
        for k, (row, column) in enumerate((3 * origin).tolist()):
            whole[k, 0, row : row + 15, column : column + 15] = network.linear_start(some_frames(6), None)[k, 0, row : row + 15, column : column + 15]
        torch.testing.assert_close(network.fcs[0].kernels(placed), network.fcs[0].kernels(whole), rtol=1e-4, atol=1e-4)


# Soft threshold

finite = st.floats(-1e6, 1e6)
quick = settings(max_examples=50, deadline=None)


def soft(value, threshold):
    return float(soft_threshold(torch.tensor(value, dtype=torch.float64), torch.tensor(threshold, dtype=torch.float64)))


@quick
@given(finite, st.floats(0, 1e6))
def test_soft_threshold_shrinks_towards_zero_and_keeps_the_sign(value, threshold):
    shrunk = soft(value, threshold)
    assert abs(shrunk) == max(abs(value) - threshold, 0)
    assert shrunk * value >= 0
    assert soft(-value, threshold) == -shrunk


@quick
@given(finite, finite, finite)
def test_soft_threshold_never_increases_distances_for_positive_thresholds(first, second, threshold):
    assert abs(soft(first, abs(threshold)) - soft(second, abs(threshold))) <= abs(first - second) * (1 + 1e-12) + 1e-9


@quick
@given(finite, st.floats(-1e6, -1e-3))
def test_a_negative_threshold_pushes_away_from_zero(value, threshold):
    assert abs(soft(value, threshold)) == (abs(value) - threshold if value else 0)


@quick
@given(finite)
def test_a_zero_threshold_changes_nothing(value):
    assert soft(value, 0.0) == value


def test_a_float32_threshold_leaves_bfloat16_features_bfloat16():
    assert soft_threshold(torch.ones(2, dtype=torch.bfloat16), torch.tensor([0.5])).dtype == torch.bfloat16


# The linear start


@pytest.mark.parametrize("ratio", [1, 3, 5])
def test_the_linear_start_explains_every_frame_exactly(ratio):
    steering = PLANE.steering_matrix(SubpixelGrid(ratio=ratio))
    np.testing.assert_allclose(steering @ initial_matrix(PLANE, ratio), np.eye(121), atol=1e-9)


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_linear_start_is_the_regression_on_the_training_scenes(ratio, monkeypatch):
    data = csist100k("train", 2_000)
    monkeypatch.setattr(unfolding, "csist100k", lambda split: data)
    grid = SubpixelGrid(ratio=ratio)
    scenes = np.zeros((grid.shape[0] * grid.shape[1], len(data.frames)))
    for k, (xy, intensity, count) in enumerate(zip(data.targets.xy, data.targets.intensity, data.targets.count)):
        for position, flux in zip(xy[:count], intensity[:count]):
            row, column = grid.to_index(position)
            scenes[row * grid.shape[1] + column, k] += flux
    images = PLANE.steering_matrix(grid) @ scenes
    expected = scenes @ images.T @ np.linalg.inv(images @ images.T)
    found = initial_matrix.__wrapped__(PLANE, ratio)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


# DISTA-Net's two readings


@pytest.mark.parametrize("options", [{}, {"dynamic_transform": False}, {"dynamic_threshold": False}])
def test_the_papers_network_treats_every_sample_alone(options):
    network, frames = fresh("dista-net", stages=2, **options), some_frames(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    with torch.no_grad():
        together = network(frames)
        assert_same_but_for_rounding(network(frames[order]), together[order])
        for k in (0, 5):
            assert_same_but_for_rounding(network(frames[k : k + 1])[0], together[k])


def assert_same_but_for_rounding(found, expected):
    """Other batch sizes take other convolution kernels, whose rounding differs. Where the attention is negative, eq. 19 pushes features away from zero,
    so rounding that flips the sign of a feature near zero makes a small jump: a few sub-pixels may differ by more than rounding."""
    difference = (found - expected).abs() / largest(expected)
    assert difference.max() < 1e-2 and (difference < 1e-4).float().mean() > 0.95


def test_the_papers_dynamic_branch_convolves_each_sample_with_its_own_kernel():
    stage = DistaNetStage(3)
    torch.manual_seed(1)
    step, previous = torch.randn(3, 1, 15, 15), torch.rand(3, 1, 33, 33) * 200
    with torch.no_grad():
        found, kernels = stage.dynamic_branch(step, previous), stage.kernels(previous)
        assert found.shape == (3, 1, 15, 15) and kernels.shape == (3, 1, 3, 3)
        for k in range(3):
            expected = nn.functional.conv2d(step[k : k + 1], kernels[k : k + 1], padding=1).sigmoid()
            torch.testing.assert_close(found[k : k + 1], expected, rtol=1e-5, atol=1e-6)


def test_the_released_network_mixes_the_samples_of_a_batch():
    frames = some_frames(64)
    changed = frames.clone()
    changed[7] = frames[8]
    with torch.no_grad():
        released = fresh("dista-net", stages=1, variant="released")
        paper = fresh("dista-net", stages=1)
        leak = (released(changed) - released(frames)).abs().amax((1, 2))
        none = (paper(changed) - paper(frames)).abs().amax((1, 2))
    others = torch.arange(64) != 7
    assert (leak[others] > 1e-3).all()
    assert largest(none[others]) < 1e-3 < float(none[7])


def test_the_released_network_runs_on_64_frames_or_on_one():
    network, frames = fresh("dista-net", stages=1, variant="released"), some_frames(64)
    with torch.no_grad():
        assert network(frames).shape == (64, 33, 33) and network(frames[:1]).shape == (1, 33, 33)
        with pytest.raises(ValueError, match="64 or 1 only; got 63"):
            network(frames[:63])


def test_predict_fills_up_the_last_batch_of_the_released_network():
    network, frames = fresh("dista-net", stages=1, variant="released"), csist100k("test", 70).frames
    images = predict(network, frames)
    with torch.no_grad():
        filled = np.concatenate([frames[64:], np.zeros((58, 11, 11), np.uint8)])
        expected = torch.cat([network(torch.from_numpy(frames[:64]).float()), network(torch.from_numpy(filled).float())[:6]])
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-3)
    assert predict(network, frames, windows=True).shape == (70, 33, 33)


def test_the_released_kernel_generator_never_learns():
    network = fresh("dista-net", stages=2, variant="released").train()
    sum(network.loss(*batch_of(3, 1)).values()).backward()
    without = {key for key, value in network.named_parameters() if value.grad is None}
    assert without == {f"fcs.{k}.{layer}.{kind}" for k in range(2) for layer in ("w1", "w2") for kind in ("weight", "bias")}
    sizes = {key: value.numel() for key, value in fresh("dista-net", start=False).named_parameters()}
    assert sum(size for key, size in sizes.items() if key.split(".")[2] in ("w1", "w2")) == 1_688_118  # 77.5 % of the network


def test_the_two_released_differences_can_be_had_one_at_a_time():
    """Same seed, same weights: with both, a single frame (nothing to mix with) gives what the released variant gives, but for the kernels' input scale."""
    frames, truth = batch_of(3, 1)
    frozen, gate, plain = (fresh("dista-net", stages=2, **options) for options in ({"train_kernels": False}, {"gate": True}, {}))
    sum(frozen.train().loss(frames, truth).values()).backward()
    assert {key.split(".")[2] for key, value in frozen.named_parameters() if value.grad is None} == {"w1", "w2"}
    with torch.no_grad():
        assert torch.equal(frozen.eval()(frames), plain(frames)) and not torch.equal(gate(frames), plain(frames))
    features = torch.randn(2, 64, 9, 9)
    assert torch.equal(gate.fcs[0].threshold(features), features * plain.fcs[0].threshold(features))


def test_the_released_threshold_is_a_gate():
    r"""sign(u) relu(|u| - u A) = u relu(1 - sign(u) A): a factor on the features, whatever their size."""
    stage = DistaNetStage(3, variant="released")
    torch.manual_seed(2)
    features = torch.randn(2, 64, 9, 9)
    with torch.no_grad():
        attention, threshold = stage.att(features), stage.threshold(features)
        assert torch.equal(threshold, features * attention)
        gate = features * torch.relu(1 - features.sign() * attention)
        torch.testing.assert_close(soft_threshold(features, threshold), gate, rtol=1e-5, atol=1e-6)
    assert 0.2 < float((threshold < 0).float().mean()) < 0.8


def toolkit_names(stages, ratio, features=64, hidden=256):
    """Names and shapes of the toolkit's DISTA-Net parameters."""
    half, sub = features // 2, 121 * ratio**2
    stage = {
        "lambda_step": (1,),
        "conv1_forward": (features, 1, 3, 3),
        "conv2_forward": (features, features, 3, 3),
        "conv1_backward": (features, features, 3, 3),
        "conv2_backward": (1, features, 3, 3),
        "w1.weight": (hidden, sub),
        "w1.bias": (hidden,),
        "w2.weight": (9, hidden),
        "w2.bias": (9,),
        "att.convl.weight": (features, 1, 3, 3),
        "att.convl.bias": (features,),
        "att.conv0_s.weight": (half, features, 1, 1),
        "att.conv0_s.bias": (half,),
        "att.conv1_s.weight": (half, features, 1, 1),
        "att.conv1_s.bias": (half,),
        "att.conv_squeeze.weight": (2, 2, 3, 3),
        "att.conv_squeeze.bias": (2,),
        "att.conv_m.weight": (features, half, 1, 1),
        "att.conv_m.bias": (features,),
    }
    return {f"fcs.{k}.{name}": shape for k in range(stages) for name, shape in stage.items()}


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("ratio, stages", [(3, 6), (7, 4)])
def test_weights_of_the_toolkit_load_by_name(variant, ratio, stages):
    network = fresh("dista-net", ratio, variant=variant, start=False)
    foreign = {name: torch.zeros(shape) for name, shape in toolkit_names(stages, ratio).items()}
    result = network.load_state_dict(foreign, strict=False)
    assert result.unexpected_keys == [] and result.missing_keys == ["start_matrix"]


def test_alpha_one_switches_the_dynamic_branch_off():
    torch.manual_seed(0)
    stage = DistaNetStage(3, static_weight=1.0)
    step, previous = torch.randn(1, 1, 15, 15), torch.rand(1, 1, 33, 33)
    with torch.no_grad():
        found = stage.transform(step, previous)
        stage.dynamic_transform = False
        torch.testing.assert_close(found, stage.transform(step, previous))


# Making and loading


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: create_network("dista"), "Did you mean 'dista-net'"),
        (lambda: create_network(None), "unknown method None"),
        (lambda: create_network("ista-net", ratio=4), "odd integer"),
        (lambda: create_network("ista-net", ratio=3.0), "odd integer"),
        (lambda: create_network("ista-net", layers=3), "no option 'layers'; it takes stages"),
        (lambda: create_network("ista-net", stages=0), "from 1 to 64"),
        (lambda: create_network("dista-net", stages=0), "from 1 to 64"),
        (lambda: create_network("ista-net+", stages=0), "from 1 to 64"),
        (lambda: create_network("dista-net", variant="relased"), "paper, released"),
        (lambda: create_network("dista-net", static_weight=1.5), "from 0 to 1"),
        (lambda: load_network("dista"), "Did you mean 'dista-net'"),
        (lambda: load_network("ista-net", ratio=2), "odd integer"),
        (lambda: load_network("DISTA-Net"), "Did you mean 'dista-net'"),
        (lambda: create_network("ista-net", plane={"sgma": 0.6}), "plane has no 'sgma'; it takes shape, sigma"),
        (lambda: create_network("ista-net", plane={"sigma": -1}), "between 0.01 and 100"),
    ],
)
def test_wrong_arguments_get_a_clear_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """An empty folder as the only place of committed weights."""
    monkeypatch.setattr(registry, "weights_folders", lambda: [tmp_path])
    return tmp_path


def header_of(name, ratio, **options):
    return {"network": name, "ratio": ratio, "options": options, "run": "test", "seed": 0}


def test_a_network_that_was_never_trained_says_how_to_train_it(weights):
    with pytest.raises(FileNotFoundError, match=r"train it with: csist train ista-net\+ --ratio 5"):
        load_network("ista-net+", ratio=5)
    with pytest.raises(FileNotFoundError, match="queue.py --only ista-net-plus-c5-seed9"):
        load_network("ista-net+", ratio=5, run="ista-net-plus-c5-seed9")


def test_weights_are_looked_for_in_the_users_folder_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CSIST_WEIGHTS", str(tmp_path))
    assert registry.weights_folders()[0] == tmp_path
    monkeypatch.setenv("CSIST_WEIGHTS", str(tmp_path / "wieghts"))
    with pytest.raises(FileNotFoundError, match="CSIST_WEIGHTS names .*wieghts.*no folder"):
        registry.weights_folders()


@pytest.mark.parametrize("name, options", [("ista-net", {"stages": 2}), ("dista-net", {"stages": 1, "variant": "released"})])
def test_weights_survive_the_file_to_half_precision(weights, name, options):
    network = fresh(name, **options)
    path = weights / f"{name}-c3-seed0.safetensors"
    registry.write_weights(path, network, header_of(name, 3, **options))
    assert [entry.name for entry in weights.iterdir()] == [path.name], "no temporary file may stay"
    loaded = load_network(name)
    assert not loaded.training
    assert type(loaded) is type(network) and len(loaded.fcs) == len(network.fcs)
    for key, value in network.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[key], value.half().float()), key
    assert torch.equal(loaded.start_matrix, network.start_matrix), "the linear start stays float32"
    with torch.no_grad():
        frames = some_frames(1)
        difference = largest(loaded(frames) - network(frames))
        assert difference < 5e-3 * largest(network(frames))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])  # the last one overflows float16
def test_weights_that_are_not_finite_are_not_written(weights, value):
    network = fresh("ista-net", stages=1, start=False)
    with torch.no_grad():
        network.fcs[0].conv2_backward[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="not finite in float16"):
        registry.write_weights(weights / "bad.safetensors", network, header_of("ista-net", 3, stages=1))
    assert not list(weights.iterdir())


def test_weights_of_another_network_are_refused(weights):
    network = fresh("ista-net", 5, stages=1, start=False)
    path = weights / "ista-net-c5-seed0.safetensors"
    registry.write_weights(path, network, header_of("ista-net", 5, stages=1))
    shutil.copy(path, weights / "ista-net-c3-seed0.safetensors")
    shutil.copy(path, weights / "dista-net-c5-seed0.safetensors")
    with pytest.raises(ValueError, match="ratio 5; asked for 3"):
        load_network("ista-net", ratio=3)
    with pytest.raises(ValueError, match="'ista-net'; asked for 'dista-net'"):
        load_network("dista-net", ratio=5)


def test_files_that_hold_no_weights_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "foreign.safetensors"))
    (tmp_path / "garbage.safetensors").write_bytes(b"no weights at all")
    for name in ("foreign", "garbage"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is no csist weights file"):
            registry.read_weights(tmp_path / f"{name}.safetensors")


def test_weights_bring_their_imaging_model(tmp_path):
    network = fresh("ista-net", stages=1, plane=FocalPlane(sigma=0.7))
    registry.write_weights(tmp_path / "a.safetensors", network, header_of("ista-net", 3, stages=1))
    loaded, _ = registry.read_weights(tmp_path / "a.safetensors")
    assert loaded.plane == network.plane and torch.equal(loaded.axis, network.axis)


@pytest.mark.parametrize("name", ["dista-net", "lista", "srcnn"])
def test_a_plane_may_be_plain_values_but_nothing_else(name):
    assert create_network(name, plane={"shape": [7, 7], "sigma": 0.55, "bits": 14}, start=False).plane == FocalPlane((7, 7), 0.55, 14)
    for wrong in (0.6, False, "paper", [0.6]):
        with pytest.raises(TypeError, match="plane must be a FocalPlane"):
            create_network(name, plane=wrong, start=False)


def test_a_header_that_does_not_fit_its_weights_is_an_error(tmp_path):
    network = fresh("ista-net", stages=2, start=False)
    for number, header in enumerate(({"network": "ista-net", "ratio": 3}, {"ratio": 3}, {"network": "ista-net", "ratio": 3, "options": {"stages": 3}})):
        registry.write_weights(tmp_path / f"{number}.safetensors", network, header)
        with pytest.raises(ValueError, match=f"{number}.safetensors does not fit its own header"):
            registry.read_weights(tmp_path / f"{number}.safetensors")


@pytest.mark.parametrize("size", [9, 13])
def test_the_linear_start_of_another_frame_size_is_consistent(size):
    plane = FocalPlane(shape=(size, size))
    start = initial_matrix(plane, 3)
    product = plane.steering_matrix(SubpixelGrid(plane.shape, 3)) @ start
    assert np.abs(product - np.eye(size**2)).max() < 1e-6 and np.abs(start).max() < 10


def test_what_is_no_batch_of_frames_is_refused_and_whole_numbers_are_taken():
    network = fresh("ista-net", stages=1)
    frames = csist100k("test", 2).frames
    with pytest.raises(TypeError, match="must be a real torch tensor; got ndarray"):
        network(frames)
    with torch.no_grad():
        assert torch.equal(network(torch.from_numpy(frames)), network(torch.from_numpy(frames).float()))
        assert create_network("srcnn")(torch.from_numpy(frames)).shape == (2, 33, 33)
        assert network(torch.zeros(0, 11, 11)).shape == (0, 33, 33)


def test_the_header_says_where_weights_come_from(tmp_path):
    header = header_of("ista-net", 3, stages=1)
    registry.write_weights(tmp_path / "a.safetensors", fresh("ista-net", stages=1, start=False), header)
    _, found = registry.read_weights(tmp_path / "a.safetensors")
    assert found == json.loads(json.dumps(header))


# Precision and speed


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_convolutions_stay_close_to_float32(name):
    network, frames = fresh(name, stages=2), csist100k("test", 8).frames
    exact, rough = predict(network, frames), predict(network, frames, precision="bfloat16")
    relative = np.sqrt(np.square(exact - rough).mean() / np.square(exact).mean())
    assert 0 < relative < 0.06  # 8 bits of significand, through five to seven layers of an untrained network


@pytest.mark.slow
def test_the_compiled_network_agrees_with_the_eager_one():
    network, frames = fresh("ista-net", stages=2), some_frames(4)
    with torch.no_grad():
        eager = network(frames)
        try:
            compiled = torch.compile(network)(frames)
        except Exception as error:  # a machine without a C++ compiler, or a Python that torch.compile does not know yet
            pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4 * largest(eager))


# Cost


@pytest.mark.parametrize(
    "name, ratio, options, billions",
    [
        ("ista-net", 3, {}, 12.7665),
        ("ista-net+", 3, {}, 24.3282),
        ("dista-net", 3, {}, 35.1028),
        ("ista-net", 5, {}, 39.5444),
        ("ista-net+", 5, {}, 48.1582),
        ("dista-net", 5, {}, 100.4636),
        ("ista-net", 7, {}, 89.5078),
        ("ista-net+", 7, {}, 103.0851),
        ("dista-net", 7, {}, 138.5170),
        ("dista-net", 3, {"dynamic_transform": False}, 34.7540),
        ("dista-net", 3, {"dynamic_threshold": False}, 32.2776),
        ("dista-net", 5, {"dynamic_threshold": False}, 92.616),  # the paper's Table 2 prints this one for c = 3
    ],
)
def test_the_papers_flops_are_multiply_accumulates_of_64_frames(name, ratio, options, billions):
    count = paper_multiply_accumulates(fresh(name, ratio, start=False, **options))
    assert count / 1e9 == pytest.approx(billions, abs=5.1e-4 if billions == 92.616 else 5.1e-5)


@pytest.mark.parametrize("name, kernels", [("ista-net", 19_008), ("ista-net+", 37_440)])
@pytest.mark.parametrize("stages", [1, 3])
def test_executed_multiply_accumulates_by_hand(name, kernels, stages):
    sub = 33
    gram, data = 11 * sub**2, 11 * 11 * sub + 11 * sub**2
    start, physics = 121 * sub**2, 2 * sub**3
    assert executed_multiply_accumulates(fresh(name, stages=stages, start=False)) == gram + data + start + stages * (physics + kernels * sub**2)


def test_executed_multiply_accumulates_of_a_dynamic_stage_by_hand():
    sub = 33
    shared = 11 * sub**2 + 11 * 11 * sub + 11 * sub**2 + 121 * sub**2
    kernels = 74_880 + 9 * 64 + 3 * 64 * 32 + 2 * 2 * 9 + 9  # static, depthwise, 1 x 1s, squeeze, the dynamic kernel
    linear = sub**2 * 256 + 256 * 9
    assert executed_multiply_accumulates(fresh("dista-net", stages=1, start=False)) == shared + 2 * sub**3 + kernels * sub**2 + linear


def test_counting_leaves_the_network_as_it_was_and_gives_both_numbers():
    network = fresh("dista-net", stages=1, start=False).train()
    assert set(multiply_accumulates(network)) == {"per_frame", "paper_batch64"}
    assert network.training and all(value.grad is None for value in network.parameters())


def test_a_network_without_physics_counts_64_frames():
    class Plain(unfolding.UnmixingNetwork):
        def __init__(self):
            super().__init__(1)
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, frames, origin=None):
            return self.layer(self.check_frames(frames))[:, 0]

    assert multiply_accumulates(Plain()) == {"per_frame": 9 * 121, "paper_batch64": 64 * 9 * 121}
