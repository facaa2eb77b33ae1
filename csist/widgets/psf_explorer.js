// The PSF explorer's front end: one module for JupyterLab and Colab (through anywidget) and for the static book (inlined).
// Rules kept for the static page: nothing is imported, and there is exactly one export, the default.
// Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.

const NS = "http://www.w3.org/2000/svg";
const RAYLEIGH_PER_SIGMA = 1.9;

// erf by its all-positive series 2/sqrt(pi) exp(-x^2) sum (2x^2)^n x / (2n+1)!!: no cancellation, double precision everywhere.
function erf(x) {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  const z = 2 * a * a;
  let term = a, sum = a;
  for (let n = 1; n < 500 && term > 1e-18 * sum; n++) {
    term *= z / (2 * n + 1);
    sum += term;
  }
  const v = Math.min(1, (2 / Math.sqrt(Math.PI)) * Math.exp(-a * a) * sum);
  return x < 0 ? -v : v;
}

// Fraction of a unit line spread at u that each pixel of one axis collects (csist.imaging.pixel_profile).
function pixelProfile(u, size, sigma) {
  const edges = Float64Array.from({ length: size + 1 }, (_, k) => erf((k - 0.5 - u) / (Math.SQRT2 * sigma)));
  return Float64Array.from({ length: size }, (_, k) => 0.5 * (edges[k + 1] - edges[k]));
}

// Analogue frame, row-major: pixel (i, j) is entry size * i + j (csist.FocalPlane.expected).
function expected(targets, sigma, size) {
  const frame = new Float64Array(size * size);
  for (const [x, y, intensity] of targets) {
    const rows = pixelProfile(x, size, sigma), columns = pixelProfile(y, size, sigma);
    for (let i = 0; i < size; i++)
      for (let j = 0; j < size; j++) frame[i * size + j] += intensity * rows[i] * columns[j];
  }
  return frame;
}

// Round half to even, like numpy.rint.
function rint(v) {
  const low = Math.floor(v), rest = v - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

// csist.FocalPlane.digitise: bits = null leaves the frame as it is.
function digitise(frame, bits, clip) {
  if (bits === null || bits === undefined) return frame;
  const ceiling = clip ? 2 ** bits - 1 : 65535;
  return frame.map((v) => Math.min(ceiling, Math.max(0, rint(v))));
}

// ---- Cramér–Rao bounds: the same formulas as csist.limits, saturated pixels censored, no prior, noise from rounding alone ----

// Derivative of pixelProfile by u (csist.imaging.pixel_profile_derivative); expm1 leaves nothing to cancel.
function pixelProfileDerivative(u, size, sigma) {
  const half = 0.5 / sigma;
  return Float64Array.from({ length: size }, (_, k) => {
    const centre = (k - u) / sigma, near = Math.abs(centre) - half;
    return -Math.sign(centre) * Math.exp(-0.5 * near * near) * Math.expm1(-2 * half * Math.abs(centre)) / (Math.sqrt(2 * Math.PI) * sigma);
  });
}

// exp(x^2) (1 - erf(x)); beyond 2 by its continued fraction, where the difference would lose digits.
function erfcx(x) {
  if (x < 2) return Math.exp(x * x) * (1 - erf(x));
  let tail = x;
  for (let n = 120; n > 0; n--) tail = x + n / 2 / tail;
  return 1 / (Math.sqrt(Math.PI) * tail);
}

// What clipping leaves of a pixel's information; margin = (threshold - expected) / noise (csist.limits, "A clipped pixel").
function shareOfInformation(margin) {
  const a = Math.min(37, Math.max(-37, margin)), density = Math.exp(-0.5 * a * a) / Math.sqrt(2 * Math.PI);
  const hazard = Math.sqrt(2 / Math.PI) / erfcx(a / Math.SQRT2), below = density * erfcx(-a / Math.SQRT2) * Math.sqrt(Math.PI / 2);
  return Math.max(0, (a > 0 ? 1 - density / hazard : below) + density * (hazard - a));
}

// Fisher information on x, y, intensity of each target, m x m with m = 3K, row-major (csist.limits.fisher_information).
function fisherInformation(targets, sigma, size, bits, clip) {
  const m = 3 * targets.length, frame = expected(targets, sigma, size), information = new Float64Array(m * m);
  const noise = Math.sqrt(1 / 12), top = clip ? 2 ** bits - 1.5 : Infinity;
  const axes = targets.map(([x, y]) => [pixelProfile, pixelProfileDerivative].flatMap((f) => [f(x, size, sigma), f(y, size, sigma)]));
  const score = new Float64Array(m);
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) {
      const scale = Math.sqrt(shareOfInformation((top - frame[i * size + j]) / noise)) / noise;
      targets.forEach(([, , intensity], k) => {
        const [rows, columns, slopeX, slopeY] = axes[k];
        score[3 * k] = scale * intensity * slopeX[i] * columns[j];
        score[3 * k + 1] = scale * intensity * rows[i] * slopeY[j];
        score[3 * k + 2] = scale * rows[i] * columns[j];
      });
      for (let a = 0; a < m; a++) for (let b = 0; b < m; b++) information[a * m + b] += score[a] * score[b];
    }
  return information;
}

