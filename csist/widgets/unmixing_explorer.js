// The unmixing explorer's front end: one module for JupyterLab and Colab (through anywidget) and for the static book (inlined).
// Python puts two modules before it: the PSF explorer's as the constant `psf` (optics, sensor, drawing) and the solver's as the constant `offgrid`.
// Rules kept for the static page: nothing is imported, and there is exactly one export, the default.
// Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.

const SIGMA = 0.5, BITS = 8, SIZE = 11, FULL = 2 ** BITS - 1; // as CSIST-100K
const REACH = 1; // px that targets may lie from the middle of the pixel shown
const MOST_INTENSITY = 320;
const { h, s } = psf;

// The 8-bit frame of [x, y, intensity] targets.
const sensed = (targets) => psf.digitise(psf.expected(targets, SIGMA, SIZE), BITS, true);

// A solver for one tier and one assumed width.
const solverFor = (settings, tier, sigma) => offgrid.createSolver(settings, { tier, sigma, size: SIZE, fullScale: FULL });

// Which of the solver's rules a scene breaks, in words.
function brokenRules(targets, { distance, intensity: [dim, bright] }) {
  const broken = [], near = psf.closestPair(targets);
  const names = (found) => `target${found.length > 1 ? "s" : ""} ${found.join(" and ")}`;
  const those = (test) => targets.flatMap((t, k) => (test(t) ? [k + 1] : []));
  if (near.d < distance) broken.push(`targets ${near.a + 1} and ${near.b + 1} are ${near.d.toFixed(3)} px apart, less than ${distance} px`);
  const middle = [0, 1].map((axis) => Math.round(targets.reduce((sum, t) => sum + t[axis], 0) / targets.length));
  const away = those((t) => [0, 1].some((axis) => Math.abs(t[axis] - middle[axis]) > 0.5));
  if (away.length) broken.push(`${names(away)} outside the pixel`);
  const odd = those((t) => t[2] < dim || t[2] > bright);
  if (odd.length) broken.push(`${names(odd)} not within ${dim} to ${bright} grey levels`);
  return broken;
}

const letter = (k) => String.fromCharCode(65 + k);
const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const percent = (p) => (p >= 0.995 && p < 0.9995 ? (100 * p).toFixed(1) : (100 * p).toFixed(0));
const deviation = (v) => Math.sqrt(v).toFixed(v < 1e-6 ? 4 : 3);

