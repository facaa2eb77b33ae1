"""The explorer: the browser's numbers equal the package's, the static page is clean, and it can be used without a mouse."""
import itertools
import os
import re

import numpy as np
import pytest
from scipy.special import erf, erfcx

pytest.importorskip("anywidget")
import traitlets
from print_pdf import CHROMIUM_FLAGS, find_chromium

from csist.imaging import FocalPlane
from csist.limits import crlb, error_ellipse, position_covariance
from csist.scenes import Targets, random_targets
from csist.widgets import PsfExplorer, static_html
from csist.widgets.widgets import HERE

PATIENCE = 180_000  # milliseconds: a busy machine is no failure
MODULE = (HERE / "psf_explorer.js").read_text(encoding="utf8")


def need(available, message):
    """Skip with a message on a reader's machine; fail where CI promises that everything is there."""
    if not available:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        need(False, "needs playwright: pip install playwright")
    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        need(path, "needs Chromium: install it, or run `playwright install chromium`, or set CSIST_CHROMIUM to its path")
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def open_page(browser, tmp_path, *explorers, style="", root=".psfx", **options):
    """A page with explorers, opened from a file as a reader would; fails on any JavaScript error."""
    file = tmp_path / "page.html"
    body = "".join(e.static_html() for e in explorers)
    head = f'<!doctype html><html lang="en"><head><meta charset="utf8"><title>t</title><style>{style}</style></head>'
    file.write_text(f"{head}<body>{body}</body></html>", encoding="utf8")
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_function("([root, n]) => document.querySelectorAll(root).length === n", arg=[root, len(explorers)])
    return page


def state(page, index=0):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator(".psfx").nth(index).evaluate("e => e.csist")


def python_frame(s):
    rows = np.array(s["targets"])
    plane = FocalPlane((s["size"], s["size"]), s["sigma"], s["bits"], s["clip"])
    return plane.render(Targets(rows[None, :, :2], rows[None, :, 2], [len(rows)]))[0]


def assert_same_frame(s):
    np.testing.assert_allclose(np.reshape(s["frame"], (s["size"], -1)), python_frame(s), rtol=0, atol=1e-10 if s["bits"] is None else 0)


# ---- without a browser ---------------------------------------------------------------------------------------------------


def test_frame_is_that_of_the_package():
    explorer = PsfExplorer(targets=[[4.0, 7.2, 240.0], [4.4, 6.9, 230.0]], sigma=0.6, bits=12)
    scene = Targets([[[4.0, 7.2], [4.4, 6.9]]], [[240.0, 230.0]], [2])
    np.testing.assert_array_equal(explorer.frame, FocalPlane(sigma=0.6, bits=12).render(scene)[0])
    assert np.unravel_index(explorer.frame.argmax(), (11, 11)) == (4, 7)  # x is the row


def test_bounds_are_those_of_the_package():
    explorer = PsfExplorer(targets=[[5.0, 4.7, 240.0], [5.0, 5.3, 240.0]])
    np.testing.assert_array_equal(explorer.bounds, crlb(explorer.scene, FocalPlane())[0])
    explorer.bits = None
    with pytest.raises(ValueError, match="no noise"):
        _ = explorer.bounds


def test_picture_draws_ellipses_on_demand():
    assert PsfExplorer(ellipses=True).png() != PsfExplorer().png()
    assert PsfExplorer(ellipses=True, bits=None).png() == PsfExplorer(bits=None).png()  # no noise, no bound
    PsfExplorer(targets=[[5.0, 5.0, 240.0]] * 2, ellipses=True).png()  # nothing can be known: nothing is drawn, nothing fails


