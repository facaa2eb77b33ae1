// The ISTA explorer's front end: one module for JupyterLab and Colab (through anywidget) and for the static book (inlined).
// Python puts the PSF explorer's module before it, as the constant `psf`: optics and sensor are written down once.
// Rules kept for the static page: nothing is imported, and there is exactly one export, the default.
// Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.

const SIGMA = 0.5, BITS = 8, SIZE = 11; // as CSIST-100K
const MOST = 3000; // iterations, as in the paper's reference toolkit
const THRESHOLD = 50; // a sub-pixel of at least so many grey levels counts as a detection

// ---- the algorithm -------------------------------------------------------------------------------------------------

// Response of one axis (csist.FocalPlane.axis_matrix), size x c size, row-major; sub-pixel i is centred at (i - (c - 1) / 2) / c.
function axisMatrix(ratio, size, sigma) {
  const m = ratio * size, A = new Float64Array(size * m), w = Math.SQRT2 * sigma;
  for (let k = 0; k < size; k++)
    for (let i = 0; i < m; i++) {
      const u = (i - (ratio - 1) / 2) / ratio;
      A[k * m + i] = 0.5 * (psf.erf((k + 0.5 - u) / w) - psf.erf((k - 0.5 - u) / w));
    }
  return A;
}

// Largest eigenvalue of A A^T by repeated squaring; its square is |G|^2, because G = A (x) A.
function squaredNorm(A, n, m) {
  const M = new Float64Array(n * n);
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) for (let i = 0; i < m; i++) M[a * n + b] += A[a * m + i] * A[b * m + i];
  let P = M.slice();
  for (let round = 0; round < 40; round++) {
    const Q = new Float64Array(n * n);
    let trace = 0;
    for (let a = 0; a < n; a++) for (let c = 0; c < n; c++) for (let b = 0; b < n; b++) Q[a * n + b] += P[a * n + c] * P[c * n + b];
    for (let a = 0; a < n; a++) trace += Q[a * n + a];
    P = Q.map((v) => v / trace);
  }
  let value = 0; // trace(P M), where P is the projector on the strongest direction
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) value += P[a * n + b] * M[b * n + a];
  return value * value;
}

// One solution in progress: ISTA, or FISTA with momentum, from zero. Images are m x m, frames n x n, row-major.
function solver(frame, { ratio, sparsity, momentum, size = SIZE, sigma = SIGMA }) {
  const n = size, m = ratio * size, A = axisMatrix(ratio, n, sigma);
  const step = 1 / squaredNorm(A, n, m), shrink = sparsity * step;
  const half = new Float64Array(n * m);
  const state = { k: 0, t: 1, image: new Float64Array(m * m), predicted: new Float64Array(n * n), objective: [], step };
  const norm1 = () => state.image.reduce((sum, v) => sum + Math.abs(v), 0);
  const misfit = () => state.predicted.reduce((sum, v, k) => sum + (frame[k] - v) ** 2, 0);
  const record = () => state.objective.push(0.5 * misfit() + sparsity * norm1());
  let point = state.image.slice(), pointPredicted = state.predicted.slice(); // y, G y
  record();

  // out = A S A^T
  function forward(S, out) {
    half.fill(0);
    for (let k = 0; k < n; k++) for (let i = 0; i < m; i++) {
      const a = A[k * m + i];
      if (a !== 0) for (let j = 0; j < m; j++) half[k * m + j] += a * S[i * m + j];
    }
    for (let k = 0; k < n; k++) for (let l = 0; l < n; l++) {
      let sum = 0;
      for (let j = 0; j < m; j++) sum += half[k * m + j] * A[l * m + j];
      out[k * n + l] = sum;
    }
  }

  // s = soft(y - rho A^T (G y - z) A, lambda rho)
  state.advance = () => {
    half.fill(0);
    for (let k = 0; k < n; k++) for (let l = 0; l < n; l++) {
      const r = pointPredicted[k * n + l] - frame[k * n + l];
      for (let j = 0; j < m; j++) half[k * m + j] += r * A[l * m + j];
    }
    const image = point.slice(), predicted = new Float64Array(n * n);
    for (let k = 0; k < n; k++) for (let i = 0; i < m; i++) {
      const a = step * A[k * m + i];
      if (a !== 0) for (let j = 0; j < m; j++) image[i * m + j] -= a * half[k * m + j];
    }
    for (let q = 0; q < image.length; q++) image[q] -= Math.min(shrink, Math.max(-shrink, image[q]));
    forward(image, predicted);
    if (momentum) {
      const next = (1 + Math.sqrt(1 + 4 * state.t * state.t)) / 2, b = (state.t - 1) / next;
      point = image.map((v, q) => v + b * (v - state.image[q]));
      pointPredicted = predicted.map((v, q) => v + b * (v - state.predicted[q]));
      state.t = next;
    } else [point, pointPredicted] = [image, predicted];
    Object.assign(state, { image, predicted, k: state.k + 1 });
    record();
  };
  state.rms = () => Math.sqrt(misfit() / (n * n));
  return state;
}

