// Parallel coordinates: objectives (up is better) and mean coefficients. A range on an axis filters every view.

class Parallel {
  constructor(element) {
    this.element = element;
    this.limits = new Map();
    this.kind = status;
    follow((what) => { if (what === "selection") redraw(element); });
    chart(element, (width) => this.draw(width));
    element.addEventListener("pointermove", (event) => this.hover(event));
    element.addEventListener("pointerleave", hideTip);
    element.addEventListener("click", (event) => { const found = this.nearest(event); if (found) select(found.id, event.shiftKey); });
  }

  rows() {
    return data.candidates.filter((candidate) => candidate[this.kind]);
  }

  axes(rows) {
    const goals = objectives.map((objective, k) => ({ name: `${objective.name} ${objective.goal === "max" ? "↑" : "↓"}`, of: (c) => measure(c, this.kind, k)[0], up: objective.goal === "max" }));
    const mean = objectives.length > 1 ? [{ name: "mean ↑", of: (c) => c[this.kind][0][0], up: true }] : [];
    const means = data.axes.map((name, i) => ({ name, of: (c) => c.coefficients[i], up: true }));
    return [...goals, ...mean, ...means]
      .map((axis) => ({ ...axis, range: extent(rows.map(axis.of).filter((v) => v != null)) }))
      .filter(({ range: [low, high] }, i) => Number.isFinite(low) && (i < goals.length + mean.length || high - low > 1e-6))
      .map((axis) => ({ ...axis, range: axis.range[0] < axis.range[1] ? axis.range : padded(axis.range) }));
  }

  draw(width) {
    const rows = this.rows(), all = this.axes(rows), height = 340, top = 34, bottom = 22;
    const wide = Math.max(width, all.length * 84), step = wide / all.length;
    this.drawn = all.map((axis, i) => ({ ...axis, x: step * (i + 0.5), y: linear(axis.range, axis.up ? [height - bottom, top] : [top, height - bottom]) }));
    const [surface, pen] = canvas(wide, height), svg = s("svg", { width: wide, height, role: "group", "aria-label": "parallel coordinates" });
    this.paths = rows.map((c) => ({ id: c.id, kind: this.kind, group: { intervals: false }, at: this.drawn.map((axis) => axis.of(c) == null ? null : [axis.x, axis.y(axis.of(c))]) }));
    for (const path of this.paths) this.stroke(pen, path, !state.shown || state.shown.has(path.id) ? (rows.length > 500 ? 0.12 : 0.55) : 0.03, this.tone(path.id), 1.2);
    for (const [id, dash] of [[state.selected, []], [state.compared, [6, 4]]]) {
      const path = this.paths.find((one) => one.id === id);
      if (path) { pen.setLineDash(dash); this.stroke(pen, path, 1, "--ink", 2.5); }
    }
    svg.append(...this.drawn.flatMap((axis) => this.axis(axis, { top, bottom, height, step })));
    this.element.replaceChildren(h("div", { class: "layers" }, surface, svg));
  }

  tone(id) {
    return byId.get(id).kind === "anchor" ? "--anchor" : frontIds.has(id) ? "--front" : this.kind === "confirmed" ? "--finalist" : "--searched";
  }

  stroke(pen, path, alpha, tone, weight) {
    pen.globalAlpha = alpha;
    pen.strokeStyle = color(tone);
    pen.lineWidth = weight;
    pen.beginPath();
    path.at.forEach((point, i) => { if (point) pen[path.at[i - 1] ? "lineTo" : "moveTo"](...point); });
    pen.stroke();
  }

