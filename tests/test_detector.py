"""The heat-map detector behind an unmixing network: maps and back, its loss, its training, its files, and the command that trains it."""
from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
from csist import csist100k, load_network, reporting
from csist.evaluation import light_windows, predict
from csist.imaging import SubpixelGrid
from csist.metrics import cso_map
from csist.networks.detector import (
    LONGEST,
    REACH,
    SCALE,
    SEPARATION,
    Detector,
    Maps,
    cells,
    decode,
    detector_loss,
    encode,
    hit_rate,
    read_detector,
    write_detector,
)
from csist.networks.registry import read_weights
from csist.pipeline import (
    DetectorRecipe,
    DetectorTrainer,
    Pipeline,
    WindowSet,
    cut_windows,
    detector_name,
    find,
    train_detector,
    turn_places,
    unmixed_windows,
)
from csist.reporting.pipelines import pipeline_entries, pipeline_rows, verify_pipeline
from csist.training import turn

SCRIPT = Path(__file__).resolve().parent.parent / "reproduce" / "train_detectors.py"
SIZE = 15
TINY = DetectorRecipe(features=8, blocks=1, samples=96, batch=16, epoch=48, train_size=48, val_size=24, test_size=24)


def training_script():
    """The command as a module; it takes its own folder off Python's path, which must not last."""
    specification = importlib.util.spec_from_file_location("train_detectors", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    path = sys.path.copy()
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def scene(*positions, intensity=240.0):
    """One image's targets in sub-pixels, padded to five."""
    places = torch.full((1, 5, 2), torch.inf)
    places[0, : len(positions)] = torch.tensor(positions).reshape(-1, 2)
    return places, torch.where(torch.isfinite(places[..., 0]), intensity, 0.0)


def perfect_maps(places, intensity, size=SIZE, certainty=30.0):
    """What a detector that knows the truth says: sure of its cells, most confident where the target is nearest."""
    truth = encode(places, intensity, size)
    distance = truth.offset.norm(dim=1)
    return Maps(certainty * (2 * truth.presence - 1), torch.where(truth.presence > 0, 5 - 3 * distance, -certainty), truth.offset, truth.intensity)


def found_places(detector, maps):
    found = decode(detector, maps)
    return found.places[0][found.kept[0]]


# Maps and back


def test_encode_then_decode_gives_the_targets_back():
    data = csist100k("test", 200)
    origin = light_windows(data.frames)[1]
    images = WindowSet(data, np.zeros((len(origin), SIZE, SIZE), np.float32), 3, 0)
    found = decode(Detector(features=1, blocks=1), perfect_maps(images.places, images.intensity))
    assert np.array_equal(found.kept.sum(1), data.targets.count)
    for i, kept in enumerate(found.kept):
        xy = SubpixelGrid(ratio=3).to_position(found.places[i, kept] + 3 * origin[i])
        true = data.targets.xy[i, : data.targets.count[i]]
        nearest = np.abs(xy[:, None] - true).sum(-1).argmin(1)
        assert sorted(nearest) == list(range(len(true)))
        np.testing.assert_allclose(xy, true[nearest], atol=1e-5)
        np.testing.assert_allclose(found.intensity[i, kept], data.targets.intensity[i, nearest], atol=1e-3)


@pytest.mark.parametrize(
    "first, second",
    [((7.2, 7.3), (8.3, 8.3)), ((6.9, 8.2), (8.2, 7.4)), ((6.8, 7.0), (8.3, 7.0)), ((7.0, 8.4), (7.0, 6.9))],
    ids=["diagonal", "other diagonal", "rows", "columns"],
)
def test_targets_in_neighbouring_cells_are_both_found(first, second):
    assert np.hypot(*np.subtract(first, second)) >= 3 * 0.494  # as near as the data allow, or little more
    assert np.abs(np.rint(first) - np.rint(second)).max() == 1  # neighbours, of which a suppression by cells would lose one
    found = found_places(Detector(features=1, blocks=1), perfect_maps(*scene(first, second)))
    np.testing.assert_allclose(sorted(found.tolist()), sorted([first, second]), atol=1e-5)


@pytest.mark.parametrize("place", [(6.5, 7.0), (6.5, 7.5), (7.0, 6.999), (0.0, 14.0), (-0.4, 14.4)])
def test_a_target_on_a_border_of_cells_is_found_once(place):
    found = found_places(Detector(features=1, blocks=1), perfect_maps(*scene(place)))
    np.testing.assert_allclose(found, [place], atol=1e-5)


def test_nailed_to_the_grid_the_answer_is_a_sub_pixels_centre():
    places, intensity = scene((6.9, 7.2), (8.4, 8.3))
    found = found_places(Detector(features=1, blocks=1, offsets=False), perfect_maps(places, intensity))
    assert sorted(map(tuple, found.tolist())) == [(7.0, 7.0), (8.0, 8.0)]


def test_an_empty_image_holds_nothing_and_the_score_can_be_presence():
    places, intensity = scene()
    assert not decode(Detector(features=1, blocks=1), perfect_maps(places, intensity)).kept.any()
    maps = perfect_maps(*scene((7.0, 7.0)))
    found = decode(Detector(features=1, blocks=1), maps, "presence")
    assert found.score[found.kept] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="ranking must be one of confidence, presence; got 'brightness'"):
        decode(Detector(features=1, blocks=1), maps, "brightness")


