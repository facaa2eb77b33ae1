"""The metric explorer: the browser's CSO-mAP equals the package's, and it can be used by mouse, by touch and by keys."""
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

sys.path.insert(0, str(Path(__file__).parent))
from test_widgets import browser  # noqa: F401
from test_widgets import open_page as open_explorers

from csist import Targets, metrics
from csist.widgets.metric_explorer import MetricExplorer
from csist.widgets.widgets import HERE

MODULE = (HERE / "metric_explorer.js").read_text(encoding="utf8")
THRESHOLDS = list(metrics.DISTANCE_THRESHOLDS)


def random_frames(rng, n_frames):
    """Frames with crowded targets and detections near some of them; many equal scores and distances that equal a threshold."""
    frames = []
    for _ in range(n_frames):
        targets = rng.uniform(4.5, 5.5, (rng.integers(0, 6), 2))
        rows = []
        for _ in range(rng.integers(0, 9)):
            place = rng.uniform(4.3, 5.7, 2)
            if len(targets) and rng.random() < 0.8:
                angle = rng.uniform(0, 2 * np.pi)
                step = rng.choice(THRESHOLDS) * np.array([1.0, 0.0]) if rng.random() < 0.3 else rng.exponential(0.12) * np.array([np.cos(angle), np.sin(angle)])
                place = rng.choice(targets) + step
            rows.append([*place, float(rng.integers(0, 6)) if rng.random() < 0.5 else rng.uniform(0, 250)])
        frames.append({"detections": np.array(rows).reshape(-1, 3).tolist(), "targets": targets.tolist()})
    return frames


def python_score(frames):
    return metrics.cso_map_from_lists([f["detections"] for f in frames], [f["targets"] for f in frames])


def as_targets(frames):
    """Estimate and truth of such frames."""
    rows, truths = ([np.reshape(f[name], (-1, width)) for f in frames] for name, width in (("detections", 3), ("targets", 2)))
    return Targets.from_lists([r[:, :2] for r in rows], [r[:, 2] for r in rows]), Targets.from_lists(truths, [np.ones(len(t)) for t in truths])


def assert_same_score(state):
    result = python_score([state])
    np.testing.assert_allclose([*state["ap"], state["map"]], [*result.ap, result.map], rtol=0, atol=1e-9)


# ---- without a browser ---------------------------------------------------------------------------------------------------


def test_default_is_the_example_worked_by_hand():
    # 0.05 px: B alone, second in rank; 0.10: B, D; 0.15: A, D (B comes too late); from 0.20 on A, C, D with an envelope of 1, 3/4, 3/4
    np.testing.assert_allclose(MetricExplorer().result.ap, [1 / 6, 1 / 3, 1 / 2, 5 / 6, 5 / 6], atol=1e-12)


