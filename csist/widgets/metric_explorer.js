// The metric explorer's front end: one module for JupyterLab and Colab (through anywidget) and for the static book (inlined).
// Rules kept for the static page: nothing is imported, and there is exactly one export, the default.
// Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.

const NS = "http://www.w3.org/2000/svg";
const TOLERANCE = 1e-9; // px, csist.metrics.DISTANCE_TOLERANCE

// ---- the metric: csist.metrics in another language ---------------------------------------------------------------------

// Index of and distance to the nearest target, the first of equally near ones; (-1, Infinity) without any.
function nearestTarget([x, y], targets) {
  const distances = targets.map((t) => Math.hypot(t[0] - x, t[1] - y));
  const distance = Math.min(...distances);
  return { nearest: distances.findIndex((d) => d <= distance + TOLERANCE), distance };
}

// All detections of all frames by falling score; equal scores stay in the order (frame, slot), because the sort is stable.
function rankDetections(frames) {
  const all = frames.flatMap(({ detections, targets }, frame) =>
    detections.map((d, slot) => ({ frame, slot, score: d[2], ...nearestTarget(d, targets) })));
  if (all.some((d) => Number.isNaN(d.score))) throw new Error("csoMap: a score is not a number");
  return all.sort((a, b) => (a.score < b.score ? 1 : a.score > b.score ? -1 : 0));
}

// What becomes of each ranked detection at one threshold: "hit", "taken" (its nearest target is claimed already) or "far".
function outcomesAt(ranked, delta) {
  const claimed = new Set();
  return ranked.map(({ frame, nearest, distance }) => {
    if (!(distance <= delta + TOLERANCE)) return "far";
    const target = `${frame}/${nearest}`;
    if (claimed.has(target)) return "taken";
    claimed.add(target);
    return "hit";
  });
}

// Recall, precision and precision's monotone envelope after each detection.
function precisionRecall(hits, truths) {
  let found = 0, highest = 0;
  const recall = [], precision = [], envelope = [];
  hits.forEach((hit, k) => {
    found += hit;
    recall.push(found / truths);
    precision.push(found / (k + 1));
  });
  for (let k = hits.length - 1; k >= 0; k--) envelope[k] = highest = Math.max(highest, precision[k]);
  return { recall, precision, envelope };
}

// Recall grows by 1 / truths at each hit and nowhere else, so the area under the envelope is a sum over hits.
function averagePrecision(hits, truths) {
  if (!truths) return hits.length ? 0 : NaN;
  const { envelope } = precisionRecall(hits, truths);
  return hits.reduce((area, hit, k) => area + (hit ? envelope[k] : 0), 0) / truths;
}

// CSO-mAP of frames [{ detections: [[x, y, score], ...], targets: [[x, y], ...] }, ...], as csist.metrics.cso_map_from_lists.
function csoMap(frames, thresholds) {
  const ranked = rankDetections(frames), truths = frames.reduce((n, f) => n + f.targets.length, 0);
  const each = thresholds.map((delta) => {
    const outcomes = outcomesAt(ranked, delta), hits = outcomes.map((o) => o === "hit");
    return { delta, outcomes, ap: averagePrecision(hits, truths), ...precisionRecall(hits, truths) };
  });
  return { ranked, truths, each, ap: each.map((e) => e.ap), map: each.reduce((sum, e) => sum + e.ap, 0) / each.length };
}

// ---- situations to load, about the pixel (5, 5) ------------------------------------------------------------------------