def test_every_cell_in_reach_answers_for_its_nearest_target():
    places, intensity = scene((4.2, 7.0), (6.2, 7.0))
    answers = encode(places, intensity, SIZE)
    middle = cells(SIZE)
    distance = (middle[None] - places[0, :2, :, None, None]).norm(dim=1)
    assert torch.equal(answers.presence[0] > 0, distance.min(0).values <= REACH)
    np.testing.assert_allclose(answers.offset[0, :, 5, 7], [-0.8, 0.0], atol=1e-5)  # 0.8 up to the first, 1.2 down to the second
    assert answers.presence[0, round(4.2), 7] == 1  # the cell that holds a target always answers
    assert float(answers.intensity[0, 4, 7]) == pytest.approx(240.0 / SCALE)


def test_the_hit_rate_is_the_share_of_the_metrics_thresholds():
    pixels = torch.tensor([0.0, 0.04, 0.06, 0.12, 0.17, 0.22, 0.3])
    assert hit_rate(3 * pixels, 3).tolist() == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_reach_and_separation_fit_the_data():
    assert 2**-0.5 < REACH < LONGEST and 1 / 3 < SEPARATION < 0.494


# The loss


@pytest.mark.parametrize("offsets", [True, False])
def test_a_perfect_answer_has_no_gradient(offsets):
    places, intensity = scene((4.2, 7.1), (6.0, 6.4))
    maps = perfect_maps(places, intensity)
    detector = Detector(features=1, blocks=1, offsets=offsets)
    distance = (detector.positions(maps.offset)[:, None] - places[..., None, None]).norm(dim=2).min(1).values
    rate = hit_rate(distance, 3)
    maps = maps._replace(confidence=torch.logit(rate, 1e-9))
    maps = Maps(*(value.clone().requires_grad_() for value in maps))
    terms = detector_loss(detector, maps, places, intensity)
    sum(terms.values()).backward()
    for name, value in maps._asdict().items():
        assert float(value.grad.abs().max()) < 1e-6, name
    assert terms["offset"].item() == 0 and terms["intensity"].item() == 0 and terms["presence"].item() < 1e-9


def test_confidence_does_not_move_positions_and_offsets_count_in_answering_cells_only():
    places, intensity = scene((7.3, 7.1))
    blank = torch.zeros(1, SIZE, SIZE)
    maps = Maps(*(value.requires_grad_() for value in (blank.clone(), blank.clone(), torch.zeros(1, 2, SIZE, SIZE), blank + 1)))
    terms = detector_loss(Detector(features=1, blocks=1), maps, places, intensity)
    confidence = torch.autograd.grad(terms["confidence"], maps.offset, allow_unused=True, retain_graph=True)[0]
    assert confidence is None or not confidence.any()
    offset = torch.autograd.grad(terms["offset"], maps.offset)[0]
    assert torch.equal(offset.abs().sum(1) > 0, encode(places, intensity, SIZE).presence > 0)


def test_images_without_targets_give_a_finite_loss():
    detector = Detector(features=4, blocks=1)
    terms = detector_loss(detector, detector(torch.zeros(1, SIZE, SIZE)), *scene())
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())


# Training


@pytest.fixture(scope="module")
def images():
    """A few training windows of DISTA-Net with their frames."""
    data = csist100k("train", 32)
    return data, cut_windows(predict(load_network("dista-net"), data.frames, windows=True), light_windows(data.frames)[1], 3)


def test_turned_places_follow_turned_images():
    places, intensity = scene((3.0, 5.0), (9.0, 2.0))
    image = torch.zeros(1, SIZE, SIZE)
    image[0, 3, 5], image[0, 9, 2] = 1.0, 2.0
    for number in range(8):
        turns = torch.tensor([[bool(number & 1), bool(number & 2), bool(number & 4)]])
        turned, moved = turn(image, turns), turn_places(places, turns, SIZE)
        assert [float(turned[0, int(x), int(y)]) for x, y in moved[0, :2]] == [1.0, 2.0]
        assert torch.isinf(moved[0, 2:]).all()


