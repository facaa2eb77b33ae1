"""The model viewer: the page shows what the package computes, says how exactly, and can be used without a mouse, on a telephone, without a kernel."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("anywidget")
import traitlets

sys.path.insert(0, str(Path(__file__).parent))
from test_widgets import browser, open_page  # noqa: F401

import csist
from csist.evaluation import DETECTION_THRESHOLD, detect, predict
from csist.imaging import SubpixelGrid
from csist.metrics import is_border, localisation, match_pairs
from csist.networks.registry import NETWORKS, read_weights
from csist.reporting import gallery
from csist.widgets import ModelViewer, viewer_data
from csist.widgets.model_viewer import NEAR, choose_frames, pack, position_bound, trained_methods, unpack

FRAMES = {7: "first", 8: "first", 91: "hardest"}  # two targets in a corner, three and four inside
METHODS = ["dista-net", "cfgn", "continuous"]


@pytest.fixture(scope="module")
def data():
    return viewer_data(METHODS, FRAMES, ratios=(3, 5))


@pytest.fixture(scope="module")
def truth():
    pool = csist.csist100k("test", 1000)
    return csist.Frames(pool.frames[list(FRAMES)], pool.targets[list(FRAMES)])


def entry(data, name):
    return next(m for m in data["methods"] if m["name"] == name)


def window(image, frame, ratio):
    row, column = np.array(frame["origin"]) * ratio
    return image[row : row + 5 * ratio, column : column + 5 * ratio]


def settled(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".modv").first.evaluate("e => e.csist")


# ---- without a browser ---------------------------------------------------------------------------------------------------


def test_frames_are_chosen_by_rule():
    pool = csist.csist100k("test", 1000)
    chosen = choose_frames(pool)
    border, bound, count = is_border(pool.targets), position_bound(pool.targets), pool.targets.count
    assert sorted(set(chosen.values())) == ["first", "hardest"] and len(chosen) <= 5 * 7
    for k in range(1, 6):
        for there, firsts in ((False, 3), (True, 2)):
            kind = np.flatnonzero((count == k) & (border == there))
            mine = [number for number in chosen if number in kind]
            assert set(kind[:firsts]) <= set(mine) and bound[mine].max() == bound[kind].max() and len(mine) <= firsts + 1
    for wrong in ({"interior": -1}, {"interior": 0, "border": 0, "hardest": 0}):
        with pytest.raises(ValueError, match="choose_frames"):
            choose_frames(pool, **wrong)


def test_bound_is_that_of_the_limits():
    pair = csist.Targets([[[5.0, 4.7], [5.0, 5.3]]], [[240.0, 240.0]], [2])
    variances = csist.limits.crlb(pair, csist.FocalPlane())[0, :, :2] ** 2
    assert position_bound(pair)[0] == pytest.approx(np.sqrt(variances.sum() / 2))


def test_images_are_exact_to_half_a_step():
    rng = np.random.default_rng(0)
    images = rng.uniform(-40, 270, (2, 3, 33, 33))
    images[0, 1] = 0.0
    packed = pack(images, np.array([[0, 0], [6, 3]]), 3)
    for frame, origin in enumerate([(0, 0), (18, 9)]):
        for stage in range(3):
            cut = images[frame, stage, origin[0] : origin[0] + 15, origin[1] : origin[1] + 15]
            error = abs(unpack({**packed, "ratio": 3}, 2, frame, stage) - cut).max()
            assert error <= packed["step"][frame][stage] / 2 + 1e-9 and packed["step"][frame][stage] < 1.25


def test_answers_are_those_of_predict(data, truth):
    assert [m["name"] for m in data["methods"]] == ["perfect", "dista-net", "dista-net-c5", "cfgn", "cfgn-c5", "continuous"]
    for name, method, ratio in (("dista-net", "dista-net", 3), ("dista-net-c5", "dista-net", 5), ("cfgn", "cfgn", 3), ("cfgn-c5", "cfgn", 5)):
        images, shown = predict(csist.load_network(method, ratio), truth.frames), entry(data, name)
        for k, frame in enumerate(data["frames"]):
            step = shown["step"][k][-1]
            assert step < 1.5  # grey levels
            error = abs(unpack(shown, 3, k, len(shown["step"][k]) - 1) - window(images[k], frame, ratio)).max()
            assert error <= step / 2 + 0.01
        estimate = detect(images, SubpixelGrid(ratio=ratio))
        assert [len(points[-1]) for points in shown["points"]] == estimate.count.tolist()


@torch.no_grad()
def test_stages_are_those_of_the_trajectory(data, truth):
    shown = entry(data, "dista-net")
    path = csist.load_network("dista-net").trajectory(torch.from_numpy(truth.frames).float())
    assert len(path) == len(shown["points"][0]) == 7
    for stage, images in enumerate(path):
        for k, frame in enumerate(data["frames"]):
            error = abs(unpack(shown, 3, k, stage) - window(images[k].numpy(), frame, 3)).max()
            assert error <= shown["step"][k][stage] / 2 + 0.05


def test_errors_are_those_of_the_metrics(data, truth):
    for method in data["methods"]:
        for k in range(len(FRAMES)):
            viewer = ModelViewer(data, frame=list(FRAMES)[k], method=method["name"])
            estimate, frame_truth = viewer.estimate, truth.targets[k]
            np.testing.assert_array_equal(viewer.truth.xy, frame_truth.xy[:, : frame_truth.count[0]])
            np.testing.assert_array_equal(viewer.pixels, truth.frames[k])
            points, rmse = method["points"][k][-1], method["rmse"][k][-1]
            _, mine, theirs = match_pairs(estimate, frame_truth, cap=NEAR)
            assert {(d, p[3]) for d, p in enumerate(points) if p[3] >= 0} == set(zip(mine.tolist(), theirs.tolist()))
            expected = localisation(estimate, frame_truth, cap=NEAR).rmse
            assert rmse == pytest.approx(expected, abs=1e-4) if len(mine) else rmse is None
            if method["ratio"]:
                assert all(p[2] >= DETECTION_THRESHOLD for p in points) and estimate.sigma is None
            else:
                assert estimate.sigma.shape == estimate.xy.shape and ((estimate.score >= 0) & (estimate.score <= 1)).all()


def test_no_network_is_forgotten():
    folder = Path(csist.__file__).parents[1] / "reproduce" / "weights"
    files = [file for file in folder.glob("*-c?-seed0.safetensors") if "detector" not in file.name]
    stored = {(header["network"], header["ratio"]) for _, header in map(read_weights, files)}  # variants and other budgets are the same networks
    named = {(name, ratio) for name, ratio in trained_methods() if name in NETWORKS and ratio}
    assert named == stored and {"continuous", "off-grid", "ista", "fista"} <= {name for name, _ in trained_methods()}


def test_false_detections_are_counted_by_hand():
    frame = {"targets": [[5.0, 5.0, 240.0]]}
    hit, beside, elsewhere, another = [5.0, 5.0, 200, 0], [5.33, 5.0, 60, -1], [8.0, 5.0, 55, -1], [5.0, 5.33, 180, -1]  # 380 are no single target's
    method = {"method": "dista-net", "label": "DISTA-Net", "ratio": 3, "points": [[[hit, beside, elsewhere, another]], [[hit]]]}
    text = gallery.describe_false({"frames": [frame, frame], "methods": [method]})
    assert "make 3 false detections in these 2 frames, and 1 of them touch a hit with which they have 200 to 270 grey levels together" in text
    assert text.endswith("1 by DISTA-Net.")


def test_bad_input_is_refused(data):
    for wrong in ({"frame": 9}, {"method": "distanet"}, {"stage": -2}, {"data": {"frames": []}}):
        with pytest.raises(traitlets.TraitError):
            ModelViewer(**({"data": data} | wrong))
    with pytest.raises(traitlets.TraitError, match="dista-net"):
        ModelViewer(data, method="distanet")
    with pytest.raises(traitlets.TraitError, match=r"frame must be one of \[7, 8, 91\]"):
        ModelViewer(data, frame=9)
    with pytest.raises(ValueError, match="Did you mean 'dista-net'"):
        viewer_data(["distanet"], FRAMES)
    with pytest.raises(ValueError, match="numbers from 0 to 999"):
        viewer_data(METHODS, {1000: "first"})
    with pytest.raises(FileNotFoundError, match="train it with"):
        viewer_data(["ista-net"], FRAMES, ratios=(7,))


def test_one_output_serves_lab_book_and_print(data):
    viewer = ModelViewer(data)
    assert (viewer.frame, viewer.method, viewer.stages, viewer.shown_stage) == (8, "dista-net", 6, 6)
    output, _ = viewer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain"} <= set(output)
    assert output["text/plain"] == "ModelViewer(3 frames, 6 methods; frame 8, dista-net, stage 6 of 6)"
    assert output["text/html"] == viewer.static_html() == ModelViewer(data).static_html()  # stable from run to run
    assert ModelViewer(data, method="continuous").png() != viewer.png() != ModelViewer(data, stage=3).png()


def test_static_html_loads_nothing(data):
    page = re.sub(r'src="data:[^"]*"', "", ModelViewer(data).static_html())
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", page.replace(json.dumps(data)[1:-1], ""))) <= {"http://www.w3.org/2000/svg"}
    assert "import(" not in page and "fetch(" not in page and 'alt="' in page


def test_data_are_small(data):
    """The share of three frames tells that of the book's thirty-five, which must stay below 1.5 MB."""
    per_image = len(entry(data, "cfgn")["levels"]) / len(FRAMES)
    assert per_image == 300 and len(json.dumps(entry(data, "dista-net"))) < 15_000