def test_python_object_scores_its_state():
    explorer = MetricExplorer(targets=[[5.0, 5.0]], detections=[[5.0, 5.2, 10.0]], threshold=0.2)
    assert explorer.result.ap.tolist() == [0, 0, 0, 1, 1]
    explorer.detections = [[5.0, 5.04, 10.0], [5.0, 5.0, 9.0]]
    assert explorer.result.map == 1.0
    assert (explorer.truth.count.tolist(), explorer.estimate.count.tolist()) == ([1], [2])
    assert np.isnan(MetricExplorer(targets=[], detections=[]).result.map)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"targets": [[5, 5, 240]]}, r"targets must be a list of \[x, y\]"),
        ({"targets": [[5, 5]] * 7}, "up to 6 targets"),
        ({"targets": [[5, float("nan")]]}, "finite"),
        ({"detections": [[5, 5]]}, r"detections must be a list of \[x, y, score\]"),
        ({"detections": [[5, 5, 1]] * 13}, "up to 12 detections"),
        ({"detections": [[5, 5, -1]]}, "scores must be from 0 to 300"),
        ({"threshold": 0.12}, "threshold must be one of"),
        ({"thresholds": [0.1]}, "read-only"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(traitlets.TraitError, match=message):
        MetricExplorer(**wrong)


def test_one_output_serves_lab_book_and_print():
    data, _ = MetricExplorer()._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "MetricExplorer(3 targets, 4 detections, threshold=0.15 px)"
    assert MetricExplorer().static_html() == MetricExplorer().static_html()  # stable from run to run
    assert MetricExplorer(targets=[], detections=[]).png().startswith(b"\x89PNG")


def test_static_html_loads_nothing():
    page = MetricExplorer().static_html()
    urls = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", re.sub(r'src="data:[^"]*"', "", page)))
    assert urls <= {"http://www.w3.org/2000/svg"}
    assert "import(" not in page and "fetch(" not in page and 'alt="' in page


# ---- in a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_page(browser):  # noqa: F811
    page = browser.new_page()
    page.evaluate("async source => { window.m = (await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))).default }", MODULE)
    yield page
    page.close()


def test_scores_equal_the_package(module_page):
    rng = np.random.default_rng(0)
    cases = [random_frames(rng, n) for n in [1] * 300 + [2] * 60 + [20] * 15]
    answers = module_page.evaluate("([cases, t]) => cases.map(c => { const r = m.csoMap(c, t); return [...r.ap, r.map] })", [cases, THRESHOLDS])
    expected = [[*r.ap, r.map] for r in map(python_score, cases)]
    np.testing.assert_allclose(np.array(answers, dtype=float), expected, rtol=0, atol=1e-9)
    assert np.unique(np.round(expected, 6)[:, -1]).size > 150  # the cases are not all alike


def test_matches_and_curves_equal_the_package(module_page):
    rng = np.random.default_rng(1)
    for frames in [random_frames(rng, int(n)) for n in rng.integers(1, 4, 60)]:
        answer = module_page.evaluate("([c, t]) => m.csoMap(c, t)", [frames, THRESHOLDS])
        estimate, truth = as_targets(frames)
        matches = metrics.match_detections(estimate, truth)
        assert [(d["frame"], d["slot"], d["nearest"]) for d in answer["ranked"]] == list(zip(matches.frame, matches.slot, matches.nearest))
        for one, hits in zip(answer["each"], matches.is_hit):
            assert [o == "hit" for o in one["outcomes"]] == hits.tolist()
            assert [o == "far" for o in one["outcomes"]] == (matches.distance > one["delta"] + 1e-9).tolist()
            if truth.count.sum():
                for name, curve in zip(("recall", "precision", "envelope"), metrics.precision_recall(hits, int(truth.count.sum()))):
                    np.testing.assert_allclose(one[name], curve, rtol=0, atol=1e-12)


@pytest.mark.parametrize("detections", [[], [[5, 5, 1]]])
@pytest.mark.parametrize("targets", [[], [[6, 5]]])
def test_nothing_there(module_page, detections, targets):
    frames = [{"detections": detections, "targets": targets}]
    answer = module_page.evaluate("([c, t]) => m.csoMap(c, t).ap", [frames, THRESHOLDS])
    np.testing.assert_equal(np.array(answer, dtype=float), python_score(frames).ap)


def test_a_score_that_is_no_number_is_refused(module_page):
    with pytest.raises(Exception, match="not a number"):
        module_page.evaluate("t => m.csoMap([{ detections: [[5, 5, NaN]], targets: [[5, 5]] }], t)", THRESHOLDS)


def open_page(*arguments, **options):
    return open_explorers(*arguments, root=".metx", **options)


def state(page, index=0):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    found = page.locator(".metx").nth(index).evaluate("e => e.csist")
    assert_same_score(found)
    return found


def test_keys_move_score_and_remove(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer())
    before = state(page)
    page.locator(".metx-detection").nth(2).focus()  # C: 0.18 px right of target 3
    for key in ["ArrowLeft", "ArrowLeft", "ArrowDown", "Shift+ArrowUp", "+", "+", "-", "+"]:
        page.keyboard.press(key)
    after = state(page)
    np.testing.assert_allclose(np.subtract(after["detections"][2], before["detections"][2]), [0.015, -0.04, 10], atol=1e-9)
    assert (after["selected"], after["map"] > before["map"]) == ({"kind": "detections", "k": 2}, True)
    page.keyboard.press("Delete")
    assert len(state(page)["detections"]) == 3
    page.locator(".metx-target").first.focus()
    page.keyboard.press("ArrowUp")
    assert state(page)["targets"][0][0] == pytest.approx(4.78)
    assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Position of target 1"  # the focus survives the redrawing
    assert page.errors == []
    page.close()


def test_tab_visits_every_mark(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer())
    page.locator(".metx-target").first.focus()
    visited = []
    for _ in range(7):
        visited.append(page.evaluate("() => document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press("Tab")
    assert visited == [f"Position of target {k}" for k in "123"] + [f"Position of detection {k}" for k in "ABCD"]
    page.close()


def test_mouse_and_touch_drag(browser, tmp_path):  # noqa: F811
    explorer = MetricExplorer(targets=[[5.0, 5.0]], detections=[[5.2, 5.2, 100.0]])
    page = open_page(browser, tmp_path, explorer, has_touch=True, viewport={"width": 380, "height": 1800})
    pixel = page.locator(".metx-plan").bounding_box()["width"] * 240 / 358  # one pixel of the frame on the screen
    centre = lambda kind: (lambda b: (b["x"] + b["width"] / 2, b["y"] + b["height"] / 2))(page.locator(f".metx-{kind} .metx-grip").first.bounding_box())
    x, y = centre("detection")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 0.2 * pixel, y - 0.17 * pixel, steps=5)
    page.mouse.up()
    moved = state(page)
    np.testing.assert_allclose(moved["detections"][0][:2], [5.03, 5.0], atol=0.01)
    assert moved["map"] == 1.0
    x, y = centre("target")
    touch = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", [(x, y - 8)]), ("touchMove", [(x, y)]), ("touchMove", [(x - 0.3 * pixel, y - 8)]), ("touchEnd", [])]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
    dragged = state(page)  # whichever mark lies on top was dragged
    assert dragged["map"] == 0.0 and len(dragged["targets"]) == len(dragged["detections"]) == 1
    assert page.errors == []
    page.close()


def test_controls(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer())
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    fill = lambda label, value: page.get_by_label(label, exact=True).evaluate(change, value)
    fill("Selected", "detections/1")
    fill("its score", "299")  # B now outranks A
    better = state(page)
    assert [d["slot"] for d in better["ranked"]] == [1, 0, 2, 3] and better["map"] > MetricExplorer().result.map
    fill("Selected", "targets/2")
    fill("its column y", "5.18")
    assert state(page)["targets"][2] == [5.3, 5.18]
    page.get_by_role("button", name="Add detection").click()
    page.get_by_role("button", name="Add target").click()
    assert (len(state(page)["detections"]), len(state(page)["targets"])) == (5, 4)
    for _ in range(9):
        page.get_by_role("button", name="Remove selected").click()
    assert state(page)["targets"] == [] == state(page)["detections"]
    page.get_by_role("button", name="Reset").click()
    assert state(page)["detections"] == MetricExplorer().detections
    page.locator("input[type=radio]").nth(3).check()
    assert state(page)["shown"] == 3
    page.wait_for_function("() => document.querySelector('.metx [role=status]').textContent.startsWith('At 0.20 px: 3 hits, 1 false positive')")
    assert page.errors == []
    page.close()


def test_every_example_loads_and_scores_right(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer())
    names = page.locator("select").nth(1).locator("option").all_text_contents()[1:]
    assert len(names) >= 4
    scores = {}
    for name in names:
        page.get_by_label("Example", exact=True).select_option(name)
        scores[name] = state(page)["map"]
    assert scores["Three targets, four detections"] == pytest.approx(8 / 15)  # the example that the chapter works by hand
    assert page.errors == []
    page.close()


def test_two_explorers_do_not_disturb_each_other(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer(), MetricExplorer(targets=[[3.0, 8.0]], detections=[[3.0, 8.1, 9.0]]))
    first = state(page, 0)
    page.locator(".metx").nth(1).locator(".metx-detection").first.focus()
    page.keyboard.press("ArrowUp")
    assert state(page, 0) == first
    assert state(page, 1)["detections"][0][0] == pytest.approx(2.98)
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


def test_everything_has_a_name(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer())
    assert page.evaluate("() => [...document.querySelectorAll('.metx input, .metx select')].filter(e => !e.labels.length).length") == 0
    roles = ", ".join(f".metx [role={role}]" for role in ("img", "slider", "group", "region", "radiogroup"))
    assert page.evaluate("roles => [...document.querySelectorAll(roles)].filter(e => !e.getAttribute('aria-label')).length", roles) == 0
    assert page.locator(".metx [role=status][aria-live=polite]").count() == 1
    assert page.evaluate("() => [...document.querySelectorAll('.metx-handle')].every(e => e.tabIndex === 0 && e.getAttribute('aria-valuetext'))")
    page.locator(".metx-detection").first.focus()
    page.keyboard.press("ArrowUp")
    outline = page.locator(".metx-detection").first.evaluate("e => getComputedStyle(e.querySelector('.metx-halo')).stroke")
    assert outline == "rgb(27, 31, 36)"  # a dark ring on the white sheet
    page.close()


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("style", ["", ":root { color-scheme: dark } body { background: #121212; color: #ced6dd }"])
def test_fits_the_page(browser, tmp_path, width, style):  # noqa: F811
    page = open_page(browser, tmp_path, MetricExplorer(), style=style, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".metx-scroll").evaluate("e => e.scrollWidth <= e.clientWidth")  # the table needs no scrolling
    assert page.locator(".metx-table thead th:visible").count() == (6 if width == 380 else 10)
    page.close()