// For the tests: `iterations` rounds at once.
function solve(targets, iterations, settings) {
  const frame = psf.digitise(psf.expected(targets, SIGMA, SIZE), BITS, true);
  const run = solver(frame, settings);
  while (run.k < iterations) run.advance();
  return { frame: [...frame], image: [...run.image], objective: run.objective };
}

// ---- helpers of the page -------------------------------------------------------------------------------------------

const { h: tag, s: shape } = psf;

// The slider of iterations: 0, 1, ... 10 one by one, then in equal ratios to 3000.
const POSITIONS = 110;
const countAt = (p) => (p <= 10 ? p : Math.round(10 * (MOST / 10) ** ((p - 10) / (POSITIONS - 10))));
const positionOf = (k) => (k <= 10 ? k : Math.round(10 + ((POSITIONS - 10) * Math.log(k / 10)) / Math.log(MOST / 10)));

// White is zero, orange positive, purple negative, as in the book's figures (ColorBrewer's PuOr).
const ORANGE = [[247, 247, 247], [253, 184, 99], [224, 130, 20], [127, 59, 8]], PURPLE = [[247, 247, 247], [178, 171, 210], [128, 115, 172], [45, 0, 75]];
function signedColour(v) {
  const ramp = v < 0 ? PURPLE : ORANGE, place = 3 * Math.min(1, Math.abs(v)), low = Math.min(2, Math.floor(place)), rest = place - low;
  return `rgb(${ramp[low].map((from, k) => Math.round(from + rest * (ramp[low + 1][k] - from))).join(",")})`;
}
const number = (v, digits = 3) => (v === 0 ? "0" : Math.abs(v) >= 1000 ? v.toFixed(0) : v.toPrecision(digits));

function random(n, cell, gap) {
  for (let attempt = 0; attempt < 500; attempt++) {
    const found = Array.from({ length: n }, () => [cell[0] + Math.random() - 0.5, cell[1] + Math.random() - 0.5, Math.round(220 + 30 * Math.random())]);
    if (found.every((p, k) => found.slice(0, k).every((q) => Math.hypot(p[0] - q[0], p[1] - q[1]) >= gap))) return found;
  }
  return null;
}

