"""The continuous network: its windows, physics, proper scores, symmetry, training, files and answers."""
from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csist import FocalPlane, Targets, csist100k, cso_map, random_targets
from csist.imaging import pixel_profile, pixel_profile_derivative
from csist.networks import continuous as module
from csist.networks.continuous import (
    CAPACITY,
    CELLS,
    CENTRES,
    COUNTS,
    INTENSITY,
    LENGTH,
    NOWHERE,
    SLOTS,
    SPREAD,
    ContinuousNetwork,
    ContinuousRecipe,
    ContinuousTrainer,
    Reading,
    Stream,
    Truth,
    align,
    answer,
    candidates,
    continuous_loss,
    cut_windows,
    gauss_newton,
    hit_share,
    pattern_of,
    profile,
    read_continuous,
    reading_loss,
    turn_points,
    turn_windows,
    unmix_continuous,
    write_continuous,
)
from csist.networks.registry import weights_path

REPRODUCE = Path(__file__).resolve().parents[1] / "reproduce"
SMALL = {"width": 24, "depth": 1, "stages": 2}
TINY = ContinuousRecipe(
    epoch=2048, width=32, depth=1, stages=1, samples=4096, cooldown=2048, bend_at=0, warmup=256, batch=64, pool=200, val_size=100, test_size=100
)
ALL_TURNS = torch.tensor(list(itertools.product((False, True), repeat=3)))


@pytest.fixture(scope="module")
def stream():
    return Stream(seed=3, pool=200, size=256)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    network = ContinuousNetwork(**SMALL).eval()
    with torch.no_grad():  # heads begin at zero; give every output something to say
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def truth_of(targets: Targets, cell) -> Truth:
    mask = targets.mask
    xy, intensity = np.zeros((len(targets), CAPACITY, 2)), np.zeros((len(targets), CAPACITY))
    xy[:, : targets.capacity] = np.where(mask[..., None], targets.xy - np.asarray(cell)[:, None], 0.0)
    intensity[:, : targets.capacity] = np.where(mask, targets.intensity, 0.0)
    return Truth(torch.tensor(xy).float(), torch.tensor(intensity).float(), torch.tensor(targets.count))


# ---- windows and symmetry ---------------------------------------------------------------------------------------------


def test_windows_hold_the_light_and_say_what_lies_beyond_the_frame():
    scene = random_targets(300, np.random.default_rng(0))
    frames = FocalPlane().render(scene)
    windows, cell = cut_windows(frames)
    assert (windows.level.numpy().sum((1, 2)) == frames.sum((1, 2))).all()
    assert not windows.level[~windows.valid].any()
    for axis in (0, 1):
        rows = cell[:, axis, None] + np.arange(-2, 3)
        assert (windows.valid.any(2 - axis).numpy() == ((rows >= 0) & (rows <= 10))).all()
    several = scene.count > 1
    assert (cell[several] == scene.cell[several]).all()


def test_turned_windows_and_points_belong_together():
    rng = np.random.default_rng(1)
    targets = random_targets(8, rng, cells=np.full((8, 2), 5), count=(3, 3))
    plane = FocalPlane(shape=(5, 5), bits=None)
    moved = Targets(targets.xy - 3, targets.intensity, targets.count)
    level = torch.tensor(plane.render(moved)).float()
    windows = module.Windows(level, torch.ones_like(level, dtype=torch.bool))
    points = torch.tensor(moved.xy - 2).float()
    there = turn_points(points, ALL_TURNS)
    seen = turn_windows(windows, ALL_TURNS).level
    again = plane.render(Targets(there.numpy().astype(float) + 2, targets.intensity, targets.count))
    assert np.abs(seen.numpy() - again).max() < 1e-3
    assert torch.allclose(turn_points(there, ALL_TURNS, back=True), points)


