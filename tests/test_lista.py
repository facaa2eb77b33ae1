"""LISTA, LIHT, LAMP, TiLISTA and FISTA-Net: sizes, what each layer computes, what can learn, and what a forward pass costs."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from csist.datasets import csist100k
from csist.imaging import FocalPlane, SubpixelGrid
from csist.networks.cost import executed_multiply_accumulates, paper_multiply_accumulates, parameter_count
from csist.networks.fista_net import FistaNet
from csist.networks.lista import Lamp, Liht, Lista, Tilista, hard_threshold, support_threshold
from csist.networks.unfolding import initial_matrix
from csist.solvers.ista import ista
from csist.training import TrainingSet

DENSE = [Lista, Liht, Lamp, Tilista]
PLANE = FocalPlane()
PIXELS = 121


def fresh(network, seed=0, **options):
    """A network with reproducible random weights."""
    torch.manual_seed(seed)
    return network(**options)


def some_frames(count=4):
    return torch.from_numpy(csist100k("test", count).frames).float()


def batch_of(ratio=3, count=4):
    data = csist100k("test", count)
    return torch.from_numpy(data.frames).float(), torch.from_numpy(SubpixelGrid(ratio=ratio).image(data.targets))


def matrices(ratio=3):
    """G (M, N) and Q (N, M), float64."""
    return PLANE.steering_matrix(SubpixelGrid(ratio=ratio)), initial_matrix(PLANE, ratio)


def shrink(values, threshold):
    return np.sign(values) * np.maximum(np.abs(values) - threshold, 0)


def assert_equal_images(found, expected, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest value; found (B, n, n) and expected (B, N)."""
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found.detach().numpy().reshape(expected.shape), expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Sizes and costs


@pytest.mark.parametrize("network, count", [(Lista, 21_100_464), (Liht, 21_100_464), (Lamp, 2_125_728), (Tilista, 2_125_744)])
def test_parameter_counts_are_those_of_the_paper(network, count):
    assert parameter_count(network(start=False)) == count


@pytest.mark.parametrize("ratio", [1, 3, 5])
def test_fista_nets_printed_count_includes_unused_parameters(ratio):
    network = FistaNet(ratio, start=False)
    assert parameter_count(network) == 37_607
    assert parameter_count(network) + network.dead_parameters == 74_599


@pytest.mark.parametrize(
    "network, options, printed",
    [(Lista, {}, 1.358), (Liht, {}, 1.358), (Lamp, {"variant": "released"}, 0.278), (Tilista, {}, 0.278), (FistaNet, {}, 18.96)],
)
def test_multiply_accumulates_are_those_of_the_paper(network, options, printed):
    assert paper_multiply_accumulates(network(start=False, **options)) / 1e9 == pytest.approx(printed, rel=2e-3)


def test_fista_net_runs_far_fewer_products_than_the_paper_counts():
    network = FistaNet(start=False)
    kernels = sum(weight.numel() for weight in network.block.parameters() if weight.ndim == 4)
    convolutions = 7 * 33 * 33 * kernels
    assert convolutions < executed_multiply_accumulates(network) < 1.01 * convolutions


@pytest.mark.parametrize("ratio", [3, 5])
@pytest.mark.parametrize("network", [*DENSE, FistaNet])
def test_output_shapes_for_both_input_shapes(network, ratio):
    small = network(ratio, start=False, **({"stages": 1} if network is FistaNet else {"layers": 1}))
    with torch.no_grad():
        flat, channel = small(some_frames(2)), small(some_frames(2)[:, None])
    assert flat.shape == (2, 11 * ratio, 11 * ratio) and flat.dtype == torch.float32
    assert torch.equal(flat, channel)


def test_without_a_start_the_matrices_wait_for_a_checkpoint():
    empty, full = Lista(start=False, layers=1), Lista(layers=1)
    assert not empty.start_matrix.any() and not empty.fcs[0].W.any() and not empty.fcs[0].B.any()
    empty.load_state_dict(full.state_dict())
    torch.testing.assert_close(empty(some_frames()), full(some_frames()))


def test_networks_follow_their_plane():
    plane = FocalPlane((5, 5))
    assert Tilista(plane=plane, start=False, layers=2)(torch.zeros(2, 5, 5)).shape == (2, 15, 15)
    assert FistaNet(plane=plane, start=False, stages=2)(torch.zeros(2, 5, 5)).shape == (2, 15, 15)