@pytest.mark.slow
def test_every_method_answers():
    shown = viewer_data(frames={8: "first"}, ratios=(3,))
    assert [m["name"] for m in shown["methods"]] == ["perfect", *(name for name, _ in trained_methods((3,)))]
    assert entry(shown, "off-grid")["rmse"][0][0] < 0.25 and entry(shown, "perfect")["rmse"][0][0] < 0.24
    assert len(entry(shown, "perfect")["points"][0][0]) == len(shown["frames"][0]["targets"])


# ---- in a browser --------------------------------------------------------------------------------------------------------


def test_page_shows_what_python_computes(browser, tmp_path, data):  # noqa: F811
    page = open_page(browser, tmp_path, ModelViewer(data), root=".modv")
    send = "(e, [value, kind]) => { e.value = value; e.dispatchEvent(new Event(kind)); }"
    for frame in FRAMES:
        for name, stage in (("dista-net", 6), ("dista-net", 4), ("dista-net", 0), ("cfgn-c5", None), ("continuous", None), ("perfect", None)):
            page.locator(".modv select").evaluate(send, [frame, "change"])
            page.locator(f".modv-radio[value='{name}']").evaluate("e => e.click()")
            settled(page)
            if stage is not None:
                page.locator(".modv-row input").evaluate(send, [stage, "input"])
            s, viewer = settled(page), ModelViewer(data, frame=frame, method=name, stage=-1 if stage is None else stage)
            assert (s["frame"], s["method"], s["stage"], s["stages"]) == (frame, name, viewer.shown_stage, viewer.stages)
            np.testing.assert_array_equal(np.reshape(s["pixels"], (11, 11)), viewer.pixels)
            if viewer.image is None:
                assert s["image"] is None
            else:
                np.testing.assert_allclose(np.reshape(s["image"], viewer.image.shape), viewer.image, rtol=0, atol=1e-9)
            frames, mine, _ = match_pairs(viewer.estimate, viewer.truth, cap=NEAR)
            assert (s["found"], s["missed"], s["wrong"]) == (len(frames), viewer.truth.count[0] - len(frames), viewer.estimate.count[0] - len(frames))
            text = page.locator(".modv-readout").inner_text()
            assert f"{len(frames)} of {viewer.truth.count[0]} found, {s['missed']} missed, {s['wrong']} false" in text
            if len(mine):
                assert f"{localisation(viewer.estimate, viewer.truth, cap=NEAR).rmse:.3f} px" in text
    assert page.errors == []
    page.close()