def test_windows_and_targets_belong_together(images):
    """The light of the unmixed image lies where the targets are."""
    data, windows = images
    shown, places, intensity = WindowSet(data, windows, 3, seed=0).batch(step=0, size=16, symmetries=True)
    for image, where, mask in zip(shown, places, torch.isfinite(places[..., 0])):
        middle = (where[mask]).mean(0)
        weight = image.clamp(min=0)
        centre = (cells(SIZE) * weight).sum((1, 2)) / weight.sum()
        assert float((middle - centre).norm()) < 0.6  # sub-pixels


@pytest.mark.parametrize("offsets", [True, False])
def test_a_few_steps_lower_the_loss(images, tmp_path, offsets):
    data, windows = images
    trainer = DetectorTrainer(replace(TINY, samples=16 * 60, rate=3e-3, offsets=offsets), tmp_path / "c.safetensors", (data, windows), (data, windows))
    losses = [float(sum(trainer.optimise().values())) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


def test_training_goes_on_from_its_checkpoint(images, tmp_path, one_thread):
    data, windows = images
    make = lambda path, recipe=TINY: DetectorTrainer(recipe, tmp_path / path, (data, windows), (data, windows))
    whole = make("whole.safetensors")
    assert whole.fit(progress=False) and len(whole.history) == 2
    assert not make("parts.safetensors").fit(deadline=0.0, progress=False)  # one step, then the time is spent
    second = make("parts.safetensors")
    assert second.resume() and second.step == 1 and second.best is None
    assert second.fit(progress=False) and [entry["samples"] for entry in second.history] == [48, 96]
    for name, value in whole.detector.state_dict().items():
        torch.testing.assert_close(second.detector.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        make("parts.safetensors", replace(TINY, rate=1e-4)).resume()
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        make("broken.safetensors").resume()
    assert not make("none.safetensors").resume()


def test_images_are_computed_once(images, tmp_path, monkeypatch):
    data, _ = images
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path))
    network = load_network("ista-net")
    first = unmixed_windows(network, "key", data.frames)
    monkeypatch.setattr("csist.pipeline.predict", lambda *_, **__: pytest.fail("computed again"))
    assert np.array_equal(unmixed_windows(network, "key", data.frames), first) and first.shape == (32, SIZE, SIZE)
    assert unmixed_windows(network, "key", data.frames, deadline=0.0) is None
    monkeypatch.undo()
    monkeypatch.setenv("CSIST_CACHE", str(tmp_path))
    (stored,) = tmp_path.glob("unmixed-*.safetensors")
    stored.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        assert np.array_equal(unmixed_windows(network, "key", data.frames), first)


def test_light_beyond_a_window_is_refused_for_training():
    frames = np.zeros((1, 11, 11), dtype=np.uint8)
    frames[0, 0, 0] = frames[0, 10, 10] = 9
    with pytest.raises(ValueError, match="light of a frame reaches beyond 5 x 5 pixels"):
        unmixed_windows(load_network("ista-net"), "key", frames)


# Pipelines and files


def test_a_pipeline_reads_frames_within_and_beyond_windows():
    data = csist100k("test", 3)
    two = np.maximum(data.frames[:1], np.roll(data.frames[:1], (5, 5), (1, 2)))
    network, detector = load_network("ista-net"), Detector(features=4, blocks=1)
    with torch.no_grad():
        detector.head.bias[0] = 1.0  # says "here" everywhere
    estimate = Pipeline(network, detector)(np.concatenate([data.frames, two]))
    assert len(estimate) == 4 and (estimate.count > 0).all() and np.nanmin(estimate.score) > 0
    assert estimate.count[3] > estimate.count[0]  # all of its frame was read
    inside = light_windows(data.frames)[1]
    for i in range(3):
        xy = estimate.xy[i, : estimate.count[i]]
        assert (xy >= inside[i] - 0.5 - LONGEST / 3).all() and (xy <= inside[i] + 4.5 + LONGEST / 3).all()
    assert len(Pipeline(network, detector)(np.zeros((0, 11, 11)))) == 0