@pytest.mark.parametrize("network", DENSE)
def test_dense_networks_refuse_windows_and_wrong_layers(network):
    small = network(start=False, layers=1)
    assert not small.windows
    with pytest.raises(ValueError, match=f"{network.__name__} needs whole frames"):
        small(torch.zeros(2, 5, 5), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B, 11, 11\)"):
        small(torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="layers must be from 1 to 64"):
        network(start=False, layers=0)


def test_lamp_refuses_unknown_variants_and_fista_net_wrong_stages():
    with pytest.raises(ValueError, match="variant must be one of paper, released"):
        Lamp(start=False, variant="other")
    with pytest.raises(ValueError, match="stages must be from 1 to 64"):
        FistaNet(start=False, stages=0)


@pytest.mark.parametrize("network", DENSE)
def test_trajectory_begins_with_the_first_estimate_and_ends_with_the_answer(network):
    small, frames = network(layers=2), some_frames(2)
    with torch.no_grad():
        steps = small.trajectory(frames)
        assert len(steps) == 3
        assert torch.equal(steps[-1], small(frames))


@pytest.mark.parametrize("network", DENSE)
def test_autocast_changes_nothing(network):
    small, frames = network(layers=2), some_frames(2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = small(frames)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, small(frames))


# What can learn