  axis(axis, { top, bottom, height, step }) {
    const limit = this.limits.get(axis.name), ends = limit?.map(axis.y).sort((a, b) => a - b);
    const band = s("rect", { class: "brush", x: axis.x - 11, y: top, width: 22, height: height - top - bottom });
    const control = s("g", {
      tabindex: 0, role: "slider", class: "control", "aria-label": `keep candidates from this ${axis.name} on; arrow keys move, Escape clears`,
      "aria-valuemin": axis.range[0], "aria-valuemax": axis.range[1], "aria-valuenow": limit ? limit[axis.up ? 0 : 1] : axis.range[axis.up ? 0 : 1],
      onkeydown: (event) => this.key(event, axis),
    }, band, limit ? s("rect", { class: "kept", x: axis.x - 7, y: ends[0], width: 14, height: Math.max(ends[1] - ends[0], 1) }) : null);
    let from = null;
    const value = (event) => {
      const box = band.getBoundingClientRect(), share = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 1);
      const [low, high] = axis.range;
      return axis.up ? high - share * (high - low) : low + share * (high - low);
    };
    band.addEventListener("pointerdown", (event) => { from = value(event); band.setPointerCapture(event.pointerId); });
    band.addEventListener("pointerup", (event) => {
      const to = value(event);
      this.limit(axis, Math.abs(to - from) < 0.02 * (axis.range[1] - axis.range[0]) ? null : [Math.min(from, to), Math.max(from, to)]);
    });
    control.addEventListener("click", (event) => event.stopPropagation());
    const label = s("text", { class: "title", x: axis.x, y: 14, "text-anchor": "middle" }, axis.name.length > step / 7 ? `${axis.name.slice(0, step / 7 - 1)}…` : axis.name);
    label.append(s("title", {}, axis.name));
    const [low, high] = axis.up ? axis.range : [...axis.range].reverse();
    return [s("line", { class: "axis", x1: axis.x, x2: axis.x, y1: top, y2: height - bottom }), control, label,
      s("text", { class: "tick", x: axis.x, y: top - 6, "text-anchor": "middle" }, number(high)),
      s("text", { class: "tick", x: axis.x, y: height - 6, "text-anchor": "middle" }, number(low))];
  }

  key(event, axis) {
    if (event.key === "Escape") return this.limit(axis, null, true);
    const turn = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!turn) return undefined;
    event.preventDefault();
    const [low, high] = axis.range, [from, to] = this.limits.get(axis.name) ?? axis.range, by = turn * 0.05 * (high - low);
    return this.limit(axis, axis.up ? [Math.min(Math.max(from + by, low), high), to] : [from, Math.min(Math.max(to - by, low), high)], true);
  }

  limit(axis, range, focus = false) {
    if (range) this.limits.set(axis.name, range); else this.limits.delete(axis.name);
    const kept = (candidate) => [...this.limits].every(([name, [low, high]]) => {
      const found = this.drawn.find((one) => one.name === name)?.of(candidate);
      return found != null && low - 1e-9 <= found && found <= high + 1e-9;
    });
    show(this.limits.size ? new Set(this.rows().filter(kept).map((candidate) => candidate.id)) : null);
    redraw(this.element);
    document.getElementById("kept").textContent = state.shown ? `${state.shown.size} of ${this.rows().length} candidates are within the ranges.` : "";
    if (focus) this.element.querySelectorAll(".control")[this.drawn.findIndex((one) => one.name === axis.name)]?.focus();
  }

  nearest({ clientX, clientY }) {
    const box = this.element.querySelector(".layers").getBoundingClientRect(), px = clientX - box.left, py = clientY - box.top;
    let found = null, closest = 8;
    for (const path of this.paths) {
      if (state.shown && !state.shown.has(path.id)) continue;
      for (let i = 1; i < path.at.length; i += 1) {
        const [a, b] = [path.at[i - 1], path.at[i]];
        if (!a || !b || px < a[0] || px > b[0]) continue;
        const distance = Math.abs(a[1] + ((px - a[0]) / (b[0] - a[0])) * (b[1] - a[1]) - py);
        if (distance < closest) [found, closest] = [path, distance];
      }
    }
    return found;
  }

  hover(event) {
    const path = this.nearest(event);
    if (path) showTip(event.clientX, event.clientY, ...describe(byId.get(path.id), path.kind));
    else hideTip();
  }
}

const parallelPlace = document.getElementById("parallel");
if (parallelPlace) {
  const plot = new Parallel(parallelPlace);
  for (const input of document.querySelectorAll("input[name=coordinates]")) {
    input.addEventListener("change", () => { plot.kind = input.value; plot.limits.clear(); show(null); redraw(parallelPlace); });
  }
}