// Eigenvalues and eigenvectors (columns of `vectors`) of a symmetric matrix, by Jacobi's rotations.
function eigen(matrix, m) {
  const a = Float64Array.from(matrix), vectors = new Float64Array(m * m);
  for (let k = 0; k < m; k++) vectors[k * m + k] = 1;
  const rotate = (v, p, q, c, t) => { const x = v[p], y = v[q]; v[p] = c * x - t * y; v[q] = t * x + c * y; };
  for (let sweep = 0, turned = true; turned && sweep < 60; sweep++) {
    turned = false;
    for (let p = 0; p < m; p++)
      for (let q = p + 1; q < m; q++) {
        const off = a[p * m + q];
        if (Math.abs(off) <= 1e-17 * Math.sqrt(Math.abs(a[p * m + p] * a[q * m + q]))) continue;
        turned = true;
        const ratio = (a[q * m + q] - a[p * m + p]) / (2 * off);
        const tangent = (ratio < 0 ? -1 : 1) / (Math.abs(ratio) + Math.hypot(ratio, 1)), c = 1 / Math.hypot(tangent, 1), t = c * tangent;
        for (let k = 0; k < m; k++) rotate(a, k * m + p, k * m + q, c, t);
        for (let k = 0; k < m; k++) rotate(a, p * m + k, q * m + k, c, t);
        a[p * m + q] = a[q * m + p] = 0;
        for (let k = 0; k < m; k++) rotate(vectors, k * m + p, k * m + q, c, t);
      }
  }
  return { values: Float64Array.from({ length: m }, (_, k) => a[k * m + k]), vectors };
}

// Inverse of information; a parameter that it does not determine has an infinite variance (csist.limits.covariance_bound).
function covarianceBound(information, m) {
  const UNRESOLVED = 1e-13, NONE = 1e-292;
  const known = Array.from({ length: m }, (_, k) => information[k * m + k]), informed = known.map((v) => v > NONE);
  const scale = known.map((v, k) => (informed[k] ? 1 / Math.sqrt(v) : 0));
  const unit = Float64Array.from({ length: m * m }, (_, n) => {
    const i = Math.floor(n / m), j = n % m;
    return informed[i] && informed[j] ? information[n] * scale[i] * scale[j] : +(i === j && !informed[i]);
  });
  const { values, vectors } = eigen(unit, m);
  const least = UNRESOLVED * Math.max(...values);
  const hidden = (i) => values.reduce((sum, v, k) => sum + (v <= least) * vectors[i * m + k] ** 2, 0);
  const lost = known.map((_, i) => !informed[i] || hidden(i) > UNRESOLVED);
  return Float64Array.from({ length: m * m }, (_, n) => {
    const i = Math.floor(n / m), j = n % m;
    if (lost[i] || lost[j]) return i === j ? Infinity : NaN;
    return values.reduce((sum, v, k) => (v <= least ? sum : sum + (vectors[i * m + k] * vectors[j * m + k]) / v), 0) * scale[i] * scale[j];
  });
}

