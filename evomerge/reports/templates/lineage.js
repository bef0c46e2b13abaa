// Lineage: ancestors and children of the selected candidate, every child below its parents.

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
    const members = family(state.selected).sort((a, b) => a - b), levels = new Map(), rows = [], high = 60;
    for (const id of members) { // parents have lower numbers
      const level = Math.max(-1, ...(byId.get(id).parents ?? []).map((parent) => levels.get(parent) ?? -1)) + 1;
      levels.set(id, level);
      (rows[level] ??= []).push(id);
    }
    const wide = Math.max(width, Math.max(...rows.map((row) => row.length)) * 46);
    const place = new Map(rows.flatMap((row, level) => row.map((id, i) => [id, [(wide * (i + 0.5)) / row.length, level * high + 16]])));
    const svg = s("svg", { width: wide, height: rows.length * high - 14, role: "group", "aria-label": `lineage of ${called(state.selected)}` });
    for (const id of members) for (const parent of byId.get(id).parents ?? []) {
      if (!place.has(parent)) continue;
      const [[x1, y1], [x2, y2]] = [place.get(parent), place.get(id)];
      svg.append(s("path", { class: "edge", d: `M${x1} ${y1 + 8}C${x1} ${y2 - 20} ${x2} ${y1 + 34} ${x2} ${y2 - 8}` }));
    }
    for (const id of members) {
      const [x, y] = place.get(id), tone = byId.get(id).kind === "anchor" ? "anchor" : frontIds.has(id) ? "front" : "searched";
      svg.append(s("g", {
        class: `mark ${tone}${byId.get(id).confirmed ? " filled" : ""}${id === state.selected ? " selected" : ""}`, tabindex: 0, role: "button", "aria-label": called(id), onpointerleave: hideTip,
        onpointermove: (event) => showTip(event.clientX, event.clientY, ...describe(byId.get(id), byId.get(id).confirmed ? "confirmed" : "estimated")),
        onclick: (event) => select(id, event.shiftKey),
        onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(id, event.shiftKey); } },
      }, s("circle", { cx: x, cy: y, r: 8 }), s("text", { class: "name", x, y: y + 22, "text-anchor": "middle" }, byId.get(id).name)));
    }
    const rest = members.length >= MOST ? h("p", { class: "note" }, `Only the ${MOST} nearest are drawn.`) : null;
    lineagePlace.replaceChildren(...[rest, h("div", { class: "scroll" }, svg), numbers(table(["candidate", "generation", "parents"],
      members.map((id) => [called(id), String(byId.get(id).generation), (byId.get(id).parents ?? []).map((parent) => byId.get(parent)?.name ?? `#${parent}`).join(", ") || "none"])))].filter(Boolean));
  };
  chart(lineagePlace, draw);
  follow((what) => { if (what === "selection") redraw(lineagePlace); });
}
