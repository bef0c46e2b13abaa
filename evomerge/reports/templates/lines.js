// Progress: lines over what was spent, generations, and who worked when.

/** Lines over a common axis; `series` are `{name, xs, ys, tone, dash, steps}`. */
function lineChart(element, { series, xTitle, yTitle }) {
  const draw = (width) => {
    const height = 260, all = (key) => series.flatMap((one) => one[key]).filter((v) => v != null);
    const svg = s("svg", { width, height, role: "img", "aria-label": `${yTitle} against ${xTitle}` });
    const [x, y] = axes(svg, { width, height, xs: padded(extent(all("xs")), 0.02), ys: padded(extent(all("ys"))), xTitle, yTitle });
    for (const { name, xs, ys, tone, dash, steps } of series) {
      const points = xs.map((v, i) => [v, ys[i]]).filter(([, v]) => v != null);
      const d = points.map(([px, py], i) => steps && i ? `H${x(px).toFixed(1)}V${y(py).toFixed(1)}` : `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
      svg.append(s("path", { class: `line ${tone}`, d, "stroke-dasharray": dash ? "5 4" : null }));
      const [px, py] = points[points.length - 1];
      svg.append(s("circle", { class: `line ${tone}`, cx: x(px), cy: y(py), r: 3 }),
        s("text", { class: "name", x: x(px) - 6, y: y(py) - 8, "text-anchor": "end" }, name));
    }
    element.replaceChildren(svg);
  };
  if (!charts.has(element)) return chart(element, draw);
  charts.get(element).draw = draw;
  return redraw(element);
}

const historyPlace = document.getElementById("history");
if (historyPlace) {
  const { curve, random } = data.history;
  const draw = (by) => lineChart(historyPlace, {
    xTitle: by, yTitle: "hypervolume",
    series: [
      { name: data.name, xs: curve.spent[by], ys: curve.hypervolume, tone: "finalist", steps: true },
      ...random && random.spent[by] ? [{ name: "random", xs: random.spent[by], ys: random.hypervolume, tone: "searched", dash: true, steps: true }] : [],
    ],
  });
  const kinds = Object.keys(curve.spent);
  document.getElementById("spent").append(...kinds.map((by, i) => h("label", {},
    h("input", { type: "radio", name: "spent", value: by, checked: i === 0, onchange: () => draw(by) }), by)));
  draw(kinds[0]);
  const rises = (one) => one.hypervolume.map((v, i) => [v, i]).filter(([v, i]) => !i || i === one.hypervolume.length - 1 || v !== one.hypervolume[i - 1]);
  const rows = (one) => table([...kinds, "hypervolume"], rises(one).map(([v, i]) => [...kinds.map((by) => String(one.spent[by]?.[i] ?? "–")), String(v)]));
  historyPlace.after(numbers(rows(curve), random ? [h("p", {}, "The random search:"), rows(random)] : []));
}

const generationsPlace = document.getElementById("generations");
if (generationsPlace) {
  const all = data.generations, xs = all.map((g) => g.number);
  lineChart(generationsPlace, { xTitle: "generation", yTitle: "mean of the objectives, estimated", series: [
    { name: "best", xs, ys: all.map((g) => g.best), tone: "front" },
    { name: "median", xs, ys: all.map((g) => g.median), tone: "finalist", dash: true },
  ] });
  lineChart(document.getElementById("spread"), { xTitle: "generation", yTitle: "spread of the genes", series: [
    { name: "spread", xs, ys: all.map((g) => g.spread), tone: "anchor" },
  ] });
  document.getElementById("spread").after(numbers(table(["generation", "candidates", "failed", "best", "median", "on the front", "spread"],
    all.map((g) => [String(g.number), String(g.candidates), String(g.failed), g.best, g.median, String(g.front), g.spread]))));
}

const statesPlace = document.getElementById("states");
if (statesPlace) {
  const all = data.generations, anchors = data.candidates.filter((one) => one.kind === "anchor").length;
  const xs = all.map((_, i) => all.slice(0, i + 1).reduce((sum, g) => sum + g.candidates, anchors));
  const names = [...new Set(all.flatMap((g) => Object.keys(g.state)))];
  const families = [...new Set(names.map((name) => name.split(/[ ,]/)[0]))];
  const tones = ["front", "finalist", "anchor", "searched"];
  for (const family of families) {
    const members = names.filter((name) => name.split(/[ ,]/)[0] === family), place = h("div", { class: "plot" });
    statesPlace.append(place);
    lineChart(place, { xTitle: "evaluations", yTitle: members.length > 1 ? family : members[0], series: members.map((name, i) => ({
      name: members.length > 1 ? name.replace(/^[^ ]+ /, "") : name, xs, ys: all.map((g) => g.state[name] ?? null), tone: tones[i % tones.length], dash: i >= tones.length,
    })) });
  }
  statesPlace.after(numbers(table(["evaluations", ...names], all.map((g, i) => [String(xs[i]), ...names.map((name) => g.state[name] ?? "–")]))));
}

const work = document.getElementById("utilization");
if (work) {
  const { workers, step } = data.utilization, names = Object.keys(workers), most = 64;
  const mean = (shares) => shares.reduce((a, b) => a + b, 0) / (shares.length || 1);
  const together = workers[names[0]].map((_, i) => mean(names.map((name) => workers[name][i])));
  const lanes = [["all", together], ...names.slice(0, most).map((name) => [name, workers[name]])];
  chart(work, (width) => {
    const left = Math.min(110, width / 4), high = 18, height = lanes.length * high + 34, cell = (width - left - 10) / together.length;
    const [surface, pen] = canvas(width, height);
    pen.font = "12px system-ui, sans-serif";
    lanes.forEach(([name, shares], row) => {
      pen.globalAlpha = 1;
      pen.fillStyle = color("--soft");
      pen.fillText(name.length > 15 ? `${name.slice(0, 14)}…` : name, 0, row * high + 13);
      pen.fillStyle = color(row ? "--finalist" : "--front");
      shares.forEach((share, i) => { pen.globalAlpha = share; pen.fillRect(left + i * cell, row * high + 2, cell + 0.3, high - 4); });
    });
    pen.globalAlpha = 1;
    pen.fillStyle = color("--soft");
    for (const value of ticks(0, together.length * step, width / 150)) pen.fillText(`${value} s`, left + (value / step) * cell, height - 8);
    work.replaceChildren(surface);
  });
  work.after(numbers(table(["worker", "busy"], [["all", `${(100 * mean(together)).toFixed(1)} %`], ...names.map((name) => [name, `${(100 * mean(workers[name])).toFixed(1)} %`])]),
    table(["seconds since the start", "busy"], together.map((share, i) => [(i * step).toFixed(1), `${(100 * share).toFixed(1)} %`]))));
}