def test_weights_make_a_round_trip(tmp_path):
    torch.manual_seed(0)
    detector = Detector(features=8, blocks=1, offsets=False)
    write_detector(tmp_path / "d.safetensors", detector, {"run": "trial"})
    again, header = read_detector(tmp_path / "d.safetensors")
    assert header["run"] == "trial" and header["options"] == {"features": 8, "blocks": 1, "offsets": False} and not again.training
    for name, value in detector.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="holds no detector"):
        read_detector(reporting.weights_file("ista-net-c3-seed0"))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no csist weights file"):
        read_detector(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "options, message",
    [({"features": 0}, "features must be a whole number from 1"), ({"blocks": 1.5}, "blocks must be a whole number"), ({"ratio": 4}, "ratio c must be an odd")],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Detector(**options)


@pytest.mark.parametrize("shape", [(15, 15), (2, 15, 14), (2, 1, 15, 15)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(B, n, n\)"):
        Detector(features=4, blocks=1)(torch.zeros(shape))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with ISTA-Net's weights and result, and a detector trained for a moment by the command."""
    folder = tmp_path_factory.mktemp("reproduce")
    training = training_script()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csist.pipeline.DetectorRecipe", lambda **changes: replace(TINY, **changes))
        assert training.main(["--network", "ista-net", "--output", str(folder)]) == 0
        yield folder, training


@pytest.mark.slow
def test_the_command_trains_scores_and_stops_when_finished(trained, capsys):
    folder, training = trained
    name = detector_name("ista-net")
    result = json.loads((folder / "results" / f"{name}.json").read_text())
    assert result["test"]["frames"] == 24 and len(result["history"]) == 2 and result["selected"] in result["history"]
    assert result["cpu_hours"] > 0 and result["hours"] > 0
    assert result["recipe"]["samples"] == 96 and "run" not in result
    detector, header = read_detector(folder / "weights" / f"{name}.safetensors")
    assert header["network_run"] == "ista-net-c3-seed0" and sum(p.numel() for p in detector.parameters()) == result["parameters"]
    data = csist100k("test", 24)
    network = read_weights(folder / "weights" / "ista-net-c3-seed0.safetensors")[0]
    assert cso_map(Pipeline(network, detector)(data.frames), data.targets).map == pytest.approx(result["test"]["cso_map"], abs=1e-9)
    assert training.main(["--network", "ista-net", "--output", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_has_three_rows_for_each_network(trained):
    folder, _ = trained
    rows = pipeline_rows(pipeline_entries(["ista-net"]), folder)
    assert [row["status"] for row in rows] == ["not trained yet", "scored", "not trained yet"]
    assert rows[1]["ours_detector_parameters"] and rows[1]["paper_cso_map"] is None
    verify_pipeline(rows[1]["result"], folder)
    path = folder / "results" / f"{rows[1]['result']}.json"
    before = path.read_text()
    path.write_text(before.replace(json.loads(before)["network_weights_sha256"], "0" * 64))
    with pytest.raises(ValueError, match="ista-net-c3-seed0.safetensors is not the file"):
        verify_pipeline(rows[1]["result"], folder)
    path.write_text(before)


def test_the_papers_numbers_stand_beside_the_detector_that_leaves_the_grid():
    rows = {row["key"]: row for row in pipeline_rows(pipeline_entries(["dista-net", "srfbn"]))}
    printed = {line["pipeline"]: line["cso_map"] for line in reporting.load_paper_table("sr_plus_detector_c3.csv")}
    assert rows["dista-net-detector"]["paper_cso_map"] == printed["DISTA-Net + YOLOv11"]
    assert rows["srfbn-detector"]["paper_cso_map"] == printed["SRFBN + YOLOv11"]
    assert rows["dista-net-detector-grid"]["paper_cso_map"] is None


def test_a_network_without_weights_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="queue.py --only dista-net-c3-seed0"):
        train_detector("dista-net", tmp_path)


def test_trials_must_not_replace_results():
    with pytest.raises(SystemExit):
        training_script().main(["--network", "ista-net", "--samples", "10"])


def test_found_positions_are_in_pixels_of_the_frame():
    detector = Detector(features=2, blocks=1)
    with torch.no_grad():
        detector.head.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0, 1.0]))
    ((xy, intensity, score),) = find(detector, np.zeros((1, 3, 3), np.float32), np.array([[2, 4]]))
    expected = SubpixelGrid(ratio=3).axis_positions()
    assert {tuple(place) for place in xy.round(6)} <= {(x, y) for x in expected[6:9].round(6) for y in expected[12:15].round(6)}
    assert intensity == pytest.approx(np.full(len(xy), SCALE)) and score == pytest.approx(np.full(len(xy), 0.5))


def test_a_detectors_file_is_not_taken_for_an_unmixing_network(tmp_path):
    from csist.networks.detector import Detector, write_detector
    from csist.networks.registry import read_weights

    write_detector(tmp_path / "a.safetensors", Detector(3, features=8, blocks=1), {"network": "dista-net"})
    with pytest.raises(ValueError, match="holds a detector, not an unmixing network"):
        read_weights(tmp_path / "a.safetensors")