def test_a_mirrored_frame_has_the_mirrored_answer(net):
    scene = random_targets(40, np.random.default_rng(2))
    frames = FocalPlane().render(scene)
    straight = unmix_continuous(frames, network=net)
    for mirrored, back in (
        (frames[:, ::-1], lambda xy: np.stack([10 - xy[..., 0], xy[..., 1]], -1)),
        (frames[:, :, ::-1], lambda xy: np.stack([xy[..., 0], 10 - xy[..., 1]], -1)),
        (frames.transpose(0, 2, 1), lambda xy: xy[..., ::-1]),
    ):
        answer = unmix_continuous(mirrored.copy(), network=net)
        lean = module.leaning(cut_windows(frames)[0].level)
        level = cut_windows(frames)[0].level
        arm = torch.arange(5.0) - 2
        row, column = level.sum(2) @ arm, level.sum(1) @ arm
        clear = ((row != 0) & (column != 0) & (row.abs() != column.abs())).numpy()  # a window that is its own mirror image has no side to lean to
        assert lean.shape == (40, 3) and clear.sum() > 20
        assert (answer.count == straight.count)[clear].all()
        assert np.nanmax(np.abs(back(answer.xy) - straight.xy)[clear]) < 1e-4
        assert np.nanmax(np.abs(answer.score - straight.score)[clear]) < 1e-4


# ---- physics ----------------------------------------------------------------------------------------------------------


def test_profiles_are_those_of_the_package():
    position = np.linspace(-0.7, 0.7, 29)
    value, slope = profile(torch.tensor(position)[None])
    assert np.abs(value[0].numpy() - pixel_profile(position + 2, 5, 0.5)).max() < 1e-12
    assert np.abs(slope[0].numpy() - pixel_profile_derivative(position + 2, 5, 0.5)).max() < 1e-12