function render({ model, el }) {
  const id = "istax-" + Math.random().toString(36).slice(2, 9); // several explorers per page
  const SHOWN = 5, CELL = 58, MARGIN = 22, WIDTH = MARGIN + CELL * SHOWN + 2; // the magnified window, in pixels of the frame
  const NAMES = ["targets", "sparsity", "ratio", "momentum", "iterations"];
  const abort = new AbortController();
  const on = (target, event, f) => target.addEventListener(event, f, { signal: abort.signal });
  const get = () => model.get("targets").map((t) => [...t]);
  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  const meanPixel = () => {
    const t = get();
    return [0, 1].map((k) => Math.min(SIZE - 3, Math.max(2, Math.round(t.reduce((sum, v) => sum + v[k], 0) / t.length))));
  };
  const initial = Object.fromEntries(NAMES.map((name) => [name, name === "targets" ? get() : model.get(name)]));
  let centre = meanPixel(), dragging = false, handles = [], selected = 0;
  let run = null, frame = null, shown = model.get("iterations"), playing = false, ghost = null, longest = [], cells = [], pending = 0, speak = 0;

  // ---- elements ----------------------------------------------------------------------------------------------------
  const picture = (label) => shape("svg", { viewBox: `0 0 ${WIDTH} ${WIDTH}`, class: "psfx-zoom", ...label });
  const left = picture({ role: "group", "aria-label": "The frame about its cluster; the targets can be moved" });
  const right = picture({ role: "img" });
  const pixels = Array.from({ length: SHOWN * SHOWN }, (_, q) =>
    shape("rect", { x: MARGIN + (q % SHOWN) * CELL, y: MARGIN + Math.floor(q / SHOWN) * CELL, width: CELL, height: CELL, class: "psfx-px" }));
  const corners = shape("path", { class: "psfx-saturated" }), ticks = [shape("g", { "aria-hidden": "true" }), shape("g", { "aria-hidden": "true" })];
  const knobs = shape("g"), estimate = shape("g", { "aria-hidden": "true", "shape-rendering": "crispEdges" }), borders = shape("path", { class: "istax-borders" }), marks = shape("g", { "aria-hidden": "true" });
  const back = shape("g", { "aria-hidden": "true" });
  back.append(...pixels, corners);
  left.append(back, ticks[0], knobs);
  right.append(estimate, borders, ticks[1], marks);
  let lines = "";
  for (let k = 0; k <= SHOWN; k++) lines += `M${MARGIN + k * CELL} ${MARGIN}v${SHOWN * CELL}M${MARGIN} ${MARGIN + k * CELL}h${SHOWN * CELL}`;
  borders.setAttribute("d", lines);

  const CURVE = { width: 644, height: 190, left: 58, right: 8, top: 8, bottom: 34 };
  const curve = shape("svg", { viewBox: `0 0 ${CURVE.width} ${CURVE.height}`, class: "istax-curve", role: "img" });
  const axes = shape("g"), before = shape("path", { class: "istax-line istax-before" }), now = shape("path", { class: "istax-line" }), dot = shape("circle", { r: 5, class: "istax-dot" });
  curve.append(axes, before, now, dot);

  const readout = tag("p", { class: "psfx-readout" }), live = tag("p", { class: "psfx-hidden", role: "status", "aria-live": "polite" });
  const row = (label, input, value) => {
    input.id = `${id}-${label.replace(/\W+/g, "-")}`;
    const output = tag("output", { for: input.id });
    return { input, row: tag("div", { class: "psfx-row" }, tag("label", { for: input.id }, label), input, ...(value ? [output] : [])),
      show: (v, text) => { input.value = v; output.textContent = text; if (input.type === "range") input.setAttribute("aria-valuetext", text); } };
  };
  const range = (label, min, max, step) => row(label, tag("input", { type: "range", min, max, step }), true);
  const options = (pairs) => tag("select", {}, ...pairs.map(([value, text]) => tag("option", { value }, text)));
  const count = range("Number of targets", 1, 3, 1);
  const grid = row("Sub-pixel ratio c", options([["3", "3"], ["5", "5"], ["7", "7"]]));
  const method = row("Algorithm", options([["ista", "ISTA"], ["fista", "FISTA"]]));
  const weight = range("Weight lambda", -2, 2, 0.1);
  const rounds = range("Iterations", 0, POSITIONS, 1);
  const play = tag("button", { type: "button" }, "Play"), draw1 = tag("button", { type: "button" }, "Random cluster"), reset = tag("button", { type: "button" }, "Reset");
  const controls = tag("fieldset", { class: "psfx-controls" }, tag("legend", {}, "Scene, problem, algorithm"),
    tag("div", { class: "psfx-columns" },
      tag("div", {}, count.row, grid.row, method.row),
      tag("div", {}, weight.row, rounds.row, tag("div", { class: "psfx-row psfx-buttons" }, play, draw1, reset))));
  const heads = [tag("p", { class: "istax-head" }, "frame"), tag("p", { class: "istax-head" })];
  const root = tag("div", { class: "psfx istax", role: "group", "aria-label": "ISTA explorer" },
    tag("div", { class: "psfx-views" }, tag("div", {}, heads[0], left), tag("div", {}, heads[1], right)),
    readout, curve, live, controls,
    tag("p", { class: "psfx-help" }, "Drag a numbered target, or focus it and use the arrow keys (0.05 px; with Shift 0.01 px). On the right, circles are the true positions, "
      + `crosses the sub-pixels of at least ${THRESHOLD} grey levels; orange is positive, purple negative. The curve is the objective; thin, the other algorithm's last run. The sensor rounds to 8 bits and clips.`));
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab must not read keys pressed here as its own
  el.replaceChildren(root);

  // ---- solving -----------------------------------------------------------------------------------------------------
  function restart(keepGhost) {
    ghost = keepGhost ? longest : null;
    frame = psf.digitise(psf.expected(get(), SIGMA, SIZE), BITS, true);
    longest = [];
    rewind();
  }
  function rewind() {
    run = solver(frame, { ratio: model.get("ratio"), sparsity: model.get("sparsity"), momentum: model.get("momentum") });
  }
  function work() {
    pending = 0;
    if (playing && run.k >= shown) {
      shown = Math.min(MOST, Math.max(shown + 1, Math.round(shown * 1.03)));
      if (shown === MOST) stop();
    }
    if (run.k > shown) rewind();
    const begin = performance.now();
    while (run.k < shown && performance.now() - begin < 25) run.advance();
    if (run.objective.length > longest.length) longest = run.objective;
    draw();
    if (run.k < shown || playing) schedule();
  }
  const schedule = () => { if (!pending) pending = requestAnimationFrame(work); };
  function stop() {
    playing = false;
    play.textContent = "Play";
    if (model.get("iterations") !== shown) put("iterations", shown);
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------
  const down = (x) => MARGIN + (x - centre[0] + SHOWN / 2) * CELL, across = (y) => MARGIN + (y - centre[1] + SHOWN / 2) * CELL;

  function draw() {
    const targets = get(), ratio = model.get("ratio"), m = ratio * SIZE;
    const vmax = Math.max(...frame, 1), full = 2 ** BITS - 1;
    let path = "";
    pixels.forEach((e, q) => {
      const i = centre[0] - 2 + Math.floor(q / SHOWN), j = centre[1] - 2 + (q % SHOWN), v = frame[i * SIZE + j], level = Math.round((255 * v) / vmax);
      e.setAttribute("fill", `rgb(${level},${level},${level})`);
      if (v >= full) path += `M${across(j - 0.5) + 0.7 * CELL} ${down(i - 0.5) + 0.04 * CELL}h${0.26 * CELL}v${0.26 * CELL}z`;
    });
    corners.setAttribute("d", path);
    for (const g of ticks) {
      g.replaceChildren();
      for (let k = 0; k < SHOWN; k++) {
        g.append(shape("text", { x: MARGIN + (k + 0.5) * CELL, y: MARGIN - 6, "text-anchor": "middle", class: "psfx-tick" }, centre[1] - 2 + k));
        g.append(shape("text", { x: MARGIN - 6, y: MARGIN + (k + 0.5) * CELL + 4, "text-anchor": "end", class: "psfx-tick" }, centre[0] - 2 + k));
      }
    }
    drawHandles(targets);

    const n = SHOWN * ratio, unit = CELL / ratio, top = Math.max(1e-9, run.image.reduce((most, v) => Math.max(most, Math.abs(v)), 0));
    if (cells.length !== n * n) {
      cells = Array.from({ length: n * n }, (_, q) => shape("rect", { x: MARGIN + (q % n) * unit, y: MARGIN + Math.floor(q / n) * unit, width: unit, height: unit }));
      estimate.replaceChildren(...cells);
    }
    const found = [];
    cells.forEach((e, q) => e.setAttribute("fill", signedColour(run.image[((centre[0] - 2) * ratio + Math.floor(q / n)) * m + (centre[1] - 2) * ratio + (q % n)] / top)));
    run.image.forEach((v, q) => { if (v >= THRESHOLD) found.push([(Math.floor(q / m) - (ratio - 1) / 2) / ratio, ((q % m) - (ratio - 1) / 2) / ratio]); });
    marks.replaceChildren(...targets.map(([x, y]) => shape("circle", { cx: across(y), cy: down(x), r: 8, class: "psfx-truth" })),
      ...found.filter(([x, y]) => Math.abs(x - centre[0]) < 2.5 && Math.abs(y - centre[1]) < 2.5)
        .flatMap(([x, y]) => ["istax-cross istax-halo", "istax-cross"].map((kind) => shape("path", { d: `M${across(y) - 5} ${down(x) - 5}l10 10m0 -10l-10 10`, class: kind }))));

    drawCurve();
    const name = model.get("momentum") ? "FISTA" : "ISTA", plural = (k, noun) => `${k} ${noun}${k === 1 ? "" : "s"}`;
    heads[1].textContent = `after ${plural(run.k, "iteration")}: up to ${number(Math.max(0, ...run.image))}`;
    readout.textContent = `${name} after ${plural(run.k, "iteration")}: objective ${number(run.objective[run.k], 4)}, misfit ${number(run.rms())} grey levels (rms), `
      + `${plural(found.length, "sub-pixel")} of at least ${THRESHOLD} for ${plural(targets.length, "target")}.`;
    right.setAttribute("aria-label", `Estimate on the sub-pixel grid after ${plural(run.k, "iteration")}; ${plural(found.length, "detection")} for ${plural(targets.length, "target")}`);
    clearTimeout(speak); // a screen reader hears the result, not every step of the way
    speak = setTimeout(() => { live.textContent = readout.textContent; }, 600);

    count.show(targets.length, String(targets.length));
    weight.show(Math.log10(model.get("sparsity")), number(model.get("sparsity"), 2));
    rounds.show(positionOf(shown), String(shown));
    grid.input.value = String(ratio);
    method.input.value = model.get("momentum") ? "fista" : "ista";
  }

  function drawCurve() {
    const all = ghost ? [...ghost.slice(1), ...longest.slice(1)] : longest.slice(1), first = longest[0];
    const high = Math.log10(Math.max(first, 1e-3)), low = Math.log10(Math.max(1e-3, all.reduce((a, b) => Math.min(a, b), first))) - 0.05;
    const width = Math.min(CURVE.width, Math.max(280, curve.clientWidth || CURVE.width)); // as wide as the column: its letters keep their size
    curve.setAttribute("viewBox", `0 0 ${width} ${CURVE.height}`);
    const { height, left: l, right: r, top: t, bottom: b } = CURVE, span = Math.max(high - low, 0.2);
    const px = (k) => l + ((width - l - r) * Math.log10(Math.max(k, 0.7) / 0.7)) / Math.log10(MOST / 0.7); // 0 has its place at the left border
    const py = (v) => t + ((height - t - b) * (high + 0.02 - Math.log10(Math.max(v, 1e-9)))) / (span + 0.02);
    const trace = (F) => {
      let path = `M${px(0).toFixed(1)} ${py(F[0]).toFixed(1)}`;
      for (let p = 1; p <= POSITIONS && countAt(p) < F.length; p++) path += `L${px(countAt(p)).toFixed(1)} ${py(F[countAt(p)]).toFixed(1)}`;
      return path;
    };
    now.setAttribute("d", trace(longest));
    before.setAttribute("d", ghost ? trace(ghost) : "");
    dot.setAttribute("cx", px(run.k));
    dot.setAttribute("cy", py(run.objective[run.k]));
    const label = (x, y, anchor, text) => shape("text", { x, y, "text-anchor": anchor, class: "psfx-tick" }, text);
    axes.replaceChildren(shape("path", { d: `M${l} ${t}V${height - b}H${width - r}`, class: "istax-axis" }),
      ...[0, 1, 10, 100, ...(width > 450 ? [1000] : []), MOST].map((k) => label(px(k), height - b + 14, k === MOST ? "end" : "middle", k)),
      label(l + (width - l - r) / 2, height - 4, "middle", "iteration"));
    const drawn = [];
    for (let e = Math.floor(low); e <= high; e++) for (const f of [1, 2, 5]) {
      const y = py(f * 10 ** e);
      if (y > t && y < height - b + 1 && drawn.every((other) => Math.abs(other - y) > 15)) { drawn.push(y); axes.append(label(l - 6, y + 4, "end", f * 10 ** e)); }
    }
    axes.append(shape("text", { x: 12, y: (height - b) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height - b) / 2})`, class: "psfx-tick" }, "objective F"));
    curve.setAttribute("aria-label", `Objective against iterations, both logarithmic: ${number(first, 4)} at the start, ${number(run.objective[run.k], 4)} after ${run.k}`);
  }

  function drawHandles(targets) {
    if (handles.length !== targets.length) {
      handles = targets.map((_, k) => makeHandle(k));
      knobs.replaceChildren(...handles);
    }
    handles.forEach((g, k) => {
      const [x, y, intensity] = targets[k];
      g.setAttribute("transform", `translate(${across(y)} ${down(x)})`);
      g.setAttribute("aria-valuenow", x.toFixed(2));
      g.setAttribute("aria-valuetext", `row x ${x.toFixed(2)}, column y ${y.toFixed(2)} pixels, intensity ${intensity.toFixed(0)}`);
      g.classList.toggle("psfx-selected", k === selected);
    });
  }

  // ---- moving targets ----------------------------------------------------------------------------------------------
  function makeHandle(k) {
    const g = shape("g", { tabindex: 0, role: "slider", "aria-label": `Position of target ${k + 1}`, "aria-valuemin": -0.5, "aria-valuemax": SIZE - 0.5, class: "psfx-handle" });
    g.append(shape("circle", { r: 20, class: "psfx-hit" }), shape("circle", { r: 9, class: "psfx-halo" }), shape("circle", { r: 9, class: "psfx-ring" }), shape("text", { "text-anchor": "middle", dy: 4 }, k + 1));
    const inside = (v, c) => Math.min(c + 2.5, Math.max(c - 2.5, v)); // stay in the magnified window
    const moveTo = (x, y) => {
      const all = get();
      all[k] = [inside(x, centre[0]), inside(y, centre[1]), all[k][2]];
      put("targets", all);
    };
    on(g, "focus", () => { if (selected !== k) { selected = k; drawHandles(get()); } });
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
      drag = { across: event.clientX, down: event.clientY, x, y, perPixel: WIDTH / CELL / left.getBoundingClientRect().width };
    });
    on(g, "pointermove", (event) => {
      if (drag) moveTo(drag.x + (event.clientY - drag.down) * drag.perPixel, drag.y + (event.clientX - drag.across) * drag.perPixel);
    });
    for (const event of ["pointerup", "pointercancel", "lostpointercapture"]) on(g, event, () => { drag = null; dragging = false; });
    return g;
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  on(count.input, "input", () => {
    const n = +count.input.value, t = get().slice(0, n), places = [[0.3, -0.3], [-0.3, 0.3], [-0.3, -0.3], [0.3, 0.3]];
    const free = ([dx, dy]) => t.every((q) => Math.hypot(q[0] - centre[0] - dx, q[1] - centre[1] - dy) >= 0.3);
    while (t.length < n) {
      const [dx, dy] = places.find(free) ?? places[0];
      t.push([centre[0] + dx, centre[1] + dy, 235]);
    }
    selected = Math.min(selected, n - 1);
    put("targets", t);
  });
  on(weight.input, "input", () => put("sparsity", 10 ** +weight.input.value));
  on(grid.input, "change", () => put("ratio", +grid.input.value));
  on(method.input, "change", () => put("momentum", method.input.value === "fista"));
  on(rounds.input, "input", () => { if (playing) stop(); put("iterations", countAt(+rounds.input.value)); });
  on(play, "click", () => {
    if (playing) return stop();
    playing = true;
    play.textContent = "Pause";
    if (shown >= MOST) shown = 0;
    schedule();
  });
  on(draw1, "click", () => {
    const cluster = random(get().length, centre, 0.52 * 1.9 * SIGMA);
    if (cluster) put("targets", cluster);
  });
  on(reset, "click", () => {
    if (playing) stop();
    selected = 0;
    for (const [name, value] of Object.entries(initial)) model.set(name, name === "targets" ? value.map((t) => [...t]) : value);
    model.save_changes();
    centre = meanPixel();
  });

  const changed = {
    targets: () => {
      if (!dragging && get().some((t) => Math.abs(t[0] - centre[0]) > 2.5 || Math.abs(t[1] - centre[1]) > 2.5)) centre = meanPixel();
      restart(false);
      if (dragging || !playing) drawHandles(get());
    },
    sparsity: () => restart(false), ratio: () => restart(false), momentum: () => restart(true),
    iterations: () => { shown = model.get("iterations"); },
  };
  const watch = Object.fromEntries(NAMES.map((name) => [name, () => { changed[name](); schedule(); }]));
  for (const name of NAMES) model.on("change:" + name, watch[name]);
  Object.defineProperty(root, "csist", { // read by the tests
    get: () => ({ frame: [...frame], targets: get(), sigma: SIGMA, size: SIZE, bits: BITS, clip: true, ratio: model.get("ratio"), sparsity: model.get("sparsity"),
      momentum: model.get("momentum"), shown, playing, done: run.k === shown && !playing, iterations: run.k, image: [...run.image], objective: run.objective.slice(0, run.k + 1) }),
  });
  restart(false);
  work();
  return () => {
    abort.abort();
    cancelAnimationFrame(pending);
    clearTimeout(speak);
    for (const name of NAMES) model.off("change:" + name, watch[name]);
  };
}

export default { render, solve, squaredNorm, axisMatrix };
