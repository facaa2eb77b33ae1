"""The unmixing explorer: the browser's solver gives the package's answers, in time, and can be used without a mouse, on a telephone, without a kernel."""
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anywidget")
pytest.importorskip("numba")
import traitlets
from numba import njit

sys.path.insert(0, str(Path(__file__).parent))
from test_widgets import assert_same_frame, browser, open_page  # noqa: F401

from csist.imaging import FocalPlane
from csist.scenes import Targets, random_targets
from csist.solvers import _offgrid_kernels as kernels
from csist.solvers import offgrid
from csist.widgets.unmixing_explorer import UnmixingExplorer, front_end, solver_settings

ROWS = [[4.70, 4.78, 242.0], [5.34, 4.86, 236.0], [4.98, 5.36, 230.0], [5.0, 5.0, 240.0]]


# ---- without a browser ---------------------------------------------------------------------------------------------------


def test_python_side_is_that_of_the_solver():
    explorer = UnmixingExplorer(targets=ROWS[:3], assumed_sigma=0.49, tier="standard")
    scene = Targets([[row[:2] for row in ROWS[:3]]], [[row[2] for row in ROWS[:3]]], [3])
    frame = FocalPlane().render(scene)
    np.testing.assert_array_equal(explorer.frame, frame[0])
    expected = offgrid.unmix_offgrid(frame, FocalPlane(sigma=0.49), tier="standard")
    np.testing.assert_array_equal(explorer.answer.xy, expected.xy)
    assert explorer.answer.sigma.shape == (1, explorer.answer.capacity, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": []}, {"targets": ROWS[:3] * 2}, {"targets": [[5, 5]]}, {"targets": [[5, float("nan"), 240]]}, {"targets": [[5, 12, 240]]},
        {"targets": [[5, 5, -1]]}, {"targets": [[5, 5, 400]]}, {"targets": [[3.4, 5, 240], [5.5, 5, 240]]}, {"assumed_sigma": 0.4}, {"tier": "accurate"},
        {"deviations": 2},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(traitlets.TraitError):
        UnmixingExplorer(**wrong)


def test_one_output_serves_lab_book_and_print():
    explorer = UnmixingExplorer()
    data, _ = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "UnmixingExplorer(3 targets, assumed_sigma=0.5 px, tier='fast')"
    assert data["text/html"] == UnmixingExplorer().static_html()  # stable from run to run


def test_static_html_loads_nothing():
    page = re.sub(r'src="data:[^"]*"', "", UnmixingExplorer().static_html())
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", page)) <= {"http://www.w3.org/2000/svg"}
    assert "import(" not in page and "fetch(" not in page and 'alt="' in page


# ---- the solver, in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_page(browser):  # noqa: F811
    """A page with the modules ``m`` (the explorer) and ``m.offgrid`` (the solver) and the settings ``settings``."""
    source, exports = re.subn(r"^export default \{ render,", "export default { render, offgrid,", front_end()[0], flags=re.M)
    assert exports == 1
    page = browser.new_page()
    load = "async source => { window.m = (await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))).default }"
    page.evaluate(load, source)
    page.evaluate("settings => { window.settings = settings }", solver_settings())
    yield page
    page.close()


def test_random_stream_is_that_of_the_kernels(module_page):
    for seed in (0, 1, 0x9E3779B9, 2**32 - 1):
        stream = np.array([seed], np.uint64)
        wanted = [kernels.uniform(stream) for _ in range(500)]
        draw = "seed => { const s = m.offgrid.randomStream(settings.stream); s.seed(seed); return Array.from({ length: 500 }, s.uniform) }"
        assert module_page.evaluate(draw, seed) == wanted


def test_calibration_is_that_of_the_package(module_page):
    kinds = module_page.evaluate("[false, true].flatMap(cut => [1, 2, 3, 4, 5, 6].map(n => m.offgrid.kindOf(n, cut)))")
    assert kinds == offgrid.kind_of([1, 2, 3, 4, 5, 6] * 2, [False] * 6 + [True] * 6).tolist()
    claimed = np.concatenate([np.linspace(0, 1, 301), [1e-7, 1 - 1e-7]])
    for tier in ("fast", "standard"):
        for kind, curve in enumerate(offgrid.CALIBRATION[tier]):
            right = "([t, k, p]) => p.map(v => m.offgrid.calibrated(v, settings.tiers[t].calibration[k], settings.least))"
            found = module_page.evaluate(right, [tier, kind, claimed.tolist()])
            np.testing.assert_allclose(found, offgrid.calibrated(claimed, curve), rtol=0, atol=1e-12)
        sigma = np.concatenate([np.geomspace(1e-7, 1, 300), offgrid.DEVIATIONS[tier][0]])
        found = module_page.evaluate("([t, s]) => s.map(v => m.offgrid.widened(v, settings.tiers[t].deviations, settings.least))", [tier, sigma.tolist()])
        np.testing.assert_allclose(found, offgrid.widened(sigma, offgrid.DEVIATIONS[tier]), rtol=1e-12)


class Windows:
    """Frames' windows in the kernels' form, to compare the deterministic steps one by one."""

    def __init__(self, frames, sigma):
        plane = FocalPlane(sigma=sigma)
        self.problem = offgrid._Problem(plane, offgrid.Prior(), kernels)
        self.clusters = offgrid._Clusters(frames.astype(float), plane, offgrid.Prior(), self.problem.side)
        plan = self.problem.solver("fast").args[2]
        self.plan, self.region = plan, self.problem.region._replace(bright=250.0)

    def evidence(self, k):
        return kernels.Evidence(*(part[k] for part in self.clusters.evidence()), 1 / self.problem.noise, True, 1.0)


@njit
def deterministic_steps(theta, number, optics, evidence, region, plan, given, given_number, modes, numbers, costs, laplace):
    """Objective, number of modes and best objective; fills modes and Laplace weights. Python hands over arrays of other types: it would compile all anew."""
    work = kernels.new_work(optics)
    value = kernels.objective(theta, number, optics, evidence, region, work)
    count, best = kernels.find_modes(optics, evidence, region, work, plan, given, given_number, modes, numbers, costs)
    for k in range(count):
        laplace[k] = kernels.laplace_weight(modes[k], numbers[k], costs[k], optics, evidence, region, work, plan.log_prior)
    return value, count, best


@pytest.mark.parametrize("sigma", [0.5, 0.475])
def test_deterministic_steps_equal_the_kernels(module_page, sigma):
    """Seeds, objective, minima of Levenberg-Marquardt and Laplace weights, on whole and cut windows."""
    scenes = random_targets(16, np.random.default_rng(3))
    frames = FocalPlane().render(scenes)
    windows, rng = Windows(frames, sigma), np.random.default_rng(4)
    room = lambda modes: (np.zeros((modes, kernels.SIZE)), np.zeros(modes, np.int64), np.zeros(modes), np.zeros(modes))
    for k, cell in enumerate(windows.clusters.cell):
        evidence, number = windows.evidence(k), 1 + k % 5
        theta = np.zeros(kernels.SIZE)
        theta[: 3 * number] = np.column_stack([rng.uniform(-0.6, 0.6, (number, 2)), rng.uniform(200, 260, number)]).ravel()
        problem = theta, number, windows.problem.optics, evidence, windows.region, windows.plan
        (modes, numbers, costs, laplace), (given, given_number, *_) = (room(m) for m in (kernels.MOST_MODES, 0))
        value, count, best = deterministic_steps(*problem, given, given_number, modes, numbers, costs, laplace)
        found = module_page.evaluate(
            """([frame, cell, sigma, theta, number]) => {
                const solver = m.solverFor(settings, "fast", sigma), evidence = solver.readWindow(frame, cell), { modes, best } = solver.findModes(evidence);
                return { seed: evidence.seed, value: solver.objective(theta, number, evidence), best, numbers: modes.map(o => o.number),
                    theta: modes.map(o => [...o.theta]), laplace: modes.map(o => solver.laplaceWeight(o, evidence)) };
            }""",
            [frames[k].ravel().tolist(), cell.tolist(), sigma, theta.tolist(), number],
        )
        assert found["seed"] == windows.clusters.hashes()[k]
        assert found["value"] == pytest.approx(value, rel=1e-10)
        assert found["best"] == pytest.approx(best, rel=1e-6)
        assert found["numbers"] == numbers[:count].tolist()
        np.testing.assert_allclose(found["theta"], modes[:count], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["laplace"], laplace[:count], rtol=1e-6, atol=1e-4)


def python_answers(frames, sigma=0.5, tier="fast"):
    found = offgrid.unmix_offgrid(frames, FocalPlane(sigma=sigma), tier=tier)
    for k, count in enumerate(found.count):
        yield np.column_stack([found.xy[k], found.intensity[k], found.sigma[k], found.score[k]])[:count]


def browser_answer(targets):
    """x, y, intensity, deviations of x and y, score of each target, (K, 6)."""
    return np.reshape([[t["x"], t["y"], t["intensity"], t["xx"] ** 0.5, t["yy"] ** 0.5, t["score"]] for t in targets], (-1, 6))


def largest_gap(found, wanted):
    """Largest distance from a target of Python's answer to the page's next one [px], along rows or columns; infinite if the counts differ."""
    return abs(found[:, None, :2] - wanted[None, :, :2]).max(-1).min(0).max(initial=0) if len(found) == len(wanted) else np.inf


def test_answers_equal_the_package(module_page):
    """200 random frames, half of them anywhere on the focal plane, some with a wrong PSF width or more effort.

    The sampler computes in float32, and compilers may order its sums as they like. Where a last digit parts two chains, both still sample the same
    posterior and differ by their sampling error; elsewhere answers are equal, with errors and scores.
    """
    rng, gaps = np.random.default_rng(6), []
    middle, anywhere = random_targets(100, rng, cells=[[5, 5]] * 100), random_targets(100, rng)
    wrong_width = [(anywhere[60:75], 0.49, "fast"), (anywhere[75:90], 0.475, "fast")]
    for scenes, sigma, tier in [(middle, 0.5, "fast"), (anywhere[:60], 0.5, "fast"), *wrong_width, (anywhere[90:], 0.5, "standard")]:
        frames = FocalPlane().render(scenes)
        solve = "([frames, sigma, tier]) => { const solver = m.solverFor(settings, tier, sigma); return frames.map(f => solver.solve(f).targets) }"
        answers = module_page.evaluate(solve, [frames.reshape(len(frames), -1).tolist(), sigma, tier])
        for found, wanted in zip(map(browser_answer, answers), python_answers(frames, sigma, tier)):
            gaps.append(largest_gap(found, wanted))
            if gaps[-1] < 1e-6:
                np.testing.assert_allclose(found[:, 2:], wanted[:, 2:], rtol=1e-4, atol=1e-6)
    gaps = np.array(gaps)
    assert len(gaps) == 200 and (gaps < 0.01).mean() >= 0.98 and (gaps < 1e-6).mean() >= 0.9


def test_a_wider_assumed_width_looks_at_a_wider_window(module_page):
    """Above 0.5 px the window has 7 x 7 pixels: little more light, nearly the same answer."""
    ask = """rows => [0.5, 0.501].map(sigma => m.solverFor(settings, "fast", sigma).solve(m.sensed(rows)).targets)"""
    right, wider = (browser_answer(answer) for answer in module_page.evaluate(ask, ROWS[:3]))
    assert len(right) == len(wider) == 3
    assert (abs(right[:, None, :2] - wider[None, :, :2]).max(-1).min(0) < 0.01).all()


def test_a_frame_without_light_has_no_targets(module_page):
    answer = module_page.evaluate("() => { const a = m.solverFor(settings, 'fast', 0.5).solve(new Float64Array(121)); return [a.targets.length, a.cell] }")
    assert answer == [0, None]


def test_five_targets_take_less_than_a_tenth_of_a_second(module_page):
    """The least of eight runs of each frame, because other programmes may hold the processor; median over frames."""
    frames = FocalPlane().render(random_targets(12, np.random.default_rng(8), count=(5, 5), cells=[[5, 5]] * 12))
    clock = """frames => { const solver = m.solverFor(settings, "fast", 0.5);
        const once = f => { const begin = performance.now(); solver.solve(f); return performance.now() - begin; };
        return frames.map(f => Math.min(...Array.from({ length: 8 }, () => once(f)))); }"""
    assert np.median(module_page.evaluate(clock, frames.reshape(12, -1).tolist())) < 100


def test_broken_rules_are_named(module_page):
    name = lambda targets: module_page.evaluate("t => m.brokenRules(t, settings.prior)", targets)
    assert name(ROWS[:3]) == []
    assert name([[5, 5, 240], [5.1, 5, 240]]) == ["targets 1 and 2 are 0.100 px apart, less than 0.494 px"]
    assert name([[5.0, 5.0, 240], [5.0, 5.6, 300]]) == ["target 2 outside the pixel", "target 2 not within 220 to 250 grey levels"]


# ---- the page ------------------------------------------------------------------------------------------------------------


def settled(page):
    """The explorer's state once its answer is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function("() => document.querySelector('.unmix').csist.done")
    return page.locator(".unmix").first.evaluate("e => e.csist")


def assert_same_answer(s):
    """Frame and answer as the package has them for the same targets."""
    assert_same_frame(s)
    wanted = next(python_answers(np.reshape(s["frame"], (1, 11, 11)), s["assumed"], s["tier"]))
    assert largest_gap(browser_answer(s["answer"]), wanted) < 0.02
    assert np.argmax(s["shares"]) == len(wanted) and sum(s["shares"]) == pytest.approx(1)


def test_controls_and_keys(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, UnmixingExplorer(), root=".unmix")
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    fill = lambda label, value: page.get_by_label(label, exact=True).evaluate(change, value)
    before = settled(page)
    assert before["targets"] == UnmixingExplorer().targets
    assert_same_answer(before)
    assert page.locator(".unmix-sheet .unmix-ellipse").count() == page.locator(".unmix td:last-child").count() == len(before["answer"])
    page.locator(".psfx-handle").first.focus()
    for key in ["ArrowDown", "ArrowRight", "ArrowRight", "Shift+ArrowUp"]:
        page.keyboard.press(key)
    moved = settled(page)
    np.testing.assert_allclose(np.subtract(moved["targets"][0], before["targets"][0]), [0.04, 0.10, 0], atol=1e-9)
    assert_same_answer(moved)
    scene = {"Number of targets": "4", "Selected target": "2", "its intensity": "225", "its row x": "4.9"}
    for label, value in {**scene, "Assumed sigma": "-2", "Effort": "standard", "Pixel": "0,0"}.items():
        fill(label, value)
        settled(page)
    s = settled(page)
    assert (len(s["targets"]), s["tier"], s["assumed"], s["selected"]) == (4, "standard", 0.49, 2)
    np.testing.assert_allclose(s["targets"][2], [-0.1, 0.36, 225], atol=1e-9)
    assert_same_answer(s)
    assert s["sampled"] > 0 and page.locator(".unmix-dots").count() == 1
    # On the screen the box around each ellipse is 20 sigma_y wide and 20 sigma_x high, in magnified pixels of 150 units.
    fill("Ellipses", "10")
    settled(page)
    boxes = page.locator(".unmix-ellipse").evaluate_all(
        "all => all.map(e => { const m = e.getCTM(), r = [e.rx.baseVal.value, e.ry.baseVal.value];"
        " return [Math.hypot(m.b * r[0], m.d * r[1]), Math.hypot(m.a * r[0], m.c * r[1])]; })"
    )
    np.testing.assert_allclose(boxes, 10 * 150 * browser_answer(s["answer"])[:, 3:5], rtol=0.02)
    page.get_by_label("Sampled answers").uncheck()
    settled(page)
    assert page.locator(".unmix-dots").count() == 0
    page.get_by_role("button", name="Random cluster").click()
    xy = np.array(settled(page)["targets"])[:, :2]
    assert min(np.hypot(*(a - b)) for a, b in itertools.combinations(xy, 2)) >= 0.494 and (abs(xy) <= 0.5).all()
    page.get_by_role("button", name="Reset").click()
    again = settled(page)
    assert (again["targets"], again["answer"]) == (before["targets"], before["answer"])
    assert page.errors == []
    page.close()


def test_mouse_and_touch_drag(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, UnmixingExplorer(targets=[[5.0, 5.0, 240.0]]), root=".unmix", has_touch=True, viewport={"width": 380, "height": 1600})
    pixel = page.locator(".unmix-sheet").bounding_box()["width"] * 150 / 340  # one pixel of the frame on the screen
    centre = lambda: (lambda b: (b["x"] + b["width"] / 2, b["y"] + b["height"] / 2))(page.locator(".psfx-handle .psfx-ring").first.bounding_box())
    x, y = centre()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.5 * pixel, y - 0.25 * pixel, steps=4)
    page.mouse.up()
    np.testing.assert_allclose(settled(page)["targets"][0][:2], [4.75, 5.5], atol=0.03)
    x, y = centre()
    touch = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", [(x, y)]), ("touchMove", [(x, y + 0.2 * pixel)]), ("touchMove", [(x, y + 0.5 * pixel)]), ("touchEnd", [])]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
    s = settled(page)
    np.testing.assert_allclose(s["targets"][0][:2], [5.25, 5.5], atol=0.04)
    assert_same_answer(s)
    answer, = s["answer"]
    np.testing.assert_allclose([answer["x"], answer["y"]], s["targets"][0][:2], atol=0.02)
    page.mouse.move(*centre())
    page.mouse.down()
    page.mouse.move(-500, -500)  # stays within a pixel of the middle
    page.mouse.up()
    np.testing.assert_allclose(settled(page)["targets"][0][:2], [4.0, 4.0], atol=1e-9)
    assert page.errors == []
    page.close()


def test_everything_has_a_name(browser, tmp_path):  # noqa: F811
    page = open_page(browser, tmp_path, UnmixingExplorer(), UnmixingExplorer(targets=ROWS[3:]), root=".unmix")
    assert page.evaluate("() => [...document.querySelectorAll('.unmix input, .unmix select')].filter(e => !e.labels.length).length") == 0
    roles = ".unmix [role=img], .unmix [role=slider], .unmix [role=group], .unmix [role=region]"
    assert page.evaluate("roles => [...document.querySelectorAll(roles)].filter(e => !e.getAttribute('aria-label')).length", roles) == 0
    assert page.evaluate("() => [...document.querySelectorAll('.unmix input[type=range]')].every(e => e.getAttribute('aria-valuetext'))")
    assert page.evaluate("() => [...document.querySelectorAll('.psfx-handle')].every(e => e.tabIndex === 0 && e.getAttribute('aria-valuetext'))")
    assert page.locator(".unmix [role=status][aria-live=polite]").count() == 2
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


@pytest.mark.parametrize("width", [380, 1280])
def test_fits_the_page(browser, tmp_path, width):  # noqa: F811
    style = ":root { color-scheme: dark } body { background: #121212; color: #ced6dd }"
    page = open_page(browser, tmp_path, UnmixingExplorer(targets=ROWS), root=".unmix", style=style, viewport={"width": width, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