// Half axes and angle from x towards y [rad] of the ellipse of a covariance (csist.limits.error_ellipse).
function errorEllipse(xx, yy, xy) {
  const largest = (xx + yy) / 2 + Math.hypot((xx - yy) / 2, xy), smallest = Math.max(xx * yy - xy * xy, 0) / (largest || 1);
  return { major: Math.sqrt(largest), minor: Math.sqrt(smallest), angle: Math.atan2(2 * xy, xx - yy) / 2 };
}

// One-sigma error ellipse of each target: { x, y, intensity: smallest deviations; major, minor [px]; angle from x towards y [rad] } (crlb, error_ellipse).
// Without rounding there is no noise and no bound: null.
function errorBounds(targets, sigma, size, bits, clip) {
  if (bits === null || bits === undefined) return null;
  const m = 3 * targets.length, covariance = covarianceBound(fisherInformation(targets, sigma, size, bits, clip), m);
  return targets.map((_, k) => {
    const at = (a, b) => covariance[(3 * k + a) * m + 3 * k + b], xx = at(0, 0), yy = at(1, 1), xy = at(0, 1);
    const bound = { x: Math.sqrt(xx), y: Math.sqrt(yy), intensity: Math.sqrt(at(2, 2)) };
    if (!(xx < Infinity && yy < Infinity))
      return { ...bound, major: Infinity, minor: Math.sqrt(Math.min(xx, yy)), angle: xx < Infinity ? Math.PI / 2 : yy < Infinity ? 0 : NaN };
    return { ...bound, ...errorEllipse(xx, yy, xy) };
  });
}

const digits = (v) => (v < 100 ? String(+v.toPrecision(3)) : v < 1e6 ? v.toFixed(0) : v < Infinity ? v.toExponential(1) : "\u221e");

function closestPair(targets) {
  let best = { d: Infinity, a: -1, b: -1 };
  for (let a = 0; a < targets.length; a++)
    for (let b = a + 1; b < targets.length; b++) {
      const d = Math.hypot(targets[a][0] - targets[b][0], targets[a][1] - targets[b][1]);
      if (d < best.d) best = { d, a, b };
    }
  return best;
}

// A cluster as in CSIST-100K: all targets in the pixel `cell`, at least `gap` apart; begun again when it gets stuck.
function randomCluster(n, cell, gap) {
  for (let attempt = 0; attempt < 500; attempt++) {
    const found = [];
    for (let draw = 0; draw < 64 && found.length < n; draw++) {
      const p = [cell[0] + Math.random() - 0.5, cell[1] + Math.random() - 0.5, 220 + 30 * Math.random()];
      if (found.every((q) => Math.hypot(p[0] - q[0], p[1] - q[1]) >= gap)) found.push(p);
    }
    if (found.length === n) return found;
  }
  return null; // no room: five targets do not fit for a very wide PSF
}

