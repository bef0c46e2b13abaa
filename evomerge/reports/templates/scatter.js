// The front: pairwise scatters. Hollow marks are estimates, filled ones were confirmed.

const SHAPES = {
  circle: (r) => s("circle", { r }),
  diamond: (r) => s("path", { d: `M0 ${-r * 1.25}L${r * 1.25} 0L0 ${r * 1.25}L${-r * 1.25} 0Z` }),
  star: (r) => s("path", { d: "M" + [...Array(10).keys()].map((i) => {
    const radius = i % 2 ? r * 0.45 : r, angle = (Math.PI * i) / 5;
    return `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
  }).join("L") + "Z" }),
};

/** Every mark of a chart: candidate, where its numbers come from, and how its group is drawn. */
const marks = page.groups.flatMap((group) => group.ids.map((id) => ({ id, group, kind: group.confirmed ? "confirmed" : "estimated" })));

/** Axes with grid and titles into an SVG; gives the scales. */
function axes(svg, { width, height, xs, ys, xTitle, yTitle, left = 52, bottom = 40, top = 8 }) {
  const x = linear(xs, [left, width - 10]), y = linear(ys, [height - bottom, top]);
  for (const value of ticks(...xs, width / 90)) {
    svg.append(s("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - bottom }),
      s("text", { class: "tick", x: x(value), y: height - bottom + 15, "text-anchor": "middle" }, String(value)));
  }
  for (const value of ticks(...ys, height / 60)) {
    svg.append(s("line", { class: "grid", x1: left, x2: width - 10, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  svg.append(s("text", { class: "title", x: (left + width - 10) / 2, y: height - 6, "text-anchor": "middle" }, xTitle),
    s("text", { class: "title", transform: `translate(12 ${(height - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
  return [x, y];
}

/** The region that some member of the front dominates, as far as the plot goes. */
function dominated(first, second, [x0, x1], [y0, y1]) {
  const corner = [objectives[first].goal === "max" ? x0 : x1, objectives[second].goal === "max" ? y0 : y1];
  const points = [...frontIds].map((id) => byId.get(id)).filter((c) => c[status])
    .map((c) => [measure(c, status, first)[0], measure(c, status, second)[0]])
    .sort((a, b) => cost(first, a[0]) - cost(first, b[0]) || cost(second, a[1]) - cost(second, b[1]));
  const stairs = [];
  let best = Infinity;
  for (const [px, py] of points) {
    if (cost(second, py) >= best) continue;
    stairs.push([px, stairs.length ? stairs[stairs.length - 1][1] : corner[1]], [px, py]);
    best = cost(second, py);
  }
  if (!stairs.length) return [];
  return [...stairs, [corner[0], stairs[stairs.length - 1][1]], corner];
}

/** Arc of a circle that covers a share of it, from the top. */
function arc(radius, share) {
  const angle = 2 * Math.PI * Math.min(share, 0.9999);
  return `M0 ${-radius}A${radius} ${radius} 0 ${share > 0.5 ? 1 : 0} 1 ${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
}

class Scatter {
  constructor(element, coordinates, titles, pair) {
    Object.assign(this, { element, coordinates, titles, pair });
    element.addEventListener("pointermove", (event) => this.hover(event));
    element.addEventListener("pointerleave", hideTip);
    element.addEventListener("click", (event) => {
      const mark = this.nearest(event);
      if (mark) select(mark.id, event.shiftKey);
    });
    follow((what) => what === "selection" ? this.highlight() : redraw(element));
    chart(element, (width) => this.draw(width));
  }

  draw(width) {
    const height = Math.round(Math.min(420, Math.max(260, width * 0.75)));
    const drawn = marks.map((mark) => ({ ...mark, at: this.coordinates(mark) }));
    const bounded = (axis) => padded(extent(drawn.flatMap(({ at, group }) => group.intervals ? at[axis].slice(0, 3) : [at[axis][0]])));
    const [xs, ys] = [bounded(0), bounded(1)];
    const svg = s("svg", { width, height, role: "group", "aria-label": `${this.titles[1]} against ${this.titles[0]}` });
    const [x, y] = axes(svg, { width, height, xs, ys, xTitle: this.titles[0], yTitle: this.titles[1] });
    if (this.pair) {
      const region = dominated(...this.pair, xs, ys).map(([px, py]) => `${x(px)},${y(py)}`).join(" ");
      svg.append(s("polygon", { class: "dominated", points: region }));
    }
    const [cloud, pen] = canvas(width, height);
    this.points = drawn.map((mark) => ({ ...mark, x: x(mark.at[0][0]), y: y(mark.at[1][0]) }));
    for (const point of this.points) {
      if (point.group.intervals) svg.append(this.mark(point, x, y));
      else this.dot(pen, point);
    }
    this.halo = s("g", { class: "halo" });
    svg.append(this.halo);
    this.element.replaceChildren(cloud, svg);
    this.highlight();
  }

  dot(pen, { id, x, y, group }) {
    const dim = state.shown && !state.shown.has(id);
    pen.globalAlpha = dim ? 0.12 : this.points.length > 1000 ? 0.45 : 0.8;
    pen.strokeStyle = color(`--${group.color}`);
    pen.beginPath();
    pen.arc(x, y, group.size / 2, 0, 7);
    pen.stroke();
  }

  mark({ id, group, kind, at: [across, up], x: px, y: py }, x, y) {
    const candidate = byId.get(id), dim = state.shown && !state.shown.has(id), radius = group.size / 2;
    const found = s("g", {
      class: `mark ${group.color}${group.confirmed ? " filled" : ""}${dim ? " dim" : ""}`, tabindex: 0, role: "button", "data-candidate": id,
      "aria-label": `${called(id)}, ${group.name}: ${objectives.map((o, k) => `${o.name} ${span(measure(candidate, kind, k))}`).join(", ")}`,
      onkeydown: (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(id, event.shiftKey); }
      },
      onfocus: (event) => { const box = event.currentTarget.getBoundingClientRect(); showTip(box.right, box.bottom, ...describe(candidate, kind)); },
      onblur: hideTip,
    });
    if (across[3] && this.pair) found.append(s("line", { class: "bar", x1: x(across[1]), x2: x(across[2]), y1: py, y2: py }));
    if (up[3]) found.append(s("line", { class: "bar", x1: px, x2: px, y1: y(up[1]), y2: y(up[2]) }));
    const shape = SHAPES[group.shape](radius);
    shape.setAttribute("transform", `translate(${px} ${py})`);
    found.append(shape);
    if (kind === "confirmed" && probability[id] != null) {
      found.append(s("path", { class: "chance", d: arc(radius + 4, probability[id]), transform: `translate(${px} ${py})` }));
    }
    if (group.labels) found.append(s("text", { class: "name", x: px, y: py - radius - 7, "text-anchor": "middle" }, candidate.name));
    return found;
  }

  highlight() {
    if (!this.halo) return;
    this.halo.replaceChildren(...[[state.selected, "selected"], [state.compared, "compared"]].flatMap(([id, name]) =>
      this.points.filter((point) => point.id === id).map(({ x, y, group }) => s("circle", { class: name, cx: x, cy: y, r: group.size / 2 + 7 }))));
  }

  nearest({ clientX, clientY }) {
    const box = this.element.getBoundingClientRect(), px = clientX - box.left, py = clientY - box.top;
    let found = null, closest = 16;
    for (const point of this.points ?? []) {
      const distance = Math.hypot(point.x - px, point.y - py) - (point.group.intervals ? 3 : 0);
      if (distance <= closest) [found, closest] = [point, distance];
    }
    return found;
  }

  hover(event) {
    const mark = this.nearest(event);
    this.element.style.cursor = mark ? "pointer" : "";
    if (mark) showTip(event.clientX, event.clientY, ...describe(byId.get(mark.id), mark.kind));
    else hideTip();
  }
}

for (const element of document.querySelectorAll(".scatter")) {
  const [first, second] = [Number(element.dataset.first), Number(element.dataset.second)];
  const value = (mark, k) => measure(byId.get(mark.id), mark.kind, k);
  if (element.dataset.first === "") {
    new Scatter(element, (mark) => [[mark.id, mark.id, mark.id, 0], value(mark, 0)], ["candidate number", page.labels[0]], null);
  } else {
    new Scatter(element, (mark) => [value(mark, first), value(mark, second)], [page.labels[first], page.labels[second]], [first, second]);
  }
}
