// The model viewer's front end: one module for JupyterLab and Colab (through anywidget) and for the static book (inlined).
// Rules kept for the static page: nothing is imported, and there is exactly one export, the default.
// Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.
// It computes no answers and no scores: csist.widgets.model_viewer.viewer_data has done that.

const NS = "http://www.w3.org/2000/svg";
const SIDE = 290, MARGIN = 22; // of the large pictures, in units of their own
const TEMPO = 900; // milliseconds that a stage stays when they play

// ---- what the data hold --------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

// One sub-pixel image of the window, row-major: low + step * level, as csist.widgets.model_viewer.unpack.
function unpack(method, levels, frame, stage, side) {
  const low = method.low[frame][stage], step = method.step[frame][stage], n = side * side;
  const start = (frame * method.low[frame].length + stage) * n;
  return Array.from(levels.subarray(start, start + n), (level) => low + step * level);
}

// ---- helpers of the page -------------------------------------------------------------------------------------------

function tag(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

function shape(name, attributes = {}, ...children) {
  const e = document.createElementNS(NS, name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// Squares of n x n colours as a picture, small and quick: the style sheet keeps it from blurring when the page scales it.
function bitmap(colours) {
  const n = Math.sqrt(colours.length), k = 4, canvas = tag("canvas", { width: n * k, height: n * k }), pen = canvas.getContext("2d");
  colours.forEach((colour, q) => {
    pen.fillStyle = colour;
    pen.fillRect((q % n) * k, Math.floor(q / n) * k, k, k);
  });
  return canvas.toDataURL();
}

const grey = (v) => `rgb(${v},${v},${v})`;
const plural = (k, noun) => `${k} ${noun}${k === 1 ? "" : "s"}`;
const signed = (v, digits = 0) => v.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1").replace("-", "\u2212");

function render({ model, el }) {
  const id = "modv-" + Math.random().toString(36).slice(2, 9); // several viewers per page
  const data = model.get("data"), { size, window: WINDOW, palette } = data, pixels = bytes(data.pixels);
  const levels = data.methods.map((m) => (m.levels ? bytes(m.levels) : null));
  const NAMES = ["frame", "method", "stage"];
  const abort = new AbortController();
  const on = (target, event, f, options = {}) => target.addEventListener(event, f, { signal: abort.signal, ...options });
  const put = (name, value) => { if (model.get(name) !== value) { model.set(name, value); model.save_changes(); } };
  let close = true, timer = 0, speak = 0, pending = 0, thumbsOf = null, image = null;

  const place = () => Math.max(0, data.frames.findIndex((f) => f.number === model.get("frame")));
  const chosen = () => Math.max(0, data.methods.findIndex((m) => m.name === model.get("method")));
  const last = (m) => data.methods[m].points[0].length - 1;
  const shownStage = (m) => { const s = model.get("stage"); return s < 0 ? last(m) : Math.min(s, last(m)); };
  const levelAt = (k, i, j) => pixels[(k * size + i) * size + j];

  // ---- elements ----------------------------------------------------------------------------------------------------
  const button = (text, label) => tag("button", { type: "button", ...(label ? { "aria-label": label, title: label } : {}) }, text);
  const previous = button("\u25C0", "Previous frame"), next = button("\u25B6", "Next frame"), play = button("Play stages");
  const select = tag("select", { id: `${id}-frame` });
  const groups = {};
  data.frames.forEach((f) => {
    const n = f.targets.length;
    if (!groups[n]) select.append((groups[n] = tag("optgroup", { label: plural(n, "target") })));
    const words = [`frame ${f.number}: ${plural(n, "target")}`, f.border ? "at the border" : "inside", ...(f.why === "hardest" ? ["hardest of its kind"] : [])];
    groups[n].append(tag("option", { value: f.number }, words.join(", ")));
  });
  const map = shape("svg", { viewBox: `-0.5 -0.5 ${size} ${size}`, class: "modv-map", role: "img" });
  const bar = tag("div", { class: "modv-bar" }, tag("div", { class: "modv-pick" }, tag("label", { for: select.id }, "Test frame"), tag("div", { class: "modv-pair" }, previous, select, next)), map);

  const sheet = () => shape("svg", { viewBox: `0 0 ${MARGIN + SIDE + 2} ${MARGIN + SIDE + 2}`, class: "modv-sheet", role: "img" });
  const left = sheet(), right = sheet(), heads = [tag("p", { class: "modv-head" }), tag("p", { class: "modv-head" })];
  const slider = tag("input", { type: "range", min: 0, step: 1, id: `${id}-stage` }), stageText = tag("output", { for: slider.id });
  const stages = tag("div", { class: "modv-row" }, tag("label", { for: slider.id }, "Stage"), slider, stageText, play);
  const zoom = tag("input", { type: "checkbox", id: `${id}-zoom` });
  const probe = tag("span", { class: "modv-probe" });
  const under = tag("div", { class: "modv-under" }, tag("span", {}, zoom, tag("label", { for: zoom.id }, `${WINDOW} \u00D7 ${WINDOW} pixels`)), probe);
  const readout = tag("p", { class: "modv-readout" }), live = tag("p", { class: "modv-hidden", role: "status", "aria-live": "polite" });

  const thumbs = data.methods.map((m, k) => {
    const input = tag("input", { type: "radio", name: `${id}-method`, value: m.name, class: "modv-radio" });
    const picture = shape("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "modv-thumb", "aria-hidden": "true" });
    const name = tag("span", { class: "modv-name" }, m.label), result = tag("span", { class: "modv-result" });
    const dot = tag("span", { class: "modv-dot", style: `background:${m.colour}` });
    const label = tag("label", { class: "modv-choice" }, input, picture, tag("span", { class: "modv-title" }, dot, name), result);
    on(input, "change", () => put("method", data.methods[k].name));
    return { input, picture, result, label };
  });
  const gallery = tag("fieldset", { class: "modv-gallery" }, tag("legend", {}, "All answers for this frame"), tag("div", { class: "modv-grid" }, ...thumbs.map((t) => t.label)));
  const table = tag("table", { class: "modv-table" });
  const details = tag("details", { class: "modv-details" }, tag("summary", {}, "Positions and errors in numbers"), tag("div", { class: "modv-scroll", tabindex: 0, role: "region", "aria-label": "Positions and errors" }, table));
  const coarsest = Math.max(0, ...data.methods.filter((m) => m.step).flatMap((m) => m.step.map((s) => s[s.length - 1])));
  const help = tag("p", { class: "modv-help" },
    `Circles are the true targets, crosses the detections: sub-pixels of at least ${data.threshold} grey levels`
    + (data.methods.every((m) => m.ratio) ? ". " : ", or the positions that a method without a grid gives, with its standard errors as bars. ")
    + "\u201CPerfect\u201D puts each target's light into its own sub-pixel, which is the best that the grid allows. "
    + `A line joins a detection with the target it finds, at most ${data.near} px away. Orange is positive, purple negative, each image on its own scale. `
    + `Answers are stored in 8 bits, exact to ${(coarsest / 2).toFixed(1)} grey levels, stages before the last more coarsely; detections and errors were computed before.`);
  const root = tag("div", { class: "modv", role: "group", "aria-label": "Model viewer" }, bar,
    tag("div", { class: "modv-views" }, tag("div", {}, heads[0], left), tag("div", {}, heads[1], right)), under, stages, readout, live, gallery, details, help);
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab must not read keys pressed here as its own
  el.replaceChildren(root);

  // ---- drawing -----------------------------------------------------------------------------------------------------

  // Where the n x n pixels about the cluster lie in a picture.
  function view(k, n, margin) {
    const { cell } = data.frames[k], unit = SIDE / n;
    const [top, side] = cell.map((c) => Math.min(size - n, Math.max(0, c - (n - 1) / 2)));
    const shows = ([x, y]) => x >= top - 0.5 && x <= top + n - 0.5 && y >= side - 0.5 && y <= side + n - 0.5;
    return { n, unit, margin, top, side, shows, down: (x) => margin + (x - top + 0.5) * unit, across: (y) => margin + (y - side + 0.5) * unit };
  }

  function lines(v, per) {
    let path = "";
    for (let q = 0; q <= v.n * per; q++) path += `M${v.margin + (q * v.unit) / per} ${v.margin}v${SIDE}M${v.margin} ${v.margin + (q * v.unit) / per}h${SIDE}`;
    return path;
  }

  // A picture from the bottom up: image, borders, then the marks.
  function paint(svg, v, k, { url, ratio, saturated, points, colour, ticks }) {
    const f = data.frames[k], [row, column] = f.origin, inner = shape("svg", { x: v.margin, y: v.margin, width: SIDE, height: SIDE, viewBox: `${v.margin} ${v.margin} ${SIDE} ${SIDE}` });
    inner.append(shape("rect", { x: v.margin, y: v.margin, width: SIDE, height: SIDE, fill: "#fff" }));
    if (url) inner.append(shape("image", { href: url, x: v.across(column - 0.5), y: v.down(row - 0.5), width: WINDOW * v.unit, height: WINDOW * v.unit }));
    if (ratio && ticks) inner.append(shape("path", { d: lines(v, ratio), class: "modv-fine" }));
    inner.append(shape("path", { d: lines(v, 1), class: "modv-border" }));
    if (saturated) {
      let path = "";
      for (let q = 0; q < v.n * v.n; q++) {
        const i = v.top + Math.floor(q / v.n), j = v.side + (q % v.n), w = 0.26 * v.unit;
        if (levelAt(k, i, j) >= data.full_scale) path += `M${v.across(j + 0.2)} ${v.down(i - 0.46)}h${w}v${w}z`;
      }
      inner.append(shape("path", { d: path, class: "modv-saturated" }));
    }
    const outside = shape("g", { "aria-hidden": "true" }), found = new Set((points ?? []).map((p) => p[3])), r = Math.min(13, 0.16 * v.unit), arm = 0.6 * r;
    f.targets.forEach(([x, y], t) => {
      const at = { cx: v.across(y), cy: v.down(x), r };
      outside.append(shape("circle", { ...at, class: "modv-glow" }), shape("circle", { ...at, class: `modv-truth${found.has(t) ? " modv-found" : ""}` }));
    });
    for (const [x, y, , partner, sx, sy] of (points ?? []).filter((p) => v.shows(p))) {
      const a = v.across(y), b = v.down(x);
      let path = `M${a - arm} ${b - arm}l${2 * arm} ${2 * arm}m0 ${-2 * arm}l${-2 * arm} ${2 * arm}`;
      if (sx !== undefined) path += `M${a} ${b - sx * v.unit}v${2 * sx * v.unit}M${a - sy * v.unit} ${b}h${2 * sy * v.unit}`;
      if (partner >= 0) path += `M${a} ${b}L${v.across(f.targets[partner][1])} ${v.down(f.targets[partner][0])}`;
      outside.append(shape("path", { d: path, class: "modv-cross modv-halo" }), shape("path", { d: path, class: "modv-cross", stroke: colour }));
    }
    for (let q = 0; ticks && q < v.n; q++) {
      const at = v.margin + (q + 0.5) * v.unit;
      outside.append(shape("text", { x: at, y: v.margin - 6, "text-anchor": "middle", class: "modv-tick" }, v.side + q),
        shape("text", { x: v.margin - 6, y: at + 4, "text-anchor": "end", class: "modv-tick" }, v.top + q));
    }
    svg.replaceChildren(inner, outside);
  }

  const unpacked = (m, k, s) => (levels[m] ? unpack(data.methods[m], levels[m], k, s, WINDOW * data.methods[m].ratio) : null);
  const colours = (values) => {
    const most = values.reduce((a, v) => Math.max(a, Math.abs(v)), 1e-9), half = (palette.length - 1) / 2;
    return values.map((v) => palette[Math.round(half * (1 + v / most))]);
  };
  const frameColours = (k, corner, n) => {
    const most = pixels.subarray(k * size * size, (k + 1) * size * size).reduce((a, v) => Math.max(a, v), 1);
    return Array.from({ length: n * n }, (_, q) => grey(Math.round((255 * levelAt(k, corner[0] + Math.floor(q / n), corner[1] + (q % n))) / most)));
  };
  const score = (m, k, s) => {
    const points = data.methods[m].points[k][s], found = points.filter((p) => p[3] >= 0).length;
    return { found, missed: data.frames[k].targets.length - found, wrong: points.length - found, rmse: data.methods[m].rmse[k][s] };
  };

  function drawThumbs(k) {
    thumbsOf = k;
    thumbs.forEach(({ picture, result, input }, m) => {
      const method = data.methods[m], s = last(m), values = unpacked(m, k, s), { found, wrong } = score(m, k, s), n = data.frames[k].targets.length;
      paint(picture, view(k, 3, 0), k, { url: values && bitmap(colours(values)), points: method.points[k][s], colour: method.colour });
      result.textContent = `${found}/${n}${wrong ? `, ${wrong} false` : ""}`;
      result.classList.toggle("modv-right", found === n && !wrong);
      input.setAttribute("aria-label", `${method.label}: ${found} of ${n} found, ${wrong} false`);
    });
    map.replaceChildren(shape("image", { href: bitmap(frameColours(k, [0, 0], size)), x: -0.5, y: -0.5, width: size, height: size }),
      shape("rect", { x: data.frames[k].origin[1] - 0.5, y: data.frames[k].origin[0] - 0.5, width: WINDOW, height: WINDOW, class: "modv-where" }));
    map.setAttribute("aria-label", `The whole frame; its cluster lies in pixel (${data.frames[k].cell.join(", ")})`);
  }

  function draw() {
    pending = 0;
    const k = place(), m = chosen(), s = shownStage(m), f = data.frames[k], method = data.methods[m], n = f.targets.length, points = method.points[k][s];
    if (thumbsOf !== k) drawThumbs(k);
    image = unpacked(m, k, s);
    const v = view(k, close ? 3 : WINDOW, MARGIN), most = image ? [Math.min(...image), Math.max(...image)] : null;
    paint(left, v, k, { url: bitmap(frameColours(k, f.origin, WINDOW)), saturated: true, ticks: true });
    paint(right, v, k, { url: image && bitmap(colours(image)), ratio: method.ratio, points, colour: method.colour, ticks: true });
    heads[0].textContent = `frame ${f.number}: ${plural(n, "target")}`;
    heads[1].textContent = `${method.label}${last(m) ? `, ${s ? `stage ${s} of ${last(m)}` : "start"}` : ""}${most ? ` (${signed(most[0])} to ${signed(most[1])})` : ""}`;

    const { found, missed, wrong, rmse } = score(m, k, s);
    const beyond = points.filter((p) => !v.shows(p)).length;
    const when = last(m) && s < last(m) ? ` ${s ? `after stage ${s}` : "before its first stage"}, which is no answer yet` : "";
    readout.replaceChildren(tag("strong", {}, `${method.label}${when}: ${found} of ${n} found`), `, ${missed} missed, ${wrong} false`
      + `${rmse === null ? "" : `; root mean square error of those found ${rmse.toFixed(3)} px`}.${beyond ? ` ${plural(beyond, "detection")} outside the picture.` : ""} `
      + (f.bound === null || f.bound > 0.5 ? "The Cramér–Rao bound is beyond half a pixel: here only prior knowledge helps." : `Cramér–Rao bound without prior knowledge: ${f.bound.toFixed(3)} px.`));
    left.setAttribute("aria-label", `Frame ${f.number} about its cluster, with ${plural(n, "true target")}`);
    right.setAttribute("aria-label", `${heads[1].textContent}: ${plural(points.length, "detection")}, ${found} of ${plural(n, "target")} found`);
    clearTimeout(speak); // a screen reader hears the result, not every step of the way
    speak = setTimeout(() => { live.textContent = readout.textContent; }, 600);

    select.value = String(f.number);
    previous.disabled = k === 0;
    next.disabled = k === data.frames.length - 1;
    thumbs.forEach(({ input, label }, q) => { input.checked = q === m; label.classList.toggle("modv-selected", q === m); });
    slider.disabled = play.disabled = !last(m);
    slider.max = Math.max(1, last(m));
    slider.value = last(m) ? s : 1;
    stageText.textContent = last(m) ? (s === last(m) ? `${s}, the answer` : s ? `${s} of ${last(m)}` : "0, the start") : "in one go";
    slider.setAttribute("aria-valuetext", stageText.textContent);
    fillTable(f, points);
    say();
  }

  function fillTable(f, points) {
    const extra = points.some((p) => p.length > 4), cell = (text) => tag("td", {}, text), at = ([x, y]) => [x, y].map((v) => cell(v.toFixed(3)));
    const head = ["target", "x", "y", "flux", "answer x", "y", "flux", "off by [px]", ...(extra ? ["its error bars", "hit probability"] : [])];
    const answer = (p, t) => [...at(p), cell(p[2].toFixed(0)), cell(t ? Math.hypot(p[0] - t[0], p[1] - t[1]).toFixed(3) : "false"),
      ...(p.length > 4 ? [cell(`${p[4].toFixed(3)}, ${p[5].toFixed(3)}`), cell(p[6].toFixed(2))] : [])];
    const none = (k) => Array.from({ length: k }, () => cell("\u2013"));
    const rows = f.targets.map((t, k) => {
      const p = points.find((q) => q[3] === k);
      return tag("tr", {}, tag("th", { scope: "row" }, k + 1), ...at(t), cell(t[2].toFixed(0)), ...(p ? answer(p, t) : [...none(3), cell("missed"), ...none(extra ? 2 : 0)]));
    });
    rows.push(...points.filter((p) => p[3] < 0).map((p) => tag("tr", {}, tag("th", { scope: "row" }, "\u2013"), ...none(3), ...answer(p, null))));
    table.replaceChildren(tag("thead", {}, tag("tr", {}, ...head.map((text) => tag("th", { scope: "col" }, text)))), tag("tbody", {}, ...rows));
  }

  // ---- reading values off ------------------------------------------------------------------------------------------
  let pointer = null; // [svg, x, y] in pixels of the frame
  function say() {
    let text = "Point at a picture to read its values.";
    if (pointer) {
      const k = place(), m = chosen(), [svg, x, y] = pointer, ratio = data.methods[m].ratio, f = data.frames[k];
      if (svg === left) {
        const v = levelAt(k, Math.round(x), Math.round(y));
        text = `pixel (${Math.round(x)}, ${Math.round(y)}): ${v}${v >= data.full_scale ? ", saturated" : ""}`;
      } else if (!ratio) text = `(${x.toFixed(2)}, ${y.toFixed(2)}) px`;
      else {
        const side = WINDOW * ratio, [i, j] = [x - f.origin[0], y - f.origin[1]].map((u) => Math.min(side - 1, Math.max(0, Math.floor((u + 0.5) * ratio))));
        const centre = (q, o) => (o + (q - (ratio - 1) / 2) / ratio).toFixed(2);
        text = `sub-pixel at (${centre(i, f.origin[0])}, ${centre(j, f.origin[1])}): ${signed(image[i * side + j])}`;
      }
    }
    probe.textContent = text;
  }
  for (const svg of [left, right]) {
    const follow = (event) => {
      const box = svg.getBoundingClientRect(), v = view(place(), close ? 3 : WINDOW, MARGIN), scale = (MARGIN + SIDE + 2) / box.width;
      const x = ((event.clientY - box.top) * scale - MARGIN) / v.unit + v.top - 0.5, y = ((event.clientX - box.left) * scale - MARGIN) / v.unit + v.side - 0.5;
      pointer = v.shows([x, y]) ? [svg, x, y] : null;
      say();
    };
    on(svg, "pointermove", follow);
    on(svg, "pointerdown", follow);
    on(svg, "pointerleave", (event) => { if (event.pointerType === "mouse") { pointer = null; say(); } });
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  const step = (by) => put("frame", data.frames[Math.min(data.frames.length - 1, Math.max(0, place() + by))].number);
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play stages"; };
  const putStage = (s) => put("stage", s >= last(chosen()) ? -1 : s);
  on(previous, "click", () => step(-1));
  on(next, "click", () => step(1));
  on(select, "change", () => put("frame", +select.value));
  on(slider, "input", () => { stop(); putStage(+slider.value); });
  on(zoom, "change", () => { close = !zoom.checked; schedule(); });
  on(play, "click", () => {
    if (timer) return stop();
    if (shownStage(chosen()) === last(chosen())) putStage(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      const s = shownStage(chosen()) + 1;
      putStage(s);
      if (s >= last(chosen())) stop();
    }, TEMPO);
  });

  const schedule = () => { if (!pending) pending = requestAnimationFrame(draw); };
  for (const name of NAMES) model.on("change:" + name, schedule);
  Object.defineProperty(root, "csist", { // read by the tests
    get: () => {
      const k = place(), m = chosen(), s = shownStage(m);
      return { frame: data.frames[k].number, method: data.methods[m].name, stage: s, stages: last(m), image, points: data.methods[m].points[k][s],
        pixels: [...pixels.subarray(k * size * size, (k + 1) * size * size)], playing: timer !== 0, ...score(m, k, s) };
    },
  });
  draw();
  return () => {
    abort.abort();
    stop();
    cancelAnimationFrame(pending);
    clearTimeout(speak);
    for (const name of NAMES) model.off("change:" + name, schedule);
  };
}

export default { render, unpack, bytes };