const EXAMPLES = {
  "Three targets, four detections": {
    targets: [[4.8, 4.75], [4.8, 5.3], [5.3, 5.0]],
    detections: [[4.8, 4.87, 240], [4.76, 4.75, 200], [5.3, 5.18, 180], [4.8, 5.23, 150]],
  },
  "Right places, wrong order": {
    targets: [[4.75, 4.75], [4.75, 5.3], [5.3, 5.0]],
    detections: [[4.77, 4.75, 100], [4.87, 5.3, 150], [5.3, 5.22, 200]],
  },
  "Split targets": {
    targets: [[4.8, 4.7], [5.2, 5.25]],
    detections: [[4.8, 4.88, 125], [4.92, 4.7, 115], [5.2, 5.13, 120], [5.02, 5.25, 110]],
  },
  "Hedging": {
    targets: [[4.8, 4.75], [5.2, 5.2]],
    detections: [[4.9, 4.83, 240], [5.08, 5.12, 230], [4.82, 4.83, 20], [4.9, 4.75, 18], [4.82, 4.75, 16], [5.16, 5.12, 14], [5.08, 5.2, 12], [5.16, 5.2, 10]],
  },
  "Half-way between two": {
    targets: [[5.0, 4.751], [5.0, 5.249]],
    detections: [[5.0, 4.8, 240], [5.0, 4.99, 220]],
  },
};

// ---- elements ----------------------------------------------------------------------------------------------------------

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

const percent = (v) => (Number.isNaN(v) ? "\u2013" : (100 * v).toFixed(1));
const letter = (k) => String.fromCharCode(65 + k);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
// Hit and miss differ in shape as well as in colour: a round badge and a square one.
const badge = (hit, r) => (hit ? s("circle", { r, class: "metx-hit" }) : s("rect", { x: -r, y: -r, width: 2 * r, height: 2 * r, class: "metx-miss" }));