function render({ model, el }) {
  const id = "unmix-" + Math.random().toString(36).slice(2, 9); // several explorers per page
  const settings = model.get("solver"), { prior } = settings;
  const SCALE = 150, LEFT = 34, TOP = 22, SIDE = 2 * REACH * SCALE, WIDTH = LEFT + SIDE + 6, HEIGHT = TOP + SIDE + 6; // of the magnified pixel
  const SHOWN = 5, CELL = 44, EDGE = 20, SMALL = EDGE + SHOWN * CELL + 2; // of the frame about it
  const NAMES = ["targets", "assumed_sigma", "tier", "deviations", "samples"];
  const PLACES = { "5,5": "middle of the frame", "0,5": "upper edge", "0,0": "corner" };
  const abort = new AbortController();
  const on = (target, event, f) => target.addEventListener(event, f, { signal: abort.signal });
  const get = () => model.get("targets").map((t) => [...t]);
  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  const initial = Object.fromEntries(NAMES.map((name) => [name, name === "targets" ? get() : model.get(name)]));
  // The pixel nearest to the mean that has all targets within reach.
  const meanPixel = () => [0, 1].map((axis) => {
    const at = get().map((t) => t[axis]), mean = at.reduce((a, b) => a + b) / at.length;
    const low = Math.ceil(Math.max(...at) - REACH - 1e-9), high = Math.floor(Math.min(...at) + REACH + 1e-9);
    return Math.min(SIZE - 1, Math.max(0, Math.min(high, Math.max(low, Math.round(mean)))));
  });
  const limit = (v, axis) => Math.min(SIZE - 0.5, centre[axis] + REACH, Math.max(-0.5, centre[axis] - REACH, v));
  let centre = meanPixel(), dragging = false, handles = [], selected = 0, solver = null, solverOf = "";
  let frame = null, found = null, milliseconds = 0, pending = 0, speak = 0;

  // ---- elements ----------------------------------------------------------------------------------------------------
  const sheet = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "psfx-zoom unmix-sheet", role: "group" });
  sheet.setAttribute("aria-label", "The pixel of the cluster, magnified; its targets can be moved");
  const back = s("g", { "aria-hidden": "true" }), knobs = s("g"), front = s("g", { "aria-hidden": "true", class: "psfx-front" });
  sheet.append(back, knobs, front);
  const small = s("svg", { viewBox: `0 0 ${SMALL} ${SMALL}`, class: "psfx-zoom unmix-frame", role: "img" });
  const bars = Array.from({ length: prior.most }, (_, k) => {
    const bar = h("span", { class: "unmix-fill" }), value = h("span", { class: "unmix-value" }), truth = h("span", { class: "unmix-truth" });
    return { bar, value, truth, row: h("div", { class: "unmix-count" }, h("span", {}, k + 1), truth, h("span", { class: "unmix-bar" }, bar), value) };
  });
  const howMany = h("div", { class: "unmix-counts", role: "img" }, ...bars.map((b) => b.row));
  const readout = h("p", { class: "psfx-readout" }), rules = h("p", { class: "psfx-readout unmix-rules" });
  const live = h("p", { class: "psfx-hidden", role: "status", "aria-live": "polite" });
  const table = h("table", { class: "psfx-table" });
  const scroll = h("div", { class: "psfx-scroll psfx-bounds", tabindex: 0, role: "region", "aria-label": "The solver's answer" }, table);

  const row = (label, input, value) => {
    input.id = `${id}-${label.replace(/\W+/g, "-")}`;
    const output = h("output", { for: input.id });
    return { input, row: h("div", { class: "psfx-row" }, h("label", { for: input.id }, label), input, ...(value ? [output] : [])),
      show: (v, text, spoken = text) => { input.value = v; output.textContent = text; input.setAttribute("aria-valuetext", spoken); } };
  };
  const range = (label, min, max, step) => row(label, h("input", { type: "range", min, max, step }), true);
  const options = (pairs) => h("select", {}, ...pairs.map(([value, text]) => h("option", { value }, text)));
  const number = range("Number of targets", 1, prior.most, 1);
  const choice = row("Selected target", h("select"));
  const xAt = range("its row x", 0, 1, 0.01), yAt = range("its column y", 0, 1, 0.01), flux = range("its intensity", 0, MOST_INTENSITY, 1);
  const place = row("Pixel", options(Object.entries(PLACES)));
  const width = range("Assumed sigma", -10, 10, 0.5);
  const effort = row("Effort", options(Object.keys(settings.tiers).map((tier) => [tier, tier])));
  const ellipses = row("Ellipses", options([["1", "1 deviation"], ["3", "3 deviations"], ["10", "10 deviations"]]));
  const samples = row("Sampled answers", h("input", { type: "checkbox" }));
  const random = h("button", { type: "button" }, "Random cluster"), reset = h("button", { type: "button" }, "Reset");
  const controls = h("fieldset", { class: "psfx-controls" }, h("legend", {}, "Scene and solver"),
    h("div", { class: "psfx-columns" },
      h("div", {}, number.row, choice.row, xAt.row, yAt.row, flux.row),
      h("div", {}, place.row, width.row, effort.row, ellipses.row, samples.row, h("div", { class: "psfx-row psfx-buttons" }, random, reset))));
  const root = h("div", { class: "psfx unmix", role: "group", "aria-label": "Unmixing explorer" },
    h("div", { class: "psfx-views" },
      h("div", { class: "unmix-large" }, h("p", { class: "unmix-head" }, "truth (\u25CB) and answer (\u00D7)"), sheet),
      h("div", { class: "unmix-side" },
        h("p", { class: "unmix-head" }, "what the sensor reports"), small, h("p", { class: "unmix-head" }, "how many? (\u25CB true)"), howMany)),
    readout, rules, live, scroll, controls,
    h("p", { class: "psfx-help" }, "Drag a numbered circle, or focus it and use the arrow keys (0.05 px; with Shift 0.01 px). Lettered crosses are the "
      + "solver's answer, ellipses the standard deviations of its posterior, dots the answers that it sampled; no dots where one narrow valley needs no "
      + "sampling. The hit probability is the mean over CSO-mAP's five distances, 0.05 to 0.25 px. A yellow line joins targets nearer than the solver was "
      + "told; orange corners are saturated pixels."));
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab must not read keys pressed here as its own
  el.replaceChildren(root);

  // ---- solving -----------------------------------------------------------------------------------------------------
  function work() {
    pending = 0;
    const targets = get(), sigma = model.get("assumed_sigma"), tier = model.get("tier");
    frame = sensed(targets);
    if (solverOf !== `${tier}/${sigma}`) [solver, solverOf] = [solverFor(settings, tier, sigma), `${tier}/${sigma}`];
    const begin = performance.now();
    found = solver.solve(frame);
    milliseconds = performance.now() - begin;
    draw(targets);
  }
  const schedule = () => { if (!pending) pending = requestAnimationFrame(work); };

  // ---- drawing -----------------------------------------------------------------------------------------------------
  const down = (x) => TOP + (x - centre[0] + REACH) * SCALE, across = (y) => LEFT + (y - centre[1] + REACH) * SCALE;

  function draw(targets) {
    const vmax = Math.max(...frame, 1);
    drawSheet(vmax);
    drawHandles(targets);
    drawAnswer(targets);
    drawFrame(vmax);
    drawCounts(targets.length);
    describe(targets);
    fillTable(targets);
    showControls(targets);
  }

  const corner = (x, y, cell) => `M${y + cell - 13} ${x + 2}h11v11z`;

  function drawSheet(vmax) {
    back.replaceChildren();
    const inside = s("svg", { x: LEFT, y: TOP, width: SIDE, height: SIDE, viewBox: `${LEFT} ${TOP} ${SIDE} ${SIDE}` }); // cuts the neighbours' outer halves off
    back.append(inside);
    for (let i = centre[0] - 1; i <= centre[0] + 1; i++)
      for (let j = centre[1] - 1; j <= centre[1] + 1; j++) {
        const measured = i >= 0 && j >= 0 && i < SIZE && j < SIZE, v = measured ? frame[i * SIZE + j] : 0;
        const box = { x: across(j - 0.5), y: down(i - 0.5), width: SCALE, height: SCALE };
        inside.append(s("rect", measured ? { ...box, fill: psf.grey(v, vmax), class: "psfx-px" } : { ...box, class: "unmix-beside" }));
        if (v >= FULL) inside.append(s("path", { d: corner(box.y, box.x, SCALE), class: "psfx-saturated" }));
      }
    for (const step of [-1, -0.5, 0, 0.5, 1]) {
      back.append(s("text", { x: across(centre[1] + step), y: TOP - 6, "text-anchor": "middle", class: "psfx-tick" }, centre[1] + step));
      back.append(s("text", { x: LEFT - 5, y: down(centre[0] + step) + 4, "text-anchor": "end", class: "psfx-tick" }, centre[0] + step));
    }
  }

  function drawAnswer(targets) {
    front.replaceChildren();
    const near = psf.closestPair(targets);
    if (near.d < prior.distance) {
      const [p, q] = [targets[near.a], targets[near.b]];
      const ends = { x1: across(p[1]), y1: down(p[0]), x2: across(q[1]), y2: down(q[0]) };
      for (const kind of ["psfx-under", "psfx-link"]) front.append(s("line", { ...ends, class: kind }));
    }
    const inside = s("svg", { x: LEFT, y: TOP, width: SIDE, height: SIDE, viewBox: `${LEFT} ${TOP} ${SIDE} ${SIDE}` });
    front.append(inside);
    if (model.get("samples") && found.states.length) {
      let dots = "";
      for (const { theta, number: n } of found.states)
        for (let k = 0; k < n; k++) dots += `M${across(theta[3 * k + 1] + found.cell[1]).toFixed(1)} ${down(theta[3 * k] + found.cell[0]).toFixed(1)}h0`;
      inside.append(s("path", { d: dots, class: "unmix-dots" }));
    }
    found.targets.forEach(({ x, y, xx, yy, xy, score }, k) => {
      const { major, minor, angle } = psf.errorEllipse(xx, yy, xy), cx = across(y), cy = down(x);
      // The longer axis lies along x, down the page, before it turns by the angle towards y: to the right, against the clock.
      const [rx, ry] = [minor, major].map((half) => Math.max(1, model.get("deviations") * half * SCALE));
      const ellipse = { cx, cy, rx, ry, transform: `rotate(${(-180 / Math.PI) * angle} ${cx} ${cy})` };
      for (const kind of ["unmix-ellipse-under", "unmix-ellipse"]) inside.append(s("ellipse", { ...ellipse, class: kind }));
      for (const kind of ["unmix-cross unmix-halo", "unmix-cross"]) inside.append(s("path", { d: `M${cx - 5} ${cy - 5}l10 10m0 -10l-10 10`, class: kind }));
      const label = cx < LEFT + SIDE - 64 ? { x: cx + 11 } : { x: cx - 11, "text-anchor": "end" }; // stays on the sheet
      inside.append(s("text", { ...label, y: Math.max(TOP + 12, cy - 9), class: "unmix-letter" }, `${letter(k)} ${percent(score)}%`));
    });
  }

  function drawHandles(targets) {
    if (handles.length !== targets.length) {
      handles = targets.map((_, k) => makeHandle(k));
      knobs.replaceChildren(...handles);
    }
    handles.forEach((g, k) => {
      const [x, y, intensity] = targets[k];
      g.setAttribute("transform", `translate(${across(y)} ${down(x)})`);
      g.setAttribute("aria-valuemin", centre[0] - REACH);
      g.setAttribute("aria-valuemax", centre[0] + REACH);
      g.setAttribute("aria-valuenow", x.toFixed(2));
      g.setAttribute("aria-valuetext", `row x ${x.toFixed(2)}, column y ${y.toFixed(2)} pixels, intensity ${intensity.toFixed(0)}`);
      g.classList.toggle("psfx-selected", k === selected);
    });
  }

  function drawFrame(vmax) {
    small.replaceChildren();
    const first = centre.map((c) => Math.min(SIZE - SHOWN, Math.max(0, c - 2)));
    for (let i = 0; i < SHOWN; i++)
      for (let j = 0; j < SHOWN; j++) {
        const v = frame[(first[0] + i) * SIZE + first[1] + j], x = EDGE + j * CELL, y = EDGE + i * CELL;
        small.append(s("rect", { x, y, width: CELL, height: CELL, fill: psf.grey(v, vmax), class: "psfx-px" }));
        if (v >= FULL) small.append(s("path", { d: corner(y, x, CELL), class: "psfx-saturated" }));
        const ink = v > 0.55 * vmax ? "unmix-level unmix-dark" : "unmix-level";
        small.append(s("text", { x: x + CELL / 2, y: y + CELL / 2 + 4.5, "text-anchor": "middle", class: ink }, v));
      }
    for (let k = 0; k < SHOWN; k++) {
      small.append(s("text", { x: EDGE + (k + 0.5) * CELL, y: EDGE - 6, "text-anchor": "middle", class: "psfx-tick" }, first[1] + k));
      small.append(s("text", { x: EDGE - 6, y: EDGE + (k + 0.5) * CELL + 4, "text-anchor": "end", class: "psfx-tick" }, first[0] + k));
    }
    const saturated = frame.reduce((n, v) => n + (v >= FULL), 0);
    const middle = { x: EDGE + (centre[1] - first[1]) * CELL, y: EDGE + (centre[0] - first[0]) * CELL };
    small.append(s("rect", { ...middle, width: CELL, height: CELL, class: "unmix-window" }));
    small.setAttribute("aria-label", `Grey levels about the cluster; the brightest pixel is ${vmax}, ${plural(saturated, "pixel")} saturated`);
  }

  function drawCounts(truth) {
    const shares = bars.map((_, k) => found.shares[k + 1]);
    bars.forEach(({ bar, value, truth: mark, row: line }, k) => {
      bar.style.width = `${100 * shares[k]}%`;
      value.textContent = shares[k] > 0 && shares[k] < 0.005 ? "< 1 %" : `${percent(shares[k])} %`;
      mark.textContent = k + 1 === truth ? "\u25CB" : "";
      line.classList.toggle("unmix-chosen", k + 1 === found.targets.length);
    });
    const spoken = shares.map((share, k) => `${k + 1}, ${percent(share)} percent`).join("; ");
    howMany.setAttribute("aria-label", `Probability of each number of targets: ${spoken}`);
  }

  const nearestTruth = ({ x, y }, targets) => Math.min(...targets.map((t) => Math.hypot(t[0] - x, t[1] - y)));

  function describe(targets) {
    const count = found.targets.length, truth = targets.length, broken = brokenRules(targets, prior);
    const text = `${plural(count, "target")} found, ${count === truth ? "as many as there are" : `there ${truth === 1 ? "is" : "are"} ${truth}`}`;
    readout.replaceChildren(h("strong", {}, text), `; solved in ${milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0)} ms.`);
    rules.textContent = broken.length ? `The scene breaks what the solver was told: ${broken.join("; ")}.` : "The scene is as the solver was told.";
    rules.classList.toggle("unmix-broken", broken.length > 0);
    clearTimeout(speak); // a screen reader hears the result, not every step of a drag
    const sure = count ? ` Hit probabilities ${found.targets.map((t) => percent(t.score)).join(", ")} percent.` : "";
    speak = setTimeout(() => { live.textContent = `${text}.${sure}`; }, 800);
  }

  function fillTable(targets) {
    const names = ["answer", "hit probability", "x [px]", "y [px]", "intensity", "off by [px]"];
    const head = h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)));
    const withError = (value, square) => `${value.toFixed(3)} \u00B1 ${deviation(square)}`;
    const body = found.targets.map((t, k) => {
      const cells = [`${percent(t.score)} %`, withError(t.x, t.xx), withError(t.y, t.yy), t.intensity.toFixed(1), nearestTruth(t, targets).toFixed(3)];
      return h("tr", {}, h("th", { scope: "row" }, letter(k)), ...cells.map((text) => h("td", {}, text)));
    });
    table.replaceChildren(h("thead", {}, head), h("tbody", {}, ...body));
  }

  function showControls(targets) {
    selected = Math.min(selected, targets.length - 1);
    const t = targets[selected];
    number.show(targets.length, String(targets.length));
    if (choice.input.options.length !== targets.length) choice.input.replaceChildren(...targets.map((_, k) => h("option", { value: k }, k + 1)));
    choice.input.value = String(selected);
    for (const [axis, at] of [[0, xAt], [1, yAt]]) {
      at.input.min = limit(-Infinity, axis);
      at.input.max = limit(Infinity, axis);
      at.show(t[axis], `${t[axis].toFixed(2)} px`);
    }
    flux.show(t[2], t[2].toFixed(0));
    const key = centre.join();
    if (![...place.input.options].some((o) => o.value === key)) place.input.append(h("option", { value: key }, `(${centre.join(", ")})`));
    place.input.value = key;
    const sigma = model.get("assumed_sigma"), wrong = +(100 * (sigma / SIGMA - 1)).toFixed(1);
    const judged = wrong === 0 ? "right" : `${Math.abs(wrong)} percent too ${wrong > 0 ? "wide" : "narrow"}`;
    width.show(wrong, `${wrong > 0 ? "+" : ""}${wrong} %`.replace("-", "\u2212"), `${sigma} pixels, ${judged}`);
    effort.input.value = model.get("tier");
    ellipses.input.value = String(model.get("deviations"));
    samples.input.checked = model.get("samples");
  }

  // ---- moving targets ----------------------------------------------------------------------------------------------
  function makeHandle(k) {
    const g = s("g", { tabindex: 0, role: "slider", "aria-label": `Position of target ${k + 1}`, class: "psfx-handle" });
    g.append(s("circle", { r: 20, class: "psfx-hit" }), s("circle", { r: 11, class: "psfx-halo" }), s("circle", { r: 11, class: "unmix-under" }),
      s("circle", { r: 11, class: "psfx-ring" }), s("text", { x: -12, y: 21, "text-anchor": "end", class: "unmix-number" }, k + 1));
    const moveTo = (x, y) => {
      const all = get();
      all[k] = [limit(x, 0), limit(y, 1), all[k][2]];
      put("targets", all);
    };
    on(g, "focus", () => { if (selected !== k) { selected = k; drawHandles(get()); showControls(get()); } });
    on(g, "keydown", (event) => {
      const step = event.shiftKey ? 0.01 : 0.05;
      const direction = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      if (!direction) return;
      event.preventDefault();
      event.stopPropagation();
      const [x, y] = get()[k];
      moveTo(x + direction[0] * step, y + direction[1] * step);
    });
    // Keep the page still under the finger: CSS touch-action alone is not honoured for shapes inside an svg.
    g.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false, signal: abort.signal });
    let drag = null;
    on(g, "pointerdown", (event) => {
      event.preventDefault();
      g.focus({ preventScroll: true });
      g.setPointerCapture(event.pointerId);
      const [x, y] = get()[k];
      dragging = true;
      drag = { across: event.clientX, down: event.clientY, x, y, perPixel: WIDTH / SCALE / sheet.getBoundingClientRect().width };
    });
    on(g, "pointermove", (event) => {
      if (drag) moveTo(drag.x + (event.clientY - drag.down) * drag.perPixel, drag.y + (event.clientX - drag.across) * drag.perPixel);
    });
    for (const event of ["pointerup", "pointercancel", "lostpointercapture"]) on(g, event, () => { drag = null; dragging = false; });
    return g;
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  on(number.input, "input", () => {
    const n = +number.input.value, t = get().slice(0, n), steps = [0, -0.2, 0.2, -0.4, 0.4];
    const places = steps.flatMap((dx) => steps.map((dy) => [limit(centre[0] + dx, 0), limit(centre[1] + dy, 1)]));
    const room = (p) => Math.min(...t.map((q) => Math.hypot(p[0] - q[0], p[1] - q[1])));
    while (t.length < n) t.push([...places.reduce((a, b) => (room(b) > room(a) + 1e-9 ? b : a)), 235]); // where there is most room
    put("targets", t);
  });
  on(choice.input, "change", () => { selected = +choice.input.value; drawHandles(get()); showControls(get()); });
  const edit = (axis) => (event) => {
    const all = get();
    all[selected][axis] = +event.target.value;
    put("targets", all);
  };
  on(xAt.input, "input", edit(0));
  on(yAt.input, "input", edit(1));
  on(flux.input, "input", edit(2));
  on(width.input, "input", () => put("assumed_sigma", Math.round(SIGMA * (100 + +width.input.value) * 1000) / 1e5));
  on(effort.input, "change", () => put("tier", effort.input.value));
  on(ellipses.input, "change", () => put("deviations", +ellipses.input.value));
  on(samples.input, "change", () => put("samples", samples.input.checked));
  on(place.input, "change", () => {
    const shift = place.input.value.split(",").map((v, axis) => v - centre[axis]);
    centre = [0, 1].map((axis) => centre[axis] + shift[axis]);
    put("targets", get().map(([x, y, intensity]) => [limit(x + shift[0], 0), limit(y + shift[1], 1), intensity]));
  });
  on(random, "click", () => {
    const cluster = psf.randomCluster(get().length, centre, prior.distance);
    if (cluster) put("targets", cluster);
  });
  on(reset, "click", () => {
    selected = 0;
    for (const [name, value] of Object.entries(initial)) model.set(name, name === "targets" ? value.map((t) => [...t]) : value);
    model.save_changes();
    centre = meanPixel();
    schedule();
  });

  const changed = () => {
    const outside = get().some((t) => [0, 1].some((axis) => Math.abs(t[axis] - centre[axis]) > REACH + 1e-9));
    if (!dragging && outside) centre = meanPixel();
    schedule();
  };
  for (const name of NAMES) model.on("change:" + name, changed);
  Object.defineProperty(root, "csist", { // read by the tests
    get: () => ({
      frame: [...frame], targets: get(), sigma: SIGMA, size: SIZE, bits: BITS, clip: true, assumed: model.get("assumed_sigma"), tier: model.get("tier"),
      answer: found.targets, shares: [...found.shares], sampled: found.states.length, milliseconds, selected, done: !pending,
    }),
  });
  work();
  schedule(); // once more, for the time that it takes when the browser has compiled the solver
  return () => {
    abort.abort();
    cancelAnimationFrame(pending);
    clearTimeout(speak);
    for (const name of NAMES) model.off("change:" + name, changed);
  };
}

export default { render, sensed, solverFor, brokenRules };