@pytest.mark.parametrize("network", DENSE)
def test_every_layer_owns_its_numbers(network):
    small = network(layers=2)
    places = [weight.untyped_storage().data_ptr() for weight in [*small.parameters(), *small.buffers()]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("network, frozen", [(Lista, []), (Liht, ["theta"]), (Lamp, []), (Tilista, ["fcs.0.W", "fcs.0.alpha"])])
def test_every_dense_parameter_learns_but_the_documented_ones(network, frozen):
    """LIHT's thresholds have an exactly zero gradient; TiLISTA's first residual is zero up to rounding, because G Q = 1."""
    small = network(layers=3)
    small.loss(*batch_of())["discrepancy"].backward()
    gradients = {name: float(weight.grad.abs().max()) for name, weight in small.named_parameters()}
    learning = {name: value for name, value in gradients.items() if not any(name.startswith(one) or name.endswith(one) for one in frozen)}
    assert learning and all(value > 0 for value in learning.values()), learning
    still = {name: value for name, value in gradients.items() if name not in learning}
    for name, value in still.items():
        kin = max(other for key, other in learning.items() if key.endswith(name.rsplit(".", 1)[1])) if network is Tilista else 0.0
        assert value <= 1e-3 * kin, name


def test_every_parameter_of_fista_net_learns():
    network = fresh(FistaNet, stages=3)
    sum(network.loss(*batch_of(count=2)).values()).backward()
    assert all(weight.grad.abs().max() > 0 for weight in network.parameters())


@pytest.mark.parametrize("network, options", [*((one, {"layers": 2}) for one in DENSE), (FistaNet, {"stages": 2})])
def test_one_step_of_the_optimiser_lowers_the_loss(network, options):
    small, batch = fresh(network, **options), batch_of(count=2)
    optimiser = torch.optim.Adam(small.parameters(), lr=1e-4)
    before = sum(small.loss(*batch).values())
    before.backward()
    optimiser.step()
    with torch.no_grad():
        assert sum(small.loss(*batch).values()) < before.detach()


# What the layers compute


def test_hard_threshold_keeps_or_removes_and_its_threshold_cannot_learn():
    values, threshold = torch.tensor([-2.0, -1.0, 0.3, 1.5], requires_grad=True), torch.ones(4, requires_grad=True)
    kept = hard_threshold(values, threshold)
    assert kept.tolist() == [-2.0, 0.0, 0.0, 1.5]
    kept.sum().backward()
    assert values.grad.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert threshold.grad.tolist() == [0.0] * 4


def test_support_threshold_lets_the_largest_entries_pass_unshrunk():
    torch.manual_seed(0)
    values, threshold = torch.randn(3, 100), 0.2 * torch.rand(100)
    found = support_threshold(values, threshold, 7.0)
    for row, answer in zip(values.numpy(), found.numpy()):
        trusted = set(np.argsort(-np.abs(row))[:7])
        expected = [v if k in trusted and abs(v) > t else shrink(v, t) for k, (v, t) in enumerate(zip(row, threshold.numpy()))]
        np.testing.assert_allclose(answer, expected, rtol=1e-6)


def test_support_threshold_trusts_nothing_below_the_threshold():
    values = torch.tensor([[0.4, -0.3, 0.2]])
    assert not support_threshold(values, torch.tensor(0.5), 50.0).any()


def test_lista_starts_as_ista_with_the_linear_start_for_the_adjoint():
    steering, start = matrices()
    pixels = some_frames().flatten(1).double().numpy()
    threshold = 0.4 / (1.001 * np.linalg.norm(steering, 2) ** 2)
    estimate = pixels @ start.T
    for _ in range(3):
        estimate = shrink(estimate - (estimate @ steering.T - pixels) @ start.T, threshold)
    assert_equal_images(Lista(layers=3)(some_frames()), estimate)


def test_lista_with_istas_matrices_is_ista():
    steering, _ = matrices()
    network = Lista(start=False, layers=5)
    length, sparsity = 1 / np.linalg.norm(steering, 2) ** 2, 20.0
    with torch.no_grad():
        for layer in network.fcs:
            layer.B.copy_(torch.from_numpy(length * steering.T))
            layer.W.copy_(torch.from_numpy(np.eye(steering.shape[1]) - length * steering.T @ steering))
            layer.theta.fill_(length * sparsity)
    frames = some_frames()
    expected = ista(frames.numpy(), PLANE, SubpixelGrid(ratio=3), sparsity=sparsity, initial="zero", max_iterations=5, tolerance=0).image
    assert_equal_images(network(frames), expected.reshape(4, -1))


def test_a_negative_threshold_of_lista_counts_as_zero():
    network = Lista(layers=1)
    with torch.no_grad():
        network.fcs[0].theta.fill_(0.0)
        zero = network(some_frames())
        network.fcs[0].theta.fill_(-5.0)
        assert torch.equal(network(some_frames()), zero)


def test_liht_starts_with_unit_matrices_and_keeps_what_exceeds_the_threshold():
    _, start = matrices()
    inward = some_frames().flatten(1).double().numpy() @ start.T
    estimate = inward
    for _ in range(2):
        estimate = estimate + inward
        estimate = np.where(np.abs(estimate) > np.sqrt(0.4), estimate, 0)
    found = Liht(layers=2)(some_frames()).detach().numpy().reshape(estimate.shape)
    edge = np.abs(np.abs(3 * inward) - np.sqrt(0.4)) < 1e-3  # rounding decides which side of the jump these fall on
    assert edge.mean() < 0.01
    np.testing.assert_allclose(found[~edge], estimate[~edge], rtol=0, atol=1e-5 * np.abs(estimate).max())


def test_lamp_is_message_passing_with_onsagers_term():
    steering, _ = matrices()
    pixels = some_frames().flatten(1).double().numpy()
    inward = steering.T / np.linalg.norm(steering, 2) ** 2
    found = Lamp(layers=4)(some_frames())
    for frame, image in zip(pixels, found):
        estimate, residual = np.zeros(steering.shape[1]), np.zeros(PIXELS)
        for _ in range(4):
            active = np.mean(np.abs(estimate) > 0)
            residual = frame - steering @ estimate + steering.shape[1] / PIXELS * active * residual
            noise = np.sqrt(np.sum(residual**2) / PIXELS)
            estimate = shrink(estimate + inward @ residual, 0.4 * noise)
        assert active > 0, "the term must have been at work"
        assert_equal_images(image, estimate)


def test_lamp_as_released_starts_where_nothing_is_left_to_explain():
    """G Q = 1 makes the first residual zero, so nothing but rounding moves the estimate; started at zero, the first layer moves it."""
    with torch.no_grad():
        first, second = Lamp(layers=1, variant="released").trajectory(some_frames())
        assert first.abs().max() > 10
        assert (second - first).abs().max() < 1e-3
        first, second = Lamp(layers=1).trajectory(some_frames())
        assert not first.any() and second.abs().max() > 1


def test_tilista_steps_along_the_residual_and_trusts_more_entries_in_each_layer():
    steering, start = matrices()
    network = fresh(Tilista, layers=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in network.fcs:
            layer.W.mul_(1 + 0.1 * torch.rand(layer.W.shape))  # away from G W = 1, so that the residual counts
            layer.alpha.fill_(0.8)
            layer.theta.fill_(2.0)
    pixels = some_frames().flatten(1).double().numpy()
    estimate = pixels @ start.T
    for number, layer in enumerate(network.fcs):
        estimate = estimate + 0.8 * (pixels - estimate @ steering.T) @ layer.W.detach().double().numpy().T
        size = np.abs(estimate)
        largest = np.quantile(size, 1 - 1.2 * (number + 1) / 100, axis=1, keepdims=True)
        estimate = np.where((size > 2.0) & (size > largest), estimate, shrink(estimate, 2.0))
    assert_equal_images(network(some_frames()), estimate)


# FISTA-Net


def softplus(value):
    return np.log1p(np.exp(value))


def test_fista_nets_schedules_are_those_of_its_formulas():
    network = FistaNet(start=False)
    for k in range(7):
        assert network.step_length(k).item() == pytest.approx(softplus(-0.2 * k + 0.1))
        assert network.threshold(k).item() == pytest.approx(softplus(-0.5 * k - 2))
        assert network.momentum(k).item() == pytest.approx((softplus(0.5 * k) - softplus(0)) / softplus(0.5 * k), abs=1e-6)
    assert network.momentum(0).item() == 0


def test_fista_nets_stages_take_gradient_proximal_and_momentum_steps():
    steering, start = matrices()
    network, frames = fresh(FistaNet, stages=4), some_frames(2)
    steering, pixels = torch.from_numpy(steering), frames.flatten(1).double()
    with torch.no_grad():
        found = network.trajectory(frames)
        network.block.double()
        estimate = point = pixels @ torch.from_numpy(start).T
        assert_equal_images(found[0], estimate.numpy())
        for k in range(4):
            step = point - softplus(-0.2 * k + 0.1) * (point @ steering.T - pixels) @ steering
            fresh_estimate = network.block(step.view(2, 1, 33, 33), softplus(-0.5 * k - 2), False)[0].flatten(1)
            momentum = (softplus(0.5 * k) - softplus(0.0)) / softplus(0.5 * k)
            point, estimate = fresh_estimate + momentum * (fresh_estimate - estimate), fresh_estimate
            assert_equal_images(found[k + 1], estimate.numpy(), tolerance=1e-4)


def test_fista_nets_estimates_are_never_negative():
    with torch.no_grad():
        assert all((image >= 0).all() for image in fresh(FistaNet, stages=3).trajectory(some_frames())[1:])


def test_fista_nets_loss_has_four_terms():
    network, (frames, truth) = fresh(FistaNet, stages=2), batch_of()
    with torch.no_grad():
        terms = network.loss(frames, truth)
        stages = list(network.iterate(frames, symmetry=True))[1:]
        error = stages[-1][0][:, 0] - truth
        expected = {
            "discrepancy": error.square().mean(),
            "absolute": 0.1 * error.abs().mean(),
            "symmetry": 0.01 * sum(residual.square().mean() for _, _, residual in stages),
            "sparsity": 0.001 * sum(sparse.abs().mean() for _, sparse, _ in stages),
        }
        assert list(terms) == list(expected)
        for name, value in terms.items():
            torch.testing.assert_close(value, expected[name])


def test_fista_nets_symmetry_residual_is_how_far_the_inverse_misses_the_lifted_step():
    block = fresh(FistaNet, stages=1, start=False).block
    step = torch.rand(2, 1, 9, 9)
    with torch.no_grad():
        lifted = block.conv_D(step)
        _, _, residual = block(step, 0.1, True)
        features = block.conv2_forward(torch.relu(block.conv1_forward(lifted)))
        torch.testing.assert_close(residual, block.conv2_backward(torch.relu(block.conv1_backward(features))) - lifted)
        assert block(step, 0.1, False)[2] is None


def test_fista_net_stores_its_shared_block_once():
    names = list(FistaNet(start=False).state_dict())
    assert len([name for name in names if name.endswith("conv_D.weight")]) == 1
    assert not [name for name in names if name.startswith("fcs")]


def test_fista_nets_windows_use_their_block_of_the_physics():
    network = fresh(FistaNet, stages=2)
    windows, truth, origin = TrainingSet(csist100k("test", 6), 3, seed=0).batch(torch.arange(6), "windows")
    with torch.no_grad():
        assert network(windows, origin).shape == (6, 15, 15)
        assert torch.isfinite(sum(network.loss(windows, truth, origin).values()))
        frames = some_frames(2)
        assert torch.equal(network(frames, torch.zeros(2, 2, dtype=torch.long)), network(frames))
