"""The ISTA explorer: the browser iterates to the package's numbers, and it can be used without a mouse, on a telephone, without a kernel."""
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anywidget")
import traitlets

sys.path.insert(0, str(Path(__file__).parent))
from test_widgets import assert_same_frame, browser, open_page  # noqa: F401

from csist.imaging import FocalPlane, SubpixelGrid
from csist.scenes import Targets
from csist.solvers import SteeringOperator, fista, ista
from csist.widgets.ista_explorer import IstaExplorer, front_end

ROWS = [[5.33, 4.70, 242.0], [4.70, 5.30, 236.0], [5.1, 4.9, 231.0]]


def settled(page):
    """The explorer's state once its iterations are done."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("() => document.querySelector('.istax').csist.done")
    return page.locator(".istax").evaluate("e => e.csist")


def assert_same_solution(s):
    """Frame, estimate and every objective value as csist.solvers computes them from the frame of the same targets."""
    assert_same_frame(s)
    frame = np.reshape(s["frame"], (1, 11, 11))
    solve = fista if s["momentum"] else ista
    grid = SubpixelGrid(ratio=s["ratio"])
    result = solve(frame, FocalPlane(), grid, sparsity=s["sparsity"], max_iterations=s["iterations"], tolerance=0)
    np.testing.assert_allclose(np.reshape(s["image"], grid.shape), result.image[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(s["objective"], result.objective[:, 0], rtol=1e-9, atol=1e-6)


# ---- without a browser ---------------------------------------------------------------------------------------------------


def test_python_side_is_that_of_the_solvers():
    explorer = IstaExplorer(targets=ROWS[:2], sparsity=2.0, ratio=5, momentum=True, iterations=40)
    scene = Targets([[row[:2] for row in ROWS[:2]]], [[row[2] for row in ROWS[:2]]], [2])
    frame = FocalPlane().render(scene)
    np.testing.assert_array_equal(explorer.frame, frame[0])
    expected = fista(frame, FocalPlane(), SubpixelGrid(ratio=5), sparsity=2.0, max_iterations=40, tolerance=0)
    np.testing.assert_array_equal(explorer.image, expected.image[0])
    assert explorer.image.shape == (55, 55) and len(explorer.result.objective) == 41


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": []}, {"targets": ROWS + [ROWS[0]]}, {"targets": [[5, 5]]}, {"targets": [[5, float("nan"), 240]]}, {"targets": [[5, 12, 240]]},
        {"targets": [[5, 5, -1]]}, {"sparsity": 0.0}, {"sparsity": 1e3}, {"ratio": 4}, {"iterations": -1}, {"iterations": 3001},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(traitlets.TraitError):
        IstaExplorer(**wrong)


def test_one_output_serves_lab_book_and_print():
    explorer = IstaExplorer()
    data, _ = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "IstaExplorer(2 targets, lambda=1, c=3, 60 iterations of ISTA)"
    assert data["text/html"] == explorer.static_html() == IstaExplorer().static_html()  # stable from run to run


def test_static_html_loads_nothing():
    page = re.sub(r'src="data:[^"]*"', "", IstaExplorer().static_html())
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", page)) <= {"http://www.w3.org/2000/svg"}
    assert "import(" not in page and "fetch(" not in page and 'alt="' in page


def test_optics_must_be_one_module(tmp_path):
    for name in ("psf", "ista"):
        (tmp_path / f"{name}_explorer.js").write_text("const a = 1;")
    with pytest.raises(ValueError, match="default export"):
        front_end(tmp_path)


# ---- in a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_page(browser):  # noqa: F811
    page = browser.new_page()
    load = "async source => { window.m = (await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))).default }"
    page.evaluate(load, front_end()[0])
    yield page
    page.close()


@pytest.mark.parametrize("ratio", [3, 5, 7])
def test_model_equals_the_package(module_page, ratio):
    operator = SteeringOperator(FocalPlane(), SubpixelGrid(ratio=ratio))
    matrix = module_page.evaluate("c => [...m.axisMatrix(c, 11, 0.5)]", ratio)
    np.testing.assert_allclose(np.reshape(matrix, (11, -1)), operator.rows, rtol=0, atol=1e-14)
    norm = module_page.evaluate("c => m.squaredNorm(m.axisMatrix(c, 11, 0.5), 11, 11 * c)", ratio)
    assert norm == pytest.approx(operator.squared_norm, rel=1e-12)


@pytest.mark.parametrize(("ratio", "momentum"), list(itertools.product([3, 5, 7], [False, True])))
def test_solutions_equal_the_package(module_page, ratio, momentum):
    rng = np.random.default_rng(ratio)
    for iterations, sparsity in ((0, 1.0), (1, 30.0), (60, 0.01), (400, 1.0)):
        rows = np.column_stack([rng.uniform(3, 7, (2, 2)), rng.uniform(220, 250, 2)]).tolist()
        case = {"targets": rows, "sigma": 0.5, "size": 11, "bits": 8, "clip": True, "ratio": ratio, "sparsity": sparsity, "momentum": momentum}
        answer = module_page.evaluate("([rows, n, settings]) => m.solve(rows, n, settings)", [rows, iterations, case])
        assert_same_solution({**case, "iterations": iterations, **answer})


def test_three_thousand_iterations_do_not_drift(module_page):
    for momentum in (False, True):
        case = {"targets": ROWS, "sigma": 0.5, "size": 11, "bits": 8, "clip": True, "ratio": 3, "sparsity": 1.0, "momentum": momentum}
        answer = module_page.evaluate("([rows, n, settings]) => m.solve(rows, n, settings)", [ROWS, 3000, case])
        assert_same_solution({**case, "iterations": 3000, **answer})


def test_momentum_amplifies_rounding_where_the_weight_is_small(module_page):
    """With a tiny weight many estimates are equally good: FISTA's depends on the last digit, in any language; its objective does not."""
    frame, grid = IstaExplorer(targets=ROWS).frame.astype(float), SubpixelGrid(ratio=3)
    here, nudged = (fista(f[None], FocalPlane(), grid, sparsity=0.01, max_iterations=1500, tolerance=0) for f in (frame, frame + 1e-13 * (frame > 0)))
    assert abs(here.image - nudged.image).max() > 1e-6
    answer = module_page.evaluate("([rows, n, s]) => m.solve(rows, n, s)", [ROWS, 1500, {"ratio": 3, "sparsity": 0.01, "momentum": True}])
    for objective in (nudged.objective[:, 0], answer["objective"]):
        np.testing.assert_allclose(objective[-1], here.objective[-1, 0], rtol=1e-3)