def test_keys(browser, tmp_path, data):  # noqa: F811
    page = open_page(browser, tmp_path, ModelViewer(data, frame=7), root=".modv")
    before = settled(page)
    page.locator(".modv-row input").focus()
    page.keyboard.press("ArrowLeft")
    s = settled(page)
    assert s["stage"] == 5 and s["image"] != before["image"]
    page.get_by_label("Next frame").focus()
    page.keyboard.press("Enter")
    assert (settled(page)["frame"], settled(page)["stage"]) == (8, 5)
    page.locator(".modv-radio:checked").focus()
    page.keyboard.press("ArrowRight")
    assert settled(page)["method"] == "dista-net-c5" and page.locator(".modv-row input").is_enabled()
    page.keyboard.press("ArrowRight")
    assert settled(page)["method"] == "cfgn" and page.locator(".modv-row input").is_disabled()
    page.locator(".modv select").focus()
    page.keyboard.press("ArrowDown")
    assert settled(page)["frame"] == 91 and page.get_by_label("Next frame").is_disabled()
    page.locator(".modv summary").focus()
    page.keyboard.press("Enter")
    assert page.locator(".modv-table tbody tr").count() >= 4
    assert page.errors == []
    page.close()


def test_play_pointer_and_touch(browser, tmp_path, data):  # noqa: F811
    page = open_page(browser, tmp_path, ModelViewer(data), root=".modv", has_touch=True, viewport={"width": 380, "height": 1600})
    page.get_by_role("button", name="Play stages").tap()
    page.wait_for_function("() => document.querySelector('.modv').csist.stage >= 2")
    page.get_by_role("button", name="Pause").tap()
    assert not settled(page)["playing"] and 2 <= settled(page)["stage"] < 6
    page.locator(".modv-choice").first.tap()
    s = settled(page)
    assert s["method"] == "perfect" and s["wrong"] == s["missed"] == 0
    x, y, *_ = s["points"][0]
    viewer = ModelViewer(data)
    cell = np.array(viewer.data["frames"][viewer.index]["cell"])
    box = page.locator(".modv-sheet").nth(1).bounding_box()
    place = lambda v, c: (22 + (v - c + 1.5) * 290 / 3) * box["width"] / 314
    page.touchscreen.tap(box["x"] + place(y, cell[1]), box["y"] + place(x, cell[0]))
    assert page.locator(".modv-probe").inner_text() == f"sub-pixel at ({x:.2f}, {y:.2f}): {s['points'][0][2]:.0f}"
    box = page.locator(".modv-sheet").first.bounding_box()
    page.touchscreen.tap(box["x"] + place(cell[1], cell[1]), box["y"] + place(cell[0], cell[0]))
    assert page.locator(".modv-probe").inner_text().startswith(f"pixel ({cell[0]}, {cell[1]}): {viewer.pixels[tuple(cell)]}")
    assert page.errors == []
    page.close()


def test_everything_has_a_name(browser, tmp_path, data):  # noqa: F811
    page = open_page(browser, tmp_path, ModelViewer(data), ModelViewer(data, frame=91), root=".modv")
    named = "() => [...document.querySelectorAll('.modv input, .modv select')].filter(e => !e.labels.length && !e.getAttribute('aria-label')).length"
    assert page.evaluate(named) == 0
    roles = ".modv [role=img], .modv [role=group], .modv [role=region]"
    assert page.evaluate("roles => [...document.querySelectorAll(roles)].filter(e => !e.getAttribute('aria-label')).length", roles) == 0
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) and len({*page.evaluate("() => [...document.querySelectorAll('.modv-radio')].map(e => e.name)")}) == 2
    page.close()


@pytest.mark.parametrize("width", [380, 1280])
def test_fits_the_page(browser, tmp_path, data, width):  # noqa: F811
    style = ":root { color-scheme: dark } body { background: #121212; color: #ced6dd }"
    page = open_page(browser, tmp_path, ModelViewer(data, method="continuous"), style=style, root=".modv", viewport={"width": width, "height": 900})
    page.locator(".modv summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