function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function s(tag, attributes = {}, text) {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

const grey = (v, vmax) => {
  const level = Math.round(255 * Math.min(1, Math.max(0, v / vmax)));
  return `rgb(${level},${level},${level})`;
};
const corner = (x, y, cell) => `M${y + 0.7 * cell} ${x + 0.04 * cell}h${0.26 * cell}v${0.26 * cell}z`; // saturated: orange triangle

function render({ model, el }) {
  const id = "psfx-" + Math.random().toString(36).slice(2, 9); // several explorers per page
  const size = model.get("size");
  const CELL = 24, MARGIN = 34, WIDTH = MARGIN + CELL * size + 2;
  const ZOOMED = 3, ZCELL = 96, ZMARGIN = 22, ZWIDTH = ZMARGIN + ZCELL * ZOOMED + 2;
  const NAMES = ["targets", "sigma", "bits", "clip", "values", "ellipses"];
  let selected = 0, dragging = false, handles = [];
  const abort = new AbortController();
  const on = (target, event, f) => target.addEventListener(event, f, { signal: abort.signal });

  const get = () => model.get("targets").map((t) => [...t]);
  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  const limit = (v) => Math.min(size - 0.5, Math.max(-0.5, v));
  const meanPixel = () => {
    const t = get();
    return [0, 1].map((k) => Math.min(size - 2, Math.max(1, Math.round(t.reduce((sum, v) => sum + v[k], 0) / t.length))));
  };
  let centre = meanPixel(); // pixel in the middle of the magnified window

  // ---- elements ----------------------------------------------------------------------------------------------------
  const main = s("svg", { viewBox: `0 0 ${WIDTH} ${WIDTH}`, class: "psfx-main", role: "img" });
  const zoom = s("svg", { viewBox: `0 0 ${ZWIDTH} ${ZWIDTH}`, class: "psfx-zoom", role: "group", "aria-label": "Magnified cluster; its targets can be moved" });
  const front = s("g", { "aria-hidden": "true", class: "psfx-front" }); // error ellipses, over the handles
  const pixels = [], corners = s("path", { class: "psfx-saturated" });
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) {
      pixels.push(s("rect", { x: MARGIN + j * CELL, y: MARGIN + i * CELL, width: CELL, height: CELL, class: "psfx-px" }));
    }
  const marks = s("g");
  main.append(...pixels, corners, marks);
  for (let k = 0; k < size; k += 5) {
    const at = MARGIN + (k + 0.5) * CELL;
    main.append(s("text", { x: MARGIN - 5, y: at + 4, "text-anchor": "end", class: "psfx-tick" }, k));
    main.append(s("text", { x: at, y: MARGIN - 5, "text-anchor": "middle", class: "psfx-tick" }, k));
  }
  const middle = MARGIN + (size * CELL) / 2;
  main.append(s("text", { x: middle, y: 12, "text-anchor": "middle", class: "psfx-axis" }, "y = column \u2192"));
  main.append(s("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(90 12 ${middle}) translate(0 8)`, class: "psfx-axis" }, "x = row \u2192"));

  const scale = h("div", { class: "psfx-scale", "aria-hidden": "true" });
  const scaleTop = h("span"), scaleBottom = h("span", {}, "0");
  scale.append(scaleBottom, h("div", { class: "psfx-bar" }), scaleTop);

  const readout = h("p", { class: "psfx-readout" });
  const bounds = h("div", { class: "psfx-bounds" });
  const live = h("p", { class: "psfx-hidden", role: "status", "aria-live": "polite" });

  const row = (label, input, value) => {
    input.id = `${id}-${label.replace(/\W+/g, "-")}`;
    const output = h("output", { for: input.id });
    return { input, row: h("div", { class: "psfx-row" }, h("label", { for: input.id }, label), input, ...(value ? [output] : [])), show: (v, text) => { input.value = v; output.textContent = text; } };
  };
  const range = (label, min, max, step) => row(label, h("input", { type: "range", min, max, step }), true);
  const number = range("Number of targets", 1, 5, 1);
  const width = range("PSF width sigma", 0.2, 1.5, 0.01);
  const choice = row("Selected target", h("select"));
  const xAt = range("its row x", -0.5, size - 0.5, 0.01);
  const yAt = range("its column y", -0.5, size - 0.5, 0.01);
  const flux = range("its intensity", 0, 400, 1);
  const depth = row("Rounding", h("select", {}, h("option", { value: "8" }, "8 bits"), h("option", { value: "12" }, "12 bits"), h("option", { value: "none" }, "none")));
  const clip = row("Clip at full scale", h("input", { type: "checkbox" }));
  const values = row("Write grey levels", h("input", { type: "checkbox" }));
  const ellipses = row("Error ellipses", h("input", { type: "checkbox" }));
  const random = h("button", { type: "button" }, "Random cluster");
  const reset = h("button", { type: "button" }, "Reset");
  const table = h("table", { class: "psfx-table" });
  const details = h("details", { class: "psfx-all" }, h("summary", {}, "All grey levels as a table"), h("div", { class: "psfx-scroll", tabindex: 0, role: "region", "aria-label": "Grey levels of all pixels" }, table));
  const controls = h("fieldset", { class: "psfx-controls" }, h("legend", {}, "Targets, optics, sensor"),
    h("div", { class: "psfx-columns" },
      h("div", {}, number.row, choice.row, xAt.row, yAt.row, flux.row),
      h("div", {}, width.row, depth.row, clip.row, values.row, ellipses.row, h("div", { class: "psfx-row psfx-buttons" }, random, reset))));
  const root = h("div", { class: "psfx", role: "group", "aria-label": "Point-spread function explorer" },
    h("div", { class: "psfx-views" }, h("div", {}, main, scale), h("div", {}, zoom)),
    readout, bounds, live, controls, details,
    h("p", { class: "psfx-help" }, "Drag a numbered target, or focus it and use the arrow keys (0.05 px; with Shift 0.01 px). "
      + "The dashed circle has the radius 1 R; an orange corner marks a saturated pixel. "
      + "Error ellipses are the Cram\u00e9r-Rao bound, one standard deviation long: at best, 39 % of the estimates fall inside if the number of targets is known, "
      + "and nothing else. Rounding is the only noise; a saturated pixel tells only that it is saturated."));
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab must not read keys pressed here as its own
  el.replaceChildren(root);
  const initial = Object.fromEntries(NAMES.map((name) => [name, name === "targets" ? get() : model.get(name)]));

  // ---- drawing -----------------------------------------------------------------------------------------------------
  const zx = (x) => ZMARGIN + (x - centre[0] + 1.5) * ZCELL; // vertical place of row x
  const zy = (y) => ZMARGIN + (y - centre[1] + 1.5) * ZCELL; // horizontal place of column y
  let speak = 0;

  function draw() {
    const targets = get(), sigma = model.get("sigma"), bits = model.get("bits") ?? null, clipped = model.get("clip");
    selected = Math.min(selected, targets.length - 1);
    if (!dragging && targets.some((t) => Math.abs(t[0] - centre[0]) > 1.5 || Math.abs(t[1] - centre[1]) > 1.5)) centre = meanPixel();
    const frame = digitise(expected(targets, sigma, size), bits, clipped);
    const vmax = Math.max(...frame, 1e-9);
    const full = bits !== null && clipped ? 2 ** bits - 1 : Infinity;
    const saturated = frame.reduce((n, v) => n + (v >= full), 0);

    const errors = model.get("ellipses") ? errorBounds(targets, sigma, size, bits, clipped) : null;

    let path = "";
    frame.forEach((v, k) => {
      pixels[k].setAttribute("fill", grey(v, vmax));
      if (v >= full) path += corner(MARGIN + Math.floor(k / size) * CELL, MARGIN + (k % size) * CELL, CELL);
    });
    corners.setAttribute("d", path);
    marks.replaceChildren(...targets.map(([x, y]) => s("circle", { cx: MARGIN + (y + 0.5) * CELL, cy: MARGIN + (x + 0.5) * CELL, r: 4, class: "psfx-truth" })),
      s("rect", { x: MARGIN + (centre[1] - 1) * CELL, y: MARGIN + (centre[0] - 1) * CELL, width: ZOOMED * CELL, height: ZOOMED * CELL, class: "psfx-window" }));
    scaleTop.textContent = vmax.toFixed(bits === null ? 1 : 0);

    drawZoom(targets, sigma, bits, frame, vmax, full, errors);
    showBounds(errors);
    describe(targets, sigma, bits, vmax, saturated);
    number.show(targets.length, targets.length);
    width.show(sigma, `${sigma.toFixed(2)} px`);
    const t = targets[selected];
    xAt.show(t[0], `${t[0].toFixed(2)} px`);
    yAt.show(t[1], `${t[1].toFixed(2)} px`);
    flux.show(t[2], t[2].toFixed(0));
    if (choice.input.options.length !== targets.length) choice.input.replaceChildren(...targets.map((_, k) => h("option", { value: k }, k + 1)));
    choice.input.value = String(selected);
    const name = bits === null ? "none" : String(bits);
    if (![...depth.input.options].some((o) => o.value === name)) depth.input.append(h("option", { value: name }, `${name} bits`));
    depth.input.value = name;
    clip.input.checked = clipped;
    clip.input.disabled = bits === null;
    values.input.checked = model.get("values");
    ellipses.input.checked = model.get("ellipses");
    if (details.open) fillTable(frame, bits);
    root.csist = { frame: [...frame], targets, sigma, size, bits, clip: clipped, selected, bounds: errors }; // read by the tests
  }

  function drawZoom(targets, sigma, bits, frame, vmax, full, errors) {
    const focused = handles.findIndex((g) => g.getRootNode().activeElement === g);
    const back = s("g", { "aria-hidden": "true" });
    for (let i = 0; i < ZOOMED; i++)
      for (let j = 0; j < ZOOMED; j++) {
        const r = centre[0] - 1 + i, c = centre[1] - 1 + j, v = frame[r * size + c];
        back.append(s("rect", { x: ZMARGIN + j * ZCELL, y: ZMARGIN + i * ZCELL, width: ZCELL, height: ZCELL, fill: grey(v, vmax), class: "psfx-px" }));
        if (v >= full) back.append(s("path", { d: corner(ZMARGIN + i * ZCELL, ZMARGIN + j * ZCELL, ZCELL), class: "psfx-saturated" }));
        if (model.get("values")) back.append(s("text", { x: ZMARGIN + j * ZCELL + 6, y: ZMARGIN + (i + 1) * ZCELL - 7, class: "psfx-value" }, v.toFixed(bits === null ? 1 : 0)));
      }
    for (let k = 0; k < ZOOMED; k++) {
      const at = ZMARGIN + (k + 0.5) * ZCELL;
      back.append(s("text", { x: at, y: ZMARGIN - 6, "text-anchor": "middle", class: "psfx-tick" }, centre[1] - 1 + k));
      back.append(s("text", { x: ZMARGIN - 6, y: at + 4, "text-anchor": "end", class: "psfx-tick" }, centre[0] - 1 + k));
    }
    const near = closestPair(targets);
    if (near.a >= 0) {
      const [p, q] = [targets[near.a], targets[near.b]];
      for (const kind of ["psfx-under", "psfx-link"]) back.append(s("line", { x1: zy(p[1]), y1: zx(p[0]), x2: zy(q[1]), y2: zx(q[0]), class: kind }));
    }
    const t = targets[selected];
    for (const kind of ["psfx-under", "psfx-rayleigh"]) back.append(s("circle", { cx: zy(t[1]), cy: zx(t[0]), r: RAYLEIGH_PER_SIGMA * sigma * ZCELL, class: kind }));
    if (handles.length !== targets.length) {
      handles = targets.map((_, k) => makeHandle(k));
      zoom.replaceChildren(back, ...handles, front);
    } else zoom.replaceChild(back, zoom.firstChild);
    front.replaceChildren();
    (errors ?? []).forEach((e, k) => {
      if (!(e.major < 20)) return; // wider than the frame, or nothing known: no ellipse, the list says so
      const [x, y] = targets[k], axes = { cx: zy(y), cy: zx(x), rx: Math.max(1, e.minor * ZCELL), ry: Math.max(1, e.major * ZCELL) };
      // The longer axis lies along x, down the page, before it turns by the angle towards y: to the right, against the clock.
      const transform = `rotate(${(-180 / Math.PI) * e.angle} ${axes.cx} ${axes.cy})`;
      for (const kind of ["psfx-ellipse-under", "psfx-ellipse"]) front.append(s("ellipse", { ...axes, transform, class: kind }));
    });
    handles.forEach((g, k) => {
      const [x, y, intensity] = targets[k];
      g.setAttribute("transform", `translate(${zy(y)} ${zx(x)})`);
      g.setAttribute("aria-valuenow", x.toFixed(2));
      g.setAttribute("aria-valuetext", `row x ${x.toFixed(2)}, column y ${y.toFixed(2)} pixels, intensity ${intensity.toFixed(0)}`);
      g.classList.toggle("psfx-selected", k === selected);
    });
    if (focused >= 0 && handles[focused]) handles[focused].focus({ preventScroll: true });
  }

  function describe(targets, sigma, bits, vmax, saturated) {
    const near = closestPair(targets), R = RAYLEIGH_PER_SIGMA * sigma;
    const pair = near.a < 0 ? "" : ` Closest pair: targets ${near.a + 1} and ${near.b + 1}, ${near.d.toFixed(3)} px = ${(near.d / R).toFixed(2)} R.`;
    const top = `Brightest pixel: ${vmax.toFixed(bits === null ? 1 : 0)}` + (saturated ? `; saturated: ${saturated} pixel${saturated > 1 ? "s" : ""}.` : ".");
    readout.textContent = `1 R = 1.9 sigma = ${R.toFixed(3)} px.${pair} ${top}`;
    main.setAttribute("aria-label", `Frame of ${size} by ${size} pixels with ${targets.length} target${targets.length > 1 ? "s" : ""}. ${top}`);
    clearTimeout(speak); // a screen reader hears the result, not every step of a drag
    speak = setTimeout(() => { live.textContent = readout.textContent; }, 600);
  }

  function showBounds(errors) {
    if (!model.get("ellipses")) return bounds.replaceChildren();
    if (!errors) return bounds.replaceChildren(h("p", {}, "Without rounding there is no noise, and no error: choose 8 or 12 bits."));
    const rows = errors.map((e, k) => h("tr", {}, h("th", { scope: "row" }, k + 1), ...[e.x, e.y, e.intensity].map((v) => h("td", {}, digits(v)))));
    const head = h("tr", {}, ...["target", "x [px]", "y [px]", "intensity"].map((name) => h("th", { scope: "col" }, name)));
    const caption = h("caption", {}, "Smallest possible error, one standard deviation");
    bounds.replaceChildren(h("table", { class: "psfx-table" }, caption, h("thead", {}, head), h("tbody", {}, ...rows)));
  }

  function fillTable(frame, bits) {
    const head = h("tr", {}, h("th", { scope: "col" }, "x \\ y"), ...Array.from({ length: size }, (_, j) => h("th", { scope: "col" }, j)));
    const body = Array.from({ length: size }, (_, i) => h("tr", {}, h("th", { scope: "row" }, i),
      ...Array.from({ length: size }, (_, j) => h("td", {}, frame[i * size + j].toFixed(bits === null ? 1 : 0)))));
    table.replaceChildren(h("thead", {}, head), h("tbody", {}, ...body));
  }

  // ---- moving targets ----------------------------------------------------------------------------------------------
  function makeHandle(k) {
    const g = s("g", { tabindex: 0, role: "slider", "aria-label": `Position of target ${k + 1}`, "aria-valuemin": -0.5, "aria-valuemax": size - 0.5, class: "psfx-handle" });
    g.append(s("circle", { r: 21, class: "psfx-hit" }), s("circle", { r: 11, class: "psfx-halo" }), s("circle", { r: 11, class: "psfx-ring" }), s("text", { "text-anchor": "middle", dy: 4.5 }, k + 1));
    const moveTo = (x, y) => {
      const all = get();
      all[k] = [limit(x), limit(y), all[k][2]];
      put("targets", all);
    };
    on(g, "focus", () => { if (selected !== k) { selected = k; draw(); } });
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
      selected = k;
      dragging = true;
      drag = { across: event.clientX, down: event.clientY, x, y, perPixel: ZWIDTH / ZCELL / zoom.getBoundingClientRect().width };
      draw();
    });
    on(g, "pointermove", (event) => {
      if (!drag) return;
      const inside = (v, c) => Math.min(c + 1.5, Math.max(c - 1.5, v)); // stay in the magnified window
      moveTo(inside(drag.x + (event.clientY - drag.down) * drag.perPixel, centre[0]), inside(drag.y + (event.clientX - drag.across) * drag.perPixel, centre[1]));
    });
    const end = () => { drag = null; dragging = false; };
    for (const event of ["pointerup", "pointercancel", "lostpointercapture"]) on(g, event, end);
    return g;
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  const recentre = () => { centre = meanPixel(); draw(); };
  on(number.input, "input", () => {
    const n = +number.input.value, t = get().slice(0, n);
    const places = [[0, 0], [0.35, 0.35], [-0.35, 0.35], [0.35, -0.35], [-0.35, -0.35]];
    const taken = ([dx, dy]) => t.some((q) => Math.hypot(q[0] - centre[0] - dx, q[1] - centre[1] - dy) < 0.2);
    while (t.length < n) {
      const [dx, dy] = places.find((p) => !taken(p)) ?? places[0];
      t.push([centre[0] + dx, centre[1] + dy, 235]);
    }
    selected = Math.min(selected, n - 1);
    put("targets", t);
  });
  const edit = (k) => (event) => {
    const t = get();
    t[selected][k] = +event.target.value;
    put("targets", t);
  };
  on(xAt.input, "input", edit(0));
  on(yAt.input, "input", edit(1));
  on(flux.input, "input", edit(2));
  on(xAt.input, "change", recentre);
  on(yAt.input, "change", recentre);
  on(width.input, "input", () => put("sigma", +width.input.value));
  on(choice.input, "change", () => { selected = +choice.input.value; draw(); });
  on(depth.input, "change", () => put("bits", depth.input.value === "none" ? null : +depth.input.value));
  on(clip.input, "change", () => put("clip", clip.input.checked));
  on(values.input, "change", () => put("values", values.input.checked));
  on(ellipses.input, "change", () => put("ellipses", ellipses.input.checked));
  on(details, "toggle", draw);
  on(random, "click", () => {
    const cluster = randomCluster(get().length, centre, Math.min(0.52 * RAYLEIGH_PER_SIGMA * model.get("sigma"), 0.6));
    if (cluster) put("targets", cluster);
  });
  on(reset, "click", () => {
    selected = 0;
    for (const [name, value] of Object.entries(initial)) model.set(name, name === "targets" ? value.map((t) => [...t]) : value);
    model.save_changes();
    recentre();
  });

  let pending = 0;
  const schedule = () => { if (!pending) pending = requestAnimationFrame(() => { pending = 0; draw(); }); };
  for (const name of NAMES) model.on("change:" + name, schedule);
  draw();
  return () => {
    abort.abort();
    cancelAnimationFrame(pending);
    clearTimeout(speak);
    for (const name of NAMES) model.off("change:" + name, schedule);
  };
}

// The other explorers build on this one: what follows `render` is theirs.
export default {
  render, expected, digitise, erf, erfcx, shareOfInformation, errorBounds, errorEllipse, pixelProfile, pixelProfileDerivative, rint, closestPair, randomCluster, grey, h, s,
};