def test_controls_and_keys(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, IstaExplorer())
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    fill = lambda label, value: page.get_by_label(label, exact=True).evaluate(change, value)
    before = settled(page)
    assert before["iterations"] == 60 and before["targets"] == IstaExplorer().targets
    assert_same_solution(before)
    page.locator(".psfx-handle").first.focus()
    for key in ["ArrowDown", "ArrowRight", "ArrowRight", "Shift+ArrowUp"]:
        page.keyboard.press(key)
    moved = settled(page)
    np.testing.assert_allclose(np.subtract(moved["targets"][0], before["targets"][0]), [0.04, 0.10, 0], atol=1e-9)
    assert_same_solution(moved)
    for label, value in {"Iterations": "9", "Algorithm": "fista", "Weight lambda": "0.7", "Sub-pixel ratio c": "5", "Number of targets": "3"}.items():
        fill(label, value)
        assert_same_solution(settled(page))
    s = settled(page)
    assert (s["iterations"], s["momentum"], s["ratio"], len(s["targets"])) == (9, True, 5, 3) and s["sparsity"] == pytest.approx(10**0.7)
    fill("Iterations", "110")
    assert settled(page)["iterations"] == 3000
    fill("Iterations", "5")  # back: the run begins again
    assert_same_solution(settled(page))
    page.get_by_role("button", name="Random cluster").click()
    xy = np.array(settled(page)["targets"])[:, :2]
    assert min(np.hypot(*(a - b)) for a, b in itertools.combinations(xy, 2)) >= 0.52 * 0.95 and (np.rint(xy) == 5).all()
    page.get_by_role("button", name="Reset").click()
    assert settled(page)["targets"] == before["targets"] and settled(page)["image"] == before["image"]
    assert page.errors == []
    page.close()


def test_play_and_pause(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, IstaExplorer(iterations=0))
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('.istax').csist.iterations > 30")
    page.get_by_role("button", name="Pause").click()
    s = settled(page)
    assert s["shown"] == s["iterations"] > 30 and not s["playing"]
    assert_same_solution(s)
    assert f"after {s['iterations']} iterations" in page.locator(".psfx-readout").inner_text()
    assert page.errors == []
    page.close()


def test_mouse_and_touch_drag(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, IstaExplorer(targets=[[5.0, 5.0, 240.0]]), has_touch=True, viewport={"width": 380, "height": 1600})
    pixel = page.locator(".psfx-zoom").first.bounding_box()["width"] * 58 / 314  # one pixel of the frame on the screen
    centre = lambda: (lambda b: (b["x"] + b["width"] / 2, b["y"] + b["height"] / 2))(page.locator(".psfx-handle .psfx-ring").first.bounding_box())
    x, y = centre()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.5 * pixel, y - 0.25 * pixel, steps=5)
    page.mouse.up()
    np.testing.assert_allclose(settled(page)["targets"][0][:2], [4.75, 5.5], atol=0.03)
    x, y = centre()
    touch = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", [(x, y)]), ("touchMove", [(x, y + 0.2 * pixel)]), ("touchMove", [(x, y + 0.5 * pixel)]), ("touchEnd", [])]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
    s = settled(page)
    np.testing.assert_allclose(s["targets"][0][:2], [5.25, 5.5], atol=0.04)
    assert_same_solution(s)
    assert page.errors == []
    page.close()


def test_everything_has_a_name(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, IstaExplorer(), IstaExplorer(ratio=5))
    assert page.evaluate("() => [...document.querySelectorAll('.istax input, .istax select')].filter(e => !e.labels.length).length") == 0
    roles = ".istax [role=img], .istax [role=slider], .istax [role=group]"
    assert page.evaluate("roles => [...document.querySelectorAll(roles)].filter(e => !e.getAttribute('aria-label')).length", roles) == 0
    assert page.evaluate("() => [...document.querySelectorAll('.istax input[type=range]')].every(e => e.getAttribute('aria-valuetext'))")
    assert page.evaluate("() => [...document.querySelectorAll('.psfx-handle')].every(e => e.tabIndex === 0 && e.getAttribute('aria-valuetext'))")
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


@pytest.mark.parametrize("width", [380, 1280])
def test_fits_the_page(browser, tmp_path, width):  # noqa: F811
    style = ":root { color-scheme: dark } body { background: #121212; color: #ced6dd }"
    page = open_page(browser, tmp_path, IstaExplorer(), style=style, viewport={"width": width, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