@pytest.mark.parametrize(
    "wrong", [{"targets": []}, {"targets": [[5, 5, 240]] * 6}, {"targets": [[5, 5]]}, {"targets": [[5, float("nan"), 1]]}, {"sigma": 5.0}, {"bits": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(traitlets.TraitError):
        PsfExplorer(**wrong)


def test_one_output_serves_lab_book_and_print():
    data, _ = PsfExplorer()._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == "PsfExplorer(2 targets, sigma=0.5 px, bits=8)"
    assert PsfExplorer().static_html() == PsfExplorer().static_html()  # stable from run to run


def test_static_html_loads_nothing():
    page = PsfExplorer().static_html()
    urls = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", re.sub(r'src="data:[^"]*"', "", page)))
    assert urls <= {"http://www.w3.org/2000/svg"}
    assert "import(" not in page and "fetch(" not in page and 'alt="' in page


@pytest.mark.parametrize(
    "module", ['import x from "y";\nexport default {};', "export const a = 1;\nexport default {};", "const a = 1;", "export default {}; // </script>"]
)
def test_static_html_refuses_modules_it_cannot_inline(module):
    with pytest.raises(ValueError, match="static_html"):
        static_html(module, "", {})


def test_static_html_escapes_its_state():
    page = static_html("export default { render() {} };", "", {"text": "</script><b>"})
    assert page.count("</script") == 1


# ---- in a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_page(browser):
    page = browser.new_page()
    page.evaluate(
        "async source => { window.m = (await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))).default }", MODULE
    )
    yield page
    page.close()


def test_erf_equals_scipy(module_page):
    x = np.concatenate([np.linspace(-7, 7, 5001), [0.0, 1e-300, -1e-9, 40.0]])
    np.testing.assert_allclose(module_page.evaluate("x => x.map(m.erf)", x.tolist()), erf(x), rtol=0, atol=1e-14)


def test_frames_equal_the_package(module_page):
    rng = np.random.default_rng(0)
    cases = []
    for bits, clip in itertools.product([None, 8, 12], [True, False]):
        for _ in range(40):
            n = int(rng.integers(1, 6))
            rows = np.column_stack([rng.uniform(-0.5, 10.5, (n, 2)), rng.uniform(0, 400, n)])
            cases.append({"targets": rows.tolist(), "sigma": rng.uniform(0.2, 1.5), "size": 11, "bits": bits, "clip": clip})
    frames = module_page.evaluate("cases => cases.map(c => [...m.digitise(m.expected(c.targets, c.sigma, c.size), c.bits, c.clip)])", cases)
    for case, frame in zip(cases, frames):
        assert_same_frame({**case, "frame": frame})


def test_erfcx_equals_scipy(module_page):
    x = np.concatenate([np.linspace(-26, 40, 2001), [2.0, np.nextafter(2.0, 0), 0.0]])
    np.testing.assert_allclose(np.array(module_page.evaluate("x => x.map(m.erfcx)", x.tolist()), dtype=float), erfcx(x), rtol=1e-12)


def test_share_of_information_equals_the_package(module_page):
    from csist.limits import _one_sided_share

    margin = np.concatenate([np.linspace(-50, 50, 2001), [-1e9, 1e9]])
    shares = module_page.evaluate("x => x.map(m.shareOfInformation)", margin.tolist())
    np.testing.assert_allclose(shares, _one_sided_share(margin), rtol=0, atol=1e-13)


def python_bounds(s):
    """Deviations of x, y, intensity and the ellipse of each target, (K, 6), from the package."""
    rows = np.array(s["targets"])
    scene, plane = Targets(rows[None, :, :2], rows[None, :, 2], [len(rows)]), FocalPlane((s["size"], s["size"]), s["sigma"], s["bits"], s["clip"])
    return np.column_stack([crlb(scene, plane)[0], *(part[0] for part in error_ellipse(position_covariance(scene, plane)))])


BOUND_NAMES = ("x", "y", "intensity", "major", "minor", "angle")


def browser_bounds(bounds):
    return np.array([[b[name] for name in BOUND_NAMES] for b in bounds], dtype=float)


def bound_cases():
    """Clusters of CSIST-100K, rounded to 8 or 12 bits, clipped or not; and the rungs of the ladder, wide PSFs, targets far apart."""
    scenes = random_targets(60, np.random.default_rng(5))
    for (bits, clip), start in zip([(8, True), (8, False), (12, True)], (0, 20, 40)):
        for i in range(start, start + 20):
            rows = np.column_stack([scenes.xy[i], scenes.intensity[i]])[: scenes.count[i]]
            yield {"targets": rows.tolist(), "sigma": 0.5, "size": 11, "bits": bits, "clip": clip}
    for d in (0.05, 0.1, 0.3, 0.494, 1.0, 3.0):
        yield {"targets": [[5.0, 5 - d / 2, 240.0], [5.1, 5 + d / 2, 230.0]], "sigma": 0.5, "size": 11, "bits": 8, "clip": True}
        yield {"targets": [[2.0, 1.0, 600.0], [2.2 + d, 7.0, 300.0], [9.9, 0.1, 20.0]], "sigma": 0.5 + d / 4, "size": 11, "bits": 8, "clip": True}


def test_bounds_equal_the_package(module_page):
    """To a millionth, wherever float64 leaves that many digits: the information matrix's condition takes the rest."""
    cases = list(bound_cases())
    call = "cases => cases.map(c => m.errorBounds(c.targets, c.sigma, c.size, c.bits, c.clip))"
    compared = 0
    for case, found in zip(cases, module_page.evaluate(call, cases)):
        wanted = python_bounds(case)
        if np.isfinite(wanted).all() and wanted[:, 3].max() < 30:
            found = browser_bounds(found)
            np.testing.assert_allclose(found[:, :5], wanted[:, :5], rtol=1e-6)
            turned = np.sin(found[:, 5] - wanted[:, 5]) * (1 - wanted[:, 4] / wanted[:, 3])  # a circle has no direction
            np.testing.assert_allclose(turned, 0, atol=1e-6)
            compared += 1
    assert compared > 0.8 * len(cases)


def test_bounds_of_the_hopeless_are_infinite(module_page):
    twins = [[5.0, 5.0, 240.0], [5.0, 5.0, 240.0], [2.0, 9.0, 240.0]]
    found = module_page.evaluate("t => m.errorBounds(t, 0.5, 11, 8, true)", twins)
    wanted = python_bounds({"targets": twins, "sigma": 0.5, "size": 11, "bits": 8, "clip": True})
    assert np.isinf([b["x"] for b in found]).tolist() == np.isinf(wanted[:, 0]).tolist() == [True, True, False]
    assert found[2]["x"] == pytest.approx(wanted[2, 0], rel=1e-6)
    assert module_page.evaluate("t => m.errorBounds(t, 0.5, 11, null, true)", twins) is None


def test_half_way_cases_round_to_even(module_page):
    values = [0.5, 1.5, 2.5, 254.5, 255.5, 300.0, -0.4]
    assert module_page.evaluate("v => m.digitise(v, 8, true)", values) == FocalPlane().digitise(np.array(values)).tolist()


def test_keys_move_the_target_along_rows_and_columns(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer())
    before = state(page)
    page.locator(".psfx-handle").first.focus()
    for key in ["ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowLeft"]:
        page.keyboard.press(key)
    after = state(page)
    np.testing.assert_allclose(np.subtract(after["targets"][0], before["targets"][0]), [0.10, 0.04, 0], atol=1e-12)
    assert_same_frame(before)
    assert_same_frame(after)
    assert page.errors == []
    page.close()


def test_two_explorers_do_not_disturb_each_other(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer(), PsfExplorer(targets=[[3.0, 8.0, 250.0]], bits=None))
    first = state(page, 0)
    page.locator(".psfx").nth(1).locator(".psfx-handle").first.focus()
    page.keyboard.press("ArrowUp")
    assert state(page, 0) == first
    assert state(page, 1)["targets"][0][0] == pytest.approx(2.95)
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.close()


def test_mouse_and_touch_drag(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer(targets=[[5.0, 5.0, 240.0]]), has_touch=True, viewport={"width": 380, "height": 1400})
    pixel = page.locator(".psfx-zoom").bounding_box()["width"] * 96 / 312  # one pixel of the frame on the screen
    centre = lambda: (lambda b: (b["x"] + b["width"] / 2, b["y"] + b["height"] / 2))(page.locator(".psfx-handle .psfx-ring").first.bounding_box())
    x, y = centre()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 0.5 * pixel, y - 0.25 * pixel, steps=5)
    page.mouse.up()
    np.testing.assert_allclose(state(page)["targets"][0][:2], [4.75, 5.5], atol=0.02)
    x, y = centre()
    touch = page.context.new_cdp_session(page)
    for kind, points in [("touchStart", [(x, y)]), ("touchMove", [(x, y + 0.2 * pixel)]), ("touchMove", [(x, y + 0.5 * pixel)]), ("touchEnd", [])]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
    np.testing.assert_allclose(state(page)["targets"][0][:2], [5.25, 5.5], atol=0.03)
    assert page.errors == []
    page.close()


def test_controls(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer())
    change = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    fill = lambda label, value: page.get_by_label(label).evaluate(change, value)
    settings = {"Number of targets": "5", "PSF width sigma": "0.8", "Rounding": "12", "its intensity": "400", "its row x": "9.8", "Selected target": "2"}
    for label, value in settings.items():
        fill(label, value)
        assert_same_frame(state(page))
    assert (len(state(page)["targets"]), state(page)["bits"], state(page)["selected"]) == (5, 12, 2)
    fill("Rounding", "none")
    assert state(page)["bits"] is None
    page.get_by_text("All grey levels as a table").click()
    page.wait_for_function("() => document.querySelectorAll('.psfx-table td').length === 121")  # the table is filled when its toggle event arrives
    page.get_by_role("button", name="Reset").click()
    assert state(page)["targets"] == PsfExplorer().targets and state(page)["bits"] == 8
    page.get_by_role("button", name="Random cluster").click()
    (a, b), rayleigh = np.array(state(page)["targets"])[:, :2], 1.9 * 0.5
    assert np.hypot(*(a - b)) >= 0.52 * rayleigh and (np.rint([a, b]) == 5).all()
    assert page.errors == []
    page.close()


def test_ellipses_follow_the_targets(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer(targets=[[4.9, 5.05, 240.0], [5.05, 4.9, 235.0]]))
    assert state(page)["bounds"] is None and page.locator(".psfx-ellipse").count() == 0
    page.get_by_label("Error ellipses").focus()
    page.keyboard.press("Space")
    page.locator(".psfx-handle").first.focus()
    for key in ["ArrowRight", "ArrowDown"]:
        page.keyboard.press(key)
    now = state(page)
    wanted = python_bounds(now)
    np.testing.assert_allclose(browser_bounds(now["bounds"])[:, :5], wanted[:, :5], rtol=1e-6)
    cells = [float(text) for text in page.locator(".psfx-bounds td").all_inner_texts()]
    np.testing.assert_allclose(np.reshape(cells, (-1, 3)), wanted[:, :3], rtol=5.1e-3)  # three digits
    # On the screen: the box around each ellipse is 2 sigma_y wide and 2 sigma_x high, in magnified pixels.
    pixel = page.locator(".psfx-zoom").bounding_box()["width"] * 96 / 312
    shapes = page.locator(".psfx-ellipse").evaluate_all(
        "all => all.map(e => { const m = e.getCTM(), r = [e.rx.baseVal.value, e.ry.baseVal.value];"
        " return [Math.hypot(m.b * r[0], m.d * r[1]), Math.hypot(m.a * r[0], m.c * r[1])]; })"
    )
    np.testing.assert_allclose(np.array(shapes) / pixel, wanted[:, :2], rtol=0.02)
    page.get_by_label("Rounding").select_option("none")
    assert state(page)["bounds"] is None and "no noise" in page.locator(".psfx-bounds").inner_text()
    assert page.errors == []
    page.close()


def test_everything_has_a_name(browser, tmp_path):
    page = open_page(browser, tmp_path, PsfExplorer())
    assert page.evaluate("() => [...document.querySelectorAll('.psfx input, .psfx select')].filter(e => !e.labels.length).length") == 0
    roles = ".psfx [role=img], .psfx [role=slider], .psfx [role=group], .psfx [role=region]"
    assert page.evaluate("roles => [...document.querySelectorAll(roles)].filter(e => !e.getAttribute('aria-label')).length", roles) == 0
    assert page.locator(".psfx [role=status][aria-live=polite]").count() == 1
    assert page.evaluate("() => [...document.querySelectorAll('.psfx-handle')].every(e => e.tabIndex === 0 && e.getAttribute('aria-valuetext'))")
    page.close()


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("style", ["", ":root { color-scheme: dark } body { background: #121212; color: #ced6dd }"])
def test_fits_the_page(browser, tmp_path, width, style):
    page = open_page(browser, tmp_path, PsfExplorer(values=True, ellipses=True), style=style, viewport={"width": width, "height": 900})
    page.get_by_text("All grey levels as a table").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