function render({ model, el }) {
  const id = "metx-" + Math.random().toString(36).slice(2, 9); // several explorers per page
  const REACH = 0.65, SCALE = 240, LEFT = 40, TOP = 34, SIDE = 2 * REACH * SCALE;
  const MOST_TARGETS = 6, MOST_DETECTIONS = 12, TOP_SCORE = 300;
  const NAMES = ["targets", "detections", "threshold"];
  const thresholds = model.get("thresholds");
  const abort = new AbortController();
  const on = (target, event, f) => target.addEventListener(event, f, { signal: abort.signal });

  const get = (name) => model.get(name).map((row) => [...row]);
  const put = (name, value) => { model.set(name, value); model.save_changes(); };
  const nameOf = ({ kind, k }) => (kind === "targets" ? `Target ${k + 1}` : `Detection ${letter(k)}`);
  const meanPixel = () => {
    const points = get("targets").length ? get("targets") : get("detections");
    return [0, 1].map((axis) => (points.length ? Math.round(points.reduce((sum, p) => sum + p[axis], 0) / points.length) : 5));
  };
  let centre = meanPixel(), dragging = false, handles = { targets: [], detections: [] };
  let selected = { kind: "detections", k: 0 };
  const limit = (v, axis) => Math.min(centre[axis] + REACH, Math.max(centre[axis] - REACH, Math.round(v * 1e4) / 1e4));
  const outside = (p) => [0, 1].some((axis) => Math.abs(p[axis] - centre[axis]) > REACH + 1e-9);

  const plan = s("svg", { viewBox: `0 0 ${LEFT + SIDE + 6} ${TOP + SIDE + 6}`, class: "metx-sheet metx-plan", role: "group" });
  const back = s("g", { "aria-hidden": "true" }), front = s("g");
  plan.append(back, front);
  const P = { left: 44, top: 12, width: 296, height: 188 };
  const curve = s("svg", { viewBox: "0 0 358 264", class: "metx-sheet metx-curve", role: "img" });

  const aps = h("div", { class: "metx-aps", role: "radiogroup", "aria-label": "Distance threshold shown, with its average precision" });
  const radios = thresholds.map((delta, k) => {
    const input = h("input", { type: "radio", name: `${id}-shown`, id: `${id}-shown-${k}`, value: k });
    const bar = h("span", { class: "metx-fill" }), value = h("span", { class: "metx-value" });
    const frame = h("span", { class: "metx-bar", "aria-hidden": "true" }, bar);
    aps.append(h("label", { for: input.id, class: "metx-ap" }, input, h("span", {}, `${delta.toFixed(2)} px`), frame, value));
    on(input, "change", () => put("threshold", delta));
    return { input, bar, value };
  });
  const mean = h("span", { class: "metx-value" }), meanBar = h("span", { class: "metx-fill" });
  const meanFrame = h("span", { class: "metx-bar", "aria-hidden": "true" }, meanBar);
  aps.append(h("div", { class: "metx-ap metx-mean" }, h("span"), h("span", {}, "mean"), meanFrame, mean));

  const readout = h("p", { class: "metx-readout" });
  const live = h("p", { class: "metx-hidden", role: "status", "aria-live": "polite" });
  const table = h("table", { class: "metx-table" });
  const tableName = "Detections by falling score, and what becomes of them at each threshold";
  const scroll = h("div", { class: "metx-scroll", tabindex: 0, role: "region", "aria-label": tableName }, table);

  const row = (label, input, value) => {
    input.id = `${id}-${label.replace(/\W+/g, "-")}`;
    const output = h("output", { for: input.id });
    const line = h("div", { class: "metx-row" }, h("label", { for: input.id }, label), input, ...(value ? [output] : []));
    return { input, row: line, show: (v, text) => { input.value = v; output.textContent = text; } };
  };
  const range = (label, min, max, step) => row(label, h("input", { type: "range", min, max, step }), true);
  const choice = row("Selected", h("select"));
  const xAt = range("its row x", 0, 1, 0.005), yAt = range("its column y", 0, 1, 0.005);
  const score = range("its score", 0, TOP_SCORE, 1);
  const exampleNames = Object.keys(EXAMPLES).map((name) => h("option", { value: name }, name));
  const example = row("Example", h("select", {}, h("option", { value: "" }, "choose"), ...exampleNames));
  const button = (text) => h("button", { type: "button" }, text);
  const addDetection = button("Add detection"), addTarget = button("Add target"), remove = button("Remove selected"), reset = button("Reset");
  const controls = h("fieldset", { class: "metx-controls" }, h("legend", {}, "Targets and detections"),
    h("div", { class: "metx-columns" },
      h("div", {}, choice.row, xAt.row, yAt.row, score.row),
      h("div", {}, example.row, h("div", { class: "metx-buttons" }, addDetection, addTarget, remove, reset))));
  const root = h("div", { class: "metx", role: "group", "aria-label": "Metric explorer" },
    h("div", { class: "metx-views" }, h("div", {}, plan), h("div", {}, curve, aps)),
    readout, live, scroll, controls,
    h("p", { class: "metx-help" }, "Drag, or focus a mark with Tab and use the arrow keys (0.02 px; with Shift 0.005 px); + and \u2212 change " +
      "a detection's score, Delete removes. Open circles are true targets, numbered; lettered badges are detections: round for a hit, square " +
      "for a false positive. The large circles are the thresholds; a dashed line leads to a target that is already claimed."));
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab must not read keys pressed here as its own
  el.replaceChildren(root);
  const initial = { targets: get("targets"), detections: get("detections"), threshold: model.get("threshold") };

  // ---- drawing -----------------------------------------------------------------------------------------------------
  const px = (p) => [LEFT + (p[1] - centre[1] + REACH) * SCALE, TOP + (p[0] - centre[0] + REACH) * SCALE]; // across, down
  let speak = 0;

  function draw() {
    const targets = get("targets"), detections = get("detections"), wanted = model.get("threshold");
    const points = [...targets, ...detections];
    if (!dragging && points.some(outside)) centre = meanPixel();
    if (!model.get(selected.kind).length) selected.kind = selected.kind === "targets" ? "detections" : "targets";
    selected.k = Math.max(0, Math.min(selected.k, model.get(selected.kind).length - 1));
    const result = csoMap([{ detections, targets }], thresholds);
    const shown = thresholds.reduce((best, t, k) => (Math.abs(t - wanted) < Math.abs(thresholds[best] - wanted) ? k : best), 0);
    drawPlan(targets, detections, result, shown);
    drawCurve(result, shown);
    radios.forEach(({ input, bar, value }, k) => {
      input.checked = k === shown;
      bar.style.width = `${100 * (result.ap[k] || 0)}%`;
      value.textContent = `AP ${percent(result.ap[k])} %`;
    });
    meanBar.style.width = `${100 * (result.map || 0)}%`;
    mean.textContent = `CSO-mAP ${percent(result.map)} %`;
    describe(targets, result, shown, points.filter(outside).length);
    fillTable(result, shown);
    showControls(targets, detections);
    const outcomes = result.each.map((e) => e.outcomes);
    const { ap, map, ranked } = result;
    root.csist = { targets, detections, thresholds, shown, ap, map, outcomes, ranked, selected: { ...selected } }; // read by the tests
  }

  function drawPlan(targets, detections, result, shown) {
    const { outcomes } = result.each[shown], place = new Map(result.ranked.map((d, rank) => [d.slot, rank]));
    back.replaceChildren(s("rect", { x: LEFT, y: TOP, width: SIDE, height: SIDE, class: "metx-field" }));
    const [x0, y0] = px([centre[0] - 0.5, centre[1] - 0.5]);
    back.append(s("rect", { x: x0, y: y0, width: SCALE, height: SCALE, class: "metx-pixel" }));
    for (const offset of [-0.5, 0, 0.5]) {
      const [across, down] = px([centre[0] + offset, centre[1] + offset]);
      back.append(s("text", { x: across, y: TOP - 6, "text-anchor": "middle", class: "metx-tick" }, centre[1] + offset));
      back.append(s("text", { x: LEFT - 6, y: down + 4, "text-anchor": "end", class: "metx-tick" }, centre[0] + offset));
    }
    const middle = LEFT + SIDE / 2;
    back.append(s("text", { x: middle, y: 12, "text-anchor": "middle", class: "metx-axis" }, "y = column [px] \u2192"));
    back.append(s("text", { "text-anchor": "middle", transform: `translate(9 ${TOP + SIDE / 2 - 60}) rotate(90)`, class: "metx-axis" }, "x = row [px] \u2192"));
    const inside = s("svg", { x: LEFT, y: TOP, width: SIDE, height: SIDE, viewBox: `${LEFT} ${TOP} ${SIDE} ${SIDE}` }); // clips what reaches over the edge
    back.append(inside);
    for (const t of targets) {
      const [cx, cy] = px(t);
      const dressed = (k) => (k === shown ? "metx-circle metx-shown" : "metx-circle");
      thresholds.forEach((delta, k) => inside.append(s("circle", { cx, cy, r: delta * SCALE, class: dressed(k) })));
    }
    result.ranked.forEach(({ slot, nearest }, rank) => {
      if (outcomes[rank] === "far") return;
      const [x1, y1] = px(detections[slot]), [x2, y2] = px(targets[nearest]);
      inside.append(s("line", { x1, y1, x2, y2, class: `metx-link metx-${outcomes[rank]}-link` }));
    });
    const focused = [...handles.targets, ...handles.detections].some((g) => g.getRootNode().activeElement === g);
    if (handles.targets.length !== targets.length || handles.detections.length !== detections.length) {
      const make = (kind, all) => all.map((_, k) => makeHandle(kind, k));
      handles = { targets: make("targets", targets), detections: make("detections", detections) };
      front.replaceChildren(...handles.targets, ...handles.detections);
    }
    const found = new Set(result.ranked.filter((_, rank) => outcomes[rank] === "hit").map((d) => d.nearest));
    const about = (p) => `row x ${p[0].toFixed(3)}, column y ${p[1].toFixed(3)} pixels`;
    const dress = (g, p, kind, k, text) => {
      const [across, down] = px(p);
      g.setAttribute("transform", `translate(${across} ${down})`);
      g.setAttribute("visibility", outside(p) ? "hidden" : "visible");
      g.setAttribute("aria-valuemin", centre[0] - REACH);
      g.setAttribute("aria-valuemax", centre[0] + REACH);
      g.setAttribute("aria-valuenow", p[0].toFixed(3));
      g.setAttribute("aria-valuetext", `${about(p)}, ${text}`);
      g.classList.toggle("metx-selected", selected.kind === kind && selected.k === k);
    };
    targets.forEach((t, k) => {
      handles.targets[k].classList.toggle("metx-found", found.has(k));
      dress(handles.targets[k], t, "targets", k, found.has(k) ? "found" : "missed");
    });
    detections.forEach((d, k) => {
      const rank = place.get(k), { nearest, distance } = result.ranked[rank], outcome = outcomes[rank], g = handles.detections[k];
      const text = { hit: `hit of target ${nearest + 1}`, taken: `false positive, target ${nearest + 1} is claimed`, far: "false positive, too far" }[outcome];
      const where = Number.isFinite(distance) ? `${distance.toFixed(3)} pixels from target ${nearest + 1}, ` : "";
      g.replaceChild(badge(outcome === "hit", outcome === "hit" ? 8.5 : 7.5), g.querySelector(".metx-hit, .metx-miss"));
      dress(g, d, "detections", k, `score ${d[2]}, rank ${rank + 1}, ${where}${text}`);
    });
    plan.setAttribute("aria-label", `Pixel with ${plural(targets.length, "target")} and ${plural(detections.length, "detection")}; they can be moved`);
    if (focused) handles[selected.kind][selected.k]?.focus({ preventScroll: true });
  }

  function drawCurve(result, shown) {
    const across = (recall) => P.left + recall * P.width, down = (precision) => P.top + (1 - precision) * P.height;
    const steps = ({ outcomes, recall, envelope }) => {
      let path = "";
      outcomes.forEach((o, k) => {
        if (o === "hit") path += `${path ? "L" : "M"}${across(recall[k] - 1 / result.truths)} ${down(envelope[k])}H${across(recall[k])}`;
      });
      return path;
    };
    curve.replaceChildren();
    for (let k = 0; k <= 4; k++) {
      curve.append(s("line", { x1: across(k / 4), x2: across(k / 4), y1: down(0), y2: down(1), class: "metx-rule" }));
      curve.append(s("line", { x1: across(0), x2: across(1), y1: down(k / 4), y2: down(k / 4), class: "metx-rule" }));
      curve.append(s("text", { x: across(k / 4), y: down(0) + 16, "text-anchor": "middle", class: "metx-tick" }, k / 4));
      curve.append(s("text", { x: across(0) - 6, y: down(k / 4) + 4, "text-anchor": "end", class: "metx-tick" }, k / 4));
    }
    curve.append(s("text", { x: across(0.5), y: down(0) + 34, "text-anchor": "middle", class: "metx-axis" }, "recall"));
    curve.append(s("text", { transform: `translate(11 ${down(0.5)}) rotate(-90)`, "text-anchor": "middle", class: "metx-axis" }, "precision"));
    const one = result.each[shown];
    if (result.truths) {
      result.each.forEach((e, k) => { if (k !== shown) curve.append(s("path", { d: steps(e) || "M0 0", class: "metx-other" })); });
      const path = steps(one);
      if (path) {
        const lowest = one.outcomes.lastIndexOf("hit"), last = one.recall[lowest];
        curve.append(s("path", { d: `${path}V${down(0)}H${across(0)}Z`, class: "metx-area" }), s("path", { d: path, class: "metx-envelope" }));
        const drop = { x1: across(last), x2: across(last), y1: down(one.envelope[lowest]), y2: down(0) };
        if (last < 1) curve.append(s("line", { ...drop, class: "metx-envelope metx-drop" }));
      }
      one.outcomes.forEach((o, k) => {
        const g = s("g", { transform: `translate(${across(one.recall[k])} ${down(one.precision[k])})` });
        g.append(badge(o === "hit", 4.5), s("text", { x: 8, y: 13, class: "metx-letter" }, letter(result.ranked[k].slot)));
        curve.append(g);
      });
    }
    const note = `blue: envelope at ${one.delta.toFixed(2)} px, area = AP ${percent(one.ap)} %`;
    curve.append(s("text", { x: across(0.5), y: 257, "text-anchor": "middle", class: "metx-axis" }, note));
    curve.setAttribute("aria-label", `Precision against recall at ${one.delta.toFixed(2)} pixels; the area under the envelope is ${percent(one.ap)} percent`);
  }

  function describe(targets, result, shown, hidden) {
    const { delta, outcomes, ap } = result.each[shown], hits = outcomes.filter((o) => o === "hit").length;
    const counts = `${plural(hits, "hit")}, ${plural(outcomes.length - hits, "false positive")}, ${plural(targets.length - hits, "target")} missed`;
    const lost = hidden ? ` ${plural(hidden, "mark")} outside the picture.` : "";
    readout.textContent = `At ${delta.toFixed(2)} px: ${counts}, AP ${percent(ap)} %. CSO-mAP ${percent(result.map)} %.${lost}`;
    clearTimeout(speak); // a screen reader hears the result, not every step of a drag
    speak = setTimeout(() => { live.textContent = readout.textContent; }, 600);
  }

  function fillTable(result, shown) {
    const place = (k) => k === undefined ? "" : `metx-threshold${k === shown ? " metx-column" : ""}`;
    const th = (text, k) => h("th", { scope: "col", class: place(k) }, text);
    const head = h("tr", {}, ...["rank", "detection", "score", "nearest target", "distance [px]"].map((text) => th(text)),
      ...thresholds.map((t, k) => th(`${t.toFixed(2)} px`, k)));
    const cell = (o, k) => h("td", { class: `metx-cell-${o} ${place(k)}` }, o === "hit" ? "\u25CF hit" : o);
    const body = result.ranked.map(({ slot, score, nearest, distance }, rank) => h("tr", {},
      h("td", {}, rank + 1), h("th", { scope: "row" }, letter(slot)), h("td", {}, Math.round(score * 100) / 100),
      h("td", {}, nearest < 0 ? "\u2013" : nearest + 1), h("td", {}, Number.isFinite(distance) ? distance.toFixed(3) : "\u2013"),
      ...result.each.map(({ outcomes }, k) => cell(outcomes[rank], k))));
    const foot = h("tr", {}, h("th", { scope: "row", colspan: 5 }, "average precision [%]"),
      ...result.ap.map((ap, k) => h("td", { class: place(k) }, percent(ap))));
    table.replaceChildren(h("thead", {}, head), h("tbody", {}, ...body), h("tfoot", {}, foot));
  }

  function showControls(targets, detections) {
    const all = [...detections.map((_, k) => ({ kind: "detections", k })), ...targets.map((_, k) => ({ kind: "targets", k }))];
    const names = all.map(nameOf).join();
    if (choice.input.dataset.names !== names) {
      choice.input.replaceChildren(...all.map((item) => h("option", { value: `${item.kind}/${item.k}` }, nameOf(item))));
      choice.input.dataset.names = names;
    }
    choice.input.value = `${selected.kind}/${selected.k}`;
    const p = model.get(selected.kind)[selected.k];
    for (const [axis, at] of [[0, xAt], [1, yAt]]) {
      at.input.min = centre[axis] - REACH;
      at.input.max = centre[axis] + REACH;
      at.input.disabled = !p;
      if (p) at.show(p[axis], `${p[axis].toFixed(3)} px`);
    }
    score.input.disabled = !p || selected.kind === "targets";
    if (p) score.show(p[2] ?? 0, p[2] === undefined ? "none" : String(Math.round(p[2] * 100) / 100));
    remove.disabled = !p;
    addTarget.disabled = targets.length >= MOST_TARGETS;
    addDetection.disabled = detections.length >= MOST_DETECTIONS;
  }

  // ---- moving ------------------------------------------------------------------------------------------------------
  function change(kind, k, value) {
    const all = get(kind);
    all[k] = value;
    put(kind, all);
  }
  const moveTo = (kind, k, x, y) => change(kind, k, [limit(x, 0), limit(y, 1), ...get(kind)[k].slice(2)]);
  const choose = (kind, k) => { if (selected.kind !== kind || selected.k !== k) { selected = { kind, k }; draw(); } };
  const drop = (kind, k) => put(kind, get(kind).filter((_, other) => other !== k));

  function makeHandle(kind, k) {
    const name = kind === "targets" ? "metx-target" : "metx-detection";
    const title = `Position of ${nameOf({ kind, k }).replace(/^./, (c) => c.toLowerCase())}`;
    const g = s("g", { tabindex: 0, role: "slider", "aria-label": title, "aria-valuenow": 0, class: `metx-handle ${name}` });
    g.append(s("circle", { r: 17, class: "metx-grip" }), s("circle", { r: 14.5, class: "metx-halo" }));
    if (kind === "targets") g.append(s("circle", { r: 9, class: "metx-ring" }), s("text", { x: -9, y: 20, "text-anchor": "end", class: "metx-number" }, k + 1));
    else {
      g.append(s("rect", { class: "metx-miss" }), s("path", { d: "M-4 -4L4 4M-4 4L4 -4", class: "metx-cross" }));
      g.append(s("text", { x: 11, y: -8, class: "metx-letter" }, letter(k)));
    }
    on(g, "focus", () => choose(kind, k));
    on(g, "keydown", (event) => {
      const p = get(kind)[k], step = event.shiftKey ? 0.005 : 0.02;
      const direction = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
      const louder = { "+": 5, "=": 5, "-": -5, "_": -5, "\u2212": -5 }[event.key];
      if (direction) moveTo(kind, k, p[0] + direction[0] * step, p[1] + direction[1] * step);
      else if (louder && kind === "detections") change(kind, k, [p[0], p[1], Math.min(TOP_SCORE, Math.max(0, p[2] + louder))]);
      else if (event.key === "Delete" || event.key === "Backspace") drop(kind, k);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    // Keep the page still under the finger: CSS touch-action alone is not honoured for shapes inside an svg.
    g.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false, signal: abort.signal });
    let drag = null;
    on(g, "pointerdown", (event) => {
      event.preventDefault();
      g.focus({ preventScroll: true });
      g.setPointerCapture(event.pointerId);
      const [x, y] = get(kind)[k];
      dragging = true;
      drag = { across: event.clientX, down: event.clientY, x, y, perPixel: (LEFT + SIDE + 6) / SCALE / plan.getBoundingClientRect().width };
      choose(kind, k);
    });
    on(g, "pointermove", (event) => {
      if (drag) moveTo(kind, k, drag.x + (event.clientY - drag.down) * drag.perPixel, drag.y + (event.clientX - drag.across) * drag.perPixel);
    });
    const end = () => { drag = null; dragging = false; };
    for (const event of ["pointerup", "pointercancel", "lostpointercapture"]) on(g, event, end);
    return g;
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  on(choice.input, "change", () => {
    const [kind, k] = choice.input.value.split("/");
    choose(kind, +k);
  });
  const edit = (axis) => (event) => {
    const p = get(selected.kind)[selected.k];
    if (p) { p[axis] = +event.target.value; change(selected.kind, selected.k, p); }
  };
  on(xAt.input, "input", edit(0));
  on(yAt.input, "input", edit(1));
  on(score.input, "input", edit(2));
  const add = (kind, ...more) => {
    const all = get(kind), taken = [...get("targets"), ...get("detections")];
    const steps = [0, 0.4, -0.4], places = steps.flatMap((dx) => steps.map((dy) => [centre[0] + dx, centre[1] + dy]));
    const room = (p) => Math.min(1, ...taken.map((q) => Math.hypot(p[0] - q[0], p[1] - q[1])));
    const best = places.reduce((a, b) => (room(b) > room(a) + 1e-9 ? b : a));
    selected = { kind, k: all.length };
    put(kind, [...all, [...best, ...more]]);
  };
  on(addDetection, "click", () => add("detections", 100));
  on(addTarget, "click", () => add("targets"));
  on(remove, "click", () => drop(selected.kind, selected.k));
  const load = (state) => {
    selected = { kind: "detections", k: 0 };
    for (const [name, value] of Object.entries(state)) model.set(name, name === "threshold" ? value : value.map((p) => [...p]));
    model.save_changes();
    centre = meanPixel();
    draw();
  };
  on(example.input, "change", () => {
    const chosen = EXAMPLES[example.input.value];
    if (chosen) load(chosen);
  });
  on(reset, "click", () => { example.input.value = ""; load(initial); });

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

export default { render, csoMap, averagePrecision, precisionRecall, EXAMPLES };
