// Lineage: ancestors and children of the selected candidate, one row per generation.

const lineagePlace = document.getElementById("lineage");
if (lineagePlace) {
  const children = new Map();
  for (const { id, parents = [] } of data.candidates) for (const parent of parents) children.set(parent, [...(children.get(parent) ?? []), id]);
  const MOST = 120;

  /** Breadth first from the selected candidate, parents before children. */
  const family = (id) => {
    const found = new Set([id]);
    for (const next of [(one) => byId.get(one)?.parents ?? [], (one) => children.get(one) ?? []]) {
      const queue = [id];
      while (queue.length && found.size < MOST) {
        for (const other of next(queue.shift())) if (byId.has(other) && !found.has(other)) { found.add(other); queue.push(other); }
      }
    }
    return [...found];
  };

  const draw = (width) => {
    if (state.selected == null) return;
    const members = family(state.selected), inside = new Set(members), rows = new Map();
    for (const id of members.sort((a, b) => a - b)) rows.set(byId.get(id).generation, [...(rows.get(byId.get(id).generation) ?? []), id]);
    const numbersOfRows = [...rows.keys()].sort((a, b) => a - b), high = 44, wide = Math.max(width, Math.max(...[...rows.values()].map((row) => row.length)) * 46 + 90);
    const place = new Map(numbersOfRows.flatMap((generation, r) => rows.get(generation).map((id, i) => [id, [90 + ((wide - 90) * (i + 0.5)) / rows.get(generation).length, r * high + 24]])));
    const svg = s("svg", { width: wide, height: rows.size * high + 10, role: "group", "aria-label": `lineage of ${called(state.selected)}` });
    for (const id of members) for (const parent of byId.get(id).parents ?? []) {
      if (!inside.has(parent)) continue;
      const [[x1, y1], [x2, y2]] = [place.get(parent), place.get(id)];
      svg.append(s("path", { class: "edge", d: `M${x1} ${y1 + 9}C${x1} ${y2 - 14} ${x2} ${y1 + 14} ${x2} ${y2 - 9}` }));
    }
    numbersOfRows.forEach((generation, r) => svg.append(s("text", { class: "tick", x: 0, y: r * high + 28 }, generation < 0 ? "anchors" : `generation ${generation}`)));
    for (const id of members) {
      const [x, y] = place.get(id), tone = byId.get(id).kind === "anchor" ? "anchor" : frontIds.has(id) ? "front" : "searched";
      svg.append(s("g", {
        class: `mark ${tone}${byId.get(id).confirmed ? " filled" : ""}${id === state.selected ? " selected" : ""}`, tabindex: 0, role: "button", "aria-label": called(id),
        onclick: (event) => select(id, event.shiftKey),
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(id, event.shiftKey); } },
      }, s("circle", { cx: x, cy: y, r: 8 }), s("text", { class: "name", x, y: y + 22, "text-anchor": "middle" }, byId.get(id).name)));
    }
    const rest = members.length >= MOST ? h("p", { class: "note" }, `Only the ${MOST} nearest are drawn.`) : null;
    lineagePlace.replaceChildren(...[rest, h("div", { class: "scroll" }, svg), numbers(table(["candidate", "parents"],
      members.map((id) => [called(id), (byId.get(id).parents ?? []).map((parent) => byId.get(parent)?.name ?? `#${parent}`).join(", ") || "none"])))].filter(Boolean));
  };
  chart(lineagePlace, draw);
  follow((what) => { if (what === "selection") redraw(lineagePlace); });
}