def test_gauss_newton_finds_the_truth_of_two_targets():
    truth = torch.tensor([[[0.3, -0.2, 240.0], [-0.25, 0.1, 230.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    model = lambda theta: gauss_newton(theta, mask, module.Windows(torch.zeros(1, 5, 5, dtype=torch.float64), torch.ones(1, 5, 5, dtype=torch.bool))).model
    windows = module.Windows(model(truth).reshape(1, 5, 5), torch.ones(1, 5, 5, dtype=torch.bool))
    expected = FocalPlane(shape=(5, 5), bits=None).render(Targets(truth[:, :2, :2].numpy() + 2, truth[:, :2, 2].numpy(), [2]))
    assert np.abs(windows.level.numpy() - expected).max() < 1e-9
    theta = truth + torch.tensor([[[0.03, -0.02, 4.0], [0.02, 0.03, -4.0], [0.0, 0.0, 0.0]]])
    units = torch.tensor([LENGTH, LENGTH, SPREAD], dtype=torch.float64)
    for _ in range(12):
        physics = gauss_newton(theta, mask, windows)
        theta = theta + units * physics.step
    assert (theta - truth)[:, :2, :2].abs().max() < 6e-3  # the intensities' prior pulls a little; it began 0.04 px away
    assert physics.residual.abs().max() < 0.5
    assert not physics.step[:, 2].any()  # an empty slot does not move


def test_clipped_and_missing_pixels_do_not_pull():
    scene = Targets([[[5.2, 5.2], [4.7, 4.7], [5.2, 4.7], [4.7, 5.2]]], [[240.0] * 4], [4])
    windows, _ = cut_windows(FocalPlane().render(scene))
    assert (windows.level == 255).any()
    theta = torch.zeros(1, 4, 3)
    theta[..., :2] = torch.tensor(scene.xy).float() - 5
    theta[..., 2] = 240.0
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert gauss_newton(theta, mask, windows).residual.abs().max() <= 0.51
    valid = windows.valid.clone()
    valid[:, 0] = False
    ruined = module.Windows(torch.where(valid, windows.level, 77.0), valid)
    assert gauss_newton(theta, mask, ruined).residual.abs().max() <= 0.51


# ---- scores -----------------------------------------------------------------------------------------------------------


def test_patterns_are_sets_of_cells():
    assert len(SLOTS) == 381 and COUNTS.tolist() == [(row < NOWHERE).sum().item() for row in SLOTS]
    diagonal = np.sqrt(2) / CELLS
    assert diagonal < 0.52 * 0.95  # so no two targets share a cell
    scene = random_targets(500, np.random.default_rng(4), cells=np.full((500, 2), 5))
    truth = truth_of(scene, np.full((500, 2), 5))
    slots = SLOTS[pattern_of(truth)]
    assert ((slots < NOWHERE).sum(1) == truth.count).all()
    for k in range(CAPACITY):  # every target lies in one of its pattern's cells
        away = (truth.xy[:, k, None] - CENTRES[slots]).abs().amax(-1)
        away = torch.where(slots < NOWHERE, away, torch.inf).amin(1)
        assert (away[truth.mask[:, k]] <= 0.5 / CELLS + 1e-5).all()


def test_alignment_agrees_with_the_hungarian_method():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(5)
    truth = Truth(torch.tensor(rng.uniform(-0.5, 0.5, (60, 5, 2))).float(), torch.zeros(60, 5), torch.tensor(rng.integers(1, 6, 60)))
    xy = torch.tensor(rng.uniform(-0.5, 0.5, (60, 5, 2))).float()
    order = align(xy, truth)
    for f, k in enumerate(truth.count.tolist()):
        cost = (xy[f, :k, None] - truth.xy[f, None, :k]).norm(dim=-1).clamp(max=1.0).numpy()
        row, column = linear_sum_assignment(cost)
        assert np.isclose(cost[np.arange(k), order[f, :k].numpy()].sum(), cost[row, column].sum(), atol=1e-5)


def test_the_loss_does_not_depend_on_the_targets_order(net, stream):
    windows, truth = stream.batch(0, 128)
    before = continuous_loss(net, windows, truth)
    shuffled = Truth(truth.xy.clone(), truth.intensity.clone(), truth.count)
    generator = torch.Generator().manual_seed(0)
    for f, k in enumerate(truth.count.tolist()):
        order = torch.randperm(k, generator=generator)
        shuffled.xy[f, :k], shuffled.intensity[f, :k] = truth.xy[f, order], truth.intensity[f, order]
    after = continuous_loss(net, windows, shuffled)
    assert set(before) == set(after)
    for name in before:
        assert torch.isclose(before[name], after[name], rtol=1e-4, atol=1e-4), name


def test_the_position_score_is_proper():
    """Among all scales, a cone density pays least at half the mean distance; among all probabilities the hit score pays least at the hit rate."""
    distance = torch.tensor([0.02, 0.05, 0.11, 0.30])
    truth = Truth(torch.zeros(4, 5, 2), torch.full((4, 5), INTENSITY), torch.ones(4, dtype=torch.long))
    theta = torch.zeros(4, 5, 3)
    theta[:, 0, 0], theta[..., 2] = distance, INTENSITY
    scales, claims = torch.linspace(0.02, 0.2, 181), torch.linspace(0.05, 0.95, 181)
    pays = lambda scale, claim: reading_loss(
        Reading(theta, torch.full((4, 5), float(scale.log())), torch.zeros(4, 5, 2), torch.full((4, 5), float(torch.logit(claim)))), truth
    )
    best_scale = scales[torch.stack([pays(scale, claims[0])["position"] for scale in scales]).argmin()]
    best_claim = claims[torch.stack([pays(scales[0], claim)["hit"] for claim in claims]).argmin()]
    assert abs(float(best_scale) - float(distance.mean()) / 2) < 2e-3
    assert abs(float(best_claim) - float(hit_share(distance).mean())) < 5e-3


@pytest.mark.parametrize("options", [{}, {"physics": False}, {"stages": 0}, {"symmetric": False}])
def test_gradients_are_finite_and_reach_every_weight(options, stream):
    torch.manual_seed(1)
    network = ContinuousNetwork(**{**SMALL, **options})
    windows, truth = stream.batch(0, 256)
    for _ in range(4):  # layers after which zeros wait get a gradient once those have moved
        network.zero_grad()
        sum(continuous_loss(network, windows, truth).values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        with torch.no_grad():
            for p in network.parameters():
                p -= 1e-2 * p.grad
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_presence_and_count_are_margins_of_one_posterior(net):
    windows, _ = cut_windows(csist100k("val", 50).frames)
    xy, intensity, sigma, hit, counts, presence = module.answer(net, windows)
    assert xy.shape == (50, 5, 2) and intensity.shape == hit.shape == (50, 5) and sigma.shape == (50, 5, 2)
    assert counts.shape == (50, 5) and presence.shape == (50, CELLS, CELLS)
    assert torch.allclose(counts.sum(1), torch.ones(50), atol=1e-5)
    assert torch.allclose(presence.sum((1, 2)), counts @ torch.arange(1.0, 6.0), atol=1e-4)
    assert (sigma > 0).all() and ((hit >= 0) & (hit <= 1)).all()


# ---- the stream -------------------------------------------------------------------------------------------------------


def test_the_stream_is_a_pure_function_of_its_seed_and_keeps_the_rules(stream):
    windows, truth = stream.batch(5, 64)
    same, other = Stream(seed=3, pool=200, size=256), Stream(seed=4, pool=200, size=256)
    assert torch.equal(windows.level, same.batch(5, 64)[0].level) and torch.equal(truth.xy, same.batch(5, 64)[1].xy)
    assert not torch.equal(windows.level, other.batch(5, 64)[0].level)
    assert not torch.equal(windows.level, stream.batch(6, 64)[0].level)
    for xy, k in zip(truth.xy, truth.count.tolist()):
        distance = torch.cdist(xy[:k].double(), xy[:k].double()) + 9.0 * torch.eye(k)
        assert distance.min() >= 0.494 - 1e-6
    light = truth.intensity[truth.mask]
    assert light.min() >= 220 and light.max() <= 250
    # the windows are what the focal plane reports of the truth, border pixels included
    plane = FocalPlane(shape=(5, 5))
    mask = truth.mask.numpy()
    again = plane.render(Targets(np.where(mask[..., None], truth.xy.double().numpy() + 2, np.nan), truth.intensity.double().numpy(), truth.count.numpy()))
    difference = np.abs(again.astype(float) - windows.level.numpy())[windows.valid.numpy()]
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # float32 positions may round the other way


def test_the_stream_teaches_other_sensors_and_intensities(stream):
    windows, truth = stream.batch(0, 256)
    wide = Stream(seed=3, pool=200, size=256, half_range=45.0).batch(0, 256)[1]
    assert torch.equal(wide.xy, truth.xy)
    light = wide.intensity[wide.mask]
    assert 190 <= light.min() < 200 and 270 < light.max() <= 280
    noisy, same = Stream(seed=3, pool=200, size=256, read_noise=2.0).batch(0, 256)
    alike = (same.xy == truth.xy).all((1, 2))  # noise moves a few clusters' light into the next pixel, and the window with it
    assert alike.float().mean() > 0.9 and torch.equal(same.intensity, truth.intensity)
    inside = alike[:, None, None] & windows.valid & (windows.level > 20) & (windows.level < 230)  # away from both ends of the scale
    assert (noisy.level - windows.level)[inside].std() == pytest.approx(math.hypot(2.0, math.sqrt(1 / 12)), rel=0.1)  # rounded anew


def test_a_batch_must_divide_the_block(stream):
    with pytest.raises(ValueError, match="divide 256"):
        stream.batch(0, 100)


# ---- training ---------------------------------------------------------------------------------------------------------


def run_of(tmp_path, recipe=TINY, name="run"):
    return ContinuousTrainer(recipe, tmp_path / f"{name}.safetensors", csist100k("val", recipe.val_size), progress=False)


def test_training_improves_and_resumes_bit_for_bit(tmp_path):
    whole = run_of(tmp_path, name="whole")
    before = sum(float(v) for v in continuous_loss(whole.network, *whole.stream.batch(0, 64)).values())
    assert whole.fit()
    after = sum(float(v) for v in continuous_loss(whole.network, *whole.stream.batch(0, 64)).values())
    assert after < before - 1.0
    assert [entry["samples"] for entry in whole.history] == [2048, 4096]

    broken = run_of(tmp_path, name="broken")
    assert not broken.resume()
    assert not broken.fit(deadline=0.0)  # one step, then a checkpoint
    assert broken.step == 1
    again = run_of(tmp_path, name="broken")
    assert again.resume() and again.step == 1
    assert again.fit()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert [entry["val_cso_map"] for entry in whole.history] == [entry["val_cso_map"] for entry in again.history]


def test_a_run_may_end_elsewhere_until_its_rate_falls(tmp_path):
    trainer = run_of(tmp_path)
    trainer.fit(deadline=0.0)
    assert run_of(tmp_path, replace(TINY, samples=8192)).resume()
    with pytest.raises(ValueError, match="another recipe"):
        run_of(tmp_path, replace(TINY, seed=5)).resume()
    trainer.fit()
    with pytest.raises(ValueError, match="rates have been others"):
        run_of(tmp_path, replace(TINY, samples=8192)).resume()
    (tmp_path / "run.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        run_of(tmp_path).resume()


def test_the_rate_rises_stays_and_falls():
    recipe = ContinuousRecipe(samples=100_000, cooldown=40_000, bend_at=0, warmup=10_000, batch=100, rate=1e-3)
    rates = recipe.learning_rate(np.arange(1000))
    assert rates[0] == pytest.approx(5e-6) and rates[300] == pytest.approx(1e-3) and rates[599] == pytest.approx(1e-3)
    assert rates[799] == pytest.approx(5e-4, rel=0.01) and 0 < rates[-1] < 2e-6
    bent = replace(recipe, bend_at=80_000, bend_to=0.8).learning_rate(np.arange(1000))
    assert (bent[:600] == rates[:600]).all() and bent[799] == pytest.approx(8e-4, rel=0.01) and 0 < bent[-1] < 5e-6


def test_candidates_begin_with_the_answer():
    data, network = csist100k("val", size=40), ContinuousNetwork(width=16, depth=1, stages=1).eval()
    windows, _ = cut_windows(data.frames)
    xy, intensity, _, _, counts, _ = answer(network, windows)
    places, light, count = candidates(network, windows, 4)
    assert tuple(places.shape) == (40, 4, 5, 2) and torch.equal(count[:, 0], counts.argmax(1) + 1)
    mask = torch.arange(5) < count[:, :1]
    assert torch.equal(places[:, 0][mask], xy[mask]) and torch.equal(light[:, 0][mask], intensity[mask])
    assert ((count[:, 1:] >= 0) & (count[:, 1:] <= 5)).all() and (light >= 220).all() and (light <= 250).all()


@pytest.mark.skipif(weights_path("continuous-seed0") is None, reason="the network is not trained")
def test_polishing_samples_about_the_networks_answers():
    pytest.importorskip("numba")
    data = csist100k("val", size=60)
    frames = np.concatenate([data.frames, np.zeros_like(data.frames[:1])])
    plain, polished = unmix_continuous(frames), unmix_continuous(frames, polish=True)
    assert polished.count[-1] == 0 and (polished.count[:60] == data.targets.count).mean() > 0.95
    assert cso_map(polished[:60], data.targets).map > cso_map(plain[:60], data.targets).map - 0.01
    sharp = lambda found: np.nanmedian(found.sigma[:60])
    assert sharp(polished) < sharp(plain)  # the network's deviations never fall below TIGHTEST


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("train_continuous", REPRODUCE / "train_continuous.py")
    script, path = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(script)
    yield script
    sys.path[:] = path


def test_the_command_trains_scores_and_keeps_what_is_finished(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "speed", lambda network, frames, polish: {"threads_1": {"frames_per_cpu_second": 1.0}})
    whole = command.score
    monkeypatch.setattr(command, "score", lambda network, test, polish: {} if polish else whole(network, test, polish))
    sizes = "--width 16 --depth 0 --stages 1 --samples 512 --cooldown 256 --bend-at 0 --batch 64 --pool 100 --val-size 50 --test-size 60 --epoch 256"
    call = [*sizes.split(), "--name", "trial", "--output", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert command.main(call) == 0
        result = json.loads((tmp_path / "results" / "trial.json").read_text())
        assert result["test"]["frames"] == 60 and result["samples"] == 512 and len(result["history"]) == 2
        assert len(result["calibration"]["claimed"]) == 10 and result["recipe"]["width"] == 16
        network, header = read_continuous(tmp_path / "weights" / "trial.safetensors")
        assert header["run"] == "trial"
        data = csist100k("test", 60)
        assert cso_map(unmix_continuous(data.frames, network=network), data.targets).map == pytest.approx(result["test"]["cso_map"])
        assert not (tmp_path / "checkpoints" / "trial.safetensors").exists()
        capsys.readouterr()
        assert command.main(call) == 0 and "is finished" in capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)


def test_the_ablation_changes_one_thing_at_a_time(command, tmp_path):
    sizes = "--width 16 --depth 0 --samples 256 --cooldown 128 --batch 64 --pool 100 --val-size 30 --epoch 256"
    call = [*sizes.split(), "--ablate", "--output", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert command.main(call) == 0
    finally:
        torch.set_num_threads(threads)
    variants = json.loads((tmp_path / "results" / "ablation-continuous.json").read_text())["variants"]
    assert list(variants) == list(command.ABLATIONS) and all(0 <= entry["noisy_cso_map"] <= 1 for entry in variants.values())
    assert variants["training-noise"]["changes"] == {"read_noise": 2.0} and variants["training-noise"]["samples"] == 256
    with pytest.raises(ValueError, match="another ablation"):
        command.main([*call, "--seed", "1"])


# ---- files and answers ------------------------------------------------------------------------------------------------


def test_weights_survive_a_file(net, tmp_path):
    write_continuous(tmp_path / "a.safetensors", net, {"run": "a"})
    again, header = read_continuous(tmp_path / "a.safetensors")
    assert header == {"kind": "continuous", "options": net.options, "run": "a"} and again.options == net.options
    frames = csist100k("val", 20).frames
    one, two = unmix_continuous(frames, network=net), unmix_continuous(frames, network=again)
    assert (one.count == two.count).mean() > 0.9
    from csist.networks.registry import read_weights

    with pytest.raises(ValueError, match="continuous"):
        read_weights(tmp_path / "a.safetensors")


def test_answers_are_independent_of_their_company(net):
    frames = csist100k("val", 30).frames
    whole, alone = unmix_continuous(frames, network=net), unmix_continuous(frames[7], network=net)
    assert whole.count[7] == alone.count[0]
    k = alone.count[0]
    # float32 adds in another order for another batch, and a network that has learned nothing takes steps that magnify it
    assert np.allclose(whole.xy[7, :k], alone.xy[0, :k], atol=3e-3)
    assert np.allclose(whole.xy, unmix_continuous(frames, network=net, batch=7).xy, atol=3e-3, equal_nan=True)
    light = np.where(whole.mask, whole.intensity, 0.0)
    assert (np.diff(light, axis=1) <= 0).all()  # brightest first


def test_dark_frames_and_other_shapes(net):
    answer = unmix_continuous(np.zeros((2, 11, 11), dtype=np.uint8), network=net)
    assert answer.count.tolist() == [0, 0]
    assert len(unmix_continuous(np.zeros((0, 11, 11)), network=net)) == 0
    plane = FocalPlane(shape=(7, 20))
    frame = plane.render(Targets([[[3.0, 17.1]]], [[240.0]], [1]))
    answer = unmix_continuous(frame, plane, network=net)
    assert (np.abs(answer.xy[0, : answer.count[0]] - [3, 17]) < 1.5).all()


def test_bad_input_is_named(net):
    frames = np.zeros((1, 11, 11))
    with pytest.raises(ValueError, match="trained for sigma = 0.5"):
        unmix_continuous(frames, FocalPlane(sigma=0.6), network=net)
    with pytest.raises(ValueError, match="shape"):
        unmix_continuous(np.zeros((1, 9, 9)), network=net)
    with pytest.raises(ValueError, match="0 to 255"):
        unmix_continuous(frames + 300, network=net)
    with pytest.raises(ValueError, match="finite"):
        unmix_continuous(frames * np.nan, network=net)
    with pytest.raises(ValueError, match="batch"):
        unmix_continuous(frames, network=net, batch=0)
    with pytest.raises(FileNotFoundError, match="train_continuous.py"):
        unmix_continuous(frames, network="continuous-seed99")
    with pytest.raises(ValueError, match="width"):
        ContinuousNetwork(width=0)
    with pytest.raises(ValueError, match="stages"):
        ContinuousNetwork(stages=-1)


committed = pytest.mark.skipif(weights_path(module.DEFAULT_RUN) is None, reason="not trained yet")


@committed
def test_the_committed_network_scores_what_its_result_claims():
    result = json.loads((REPRODUCE / "results" / f"{module.DEFAULT_RUN}.json").read_text())
    data = csist100k("test", 1000)
    score = cso_map(unmix_continuous(data.frames), data.targets)
    assert abs(score.map - result["test"]["cso_map"]) < 4 * result["test"]["standard_error"] * np.sqrt(10)
    assert score.map > 0.88


@committed
def test_the_committed_scores_are_hit_probabilities():
    data = csist100k("val", 1000)
    from csist.metrics import match_detections

    matches = match_detections(unmix_continuous(data.frames), data.targets)
    sure, real = matches.score > 0.9, matches.is_hit.mean(0)
    assert abs(matches.score.mean() - real.mean()) < 0.03
    assert real[sure].mean() > 0.93 > 0.85 > real[~sure].mean()


def test_a_damaged_pool_of_clusters_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path))
    path = tmp_path / "five-40.npy"
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="five-40.npy is damaged"):
        pool = module.five_pool(40)
    np.save(path, np.zeros((7, 5, 2), dtype=np.float32))
    with pytest.warns(UserWarning, match=r"float32 numbers of shape \(7, 5, 2\)"):
        assert np.array_equal(module.five_pool(40), pool)
    np.save(path, pool[::-1])
    assert np.array_equal(module.five_pool(40), pool[::-1])
    monkeypatch.setattr(module, "POOL_BLOCK", 40)
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path / "no folder"))
    with pytest.warns(UserWarning, match="cannot keep the clusters of five"):
        assert module.five_pool(40).shape == (40, 5, 2)
