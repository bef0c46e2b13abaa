// Every candidate with its estimates, a page at a time.

const listing = document.getElementById("candidates");
if (listing) {
  const SIZE = 50;
  const order = { by: "id", down: false, page: 0, text: "" };
  const columns = [
    { name: "candidate", key: "id", of: (c) => c.id, cell: (c) => picker(c.id) },
    { name: "generation", key: "generation", of: (c) => c.generation, cell: (c) => c.generation < 0 ? "–" : String(c.generation) },
    ...objectives.length > 1 ? [{ name: "mean ↑", key: "mean", of: (c) => c.estimated?.[0][0], cell: (c) => c.estimated ? measured(c.estimated[0]) : "–" }] : [],
    ...objectives.map((objective, k) => ({
      name: `${objective.name} ${objective.goal === "max" ? "↑" : "↓"}`, key: `objective ${k}`,
      of: (c) => measure(c, "estimated", k)?.[0], cell: (c) => c.estimated ? measured(measure(c, "estimated", k)) : "–",
    })),
    { name: "recipe", key: "recipe", of: (c) => c.description, cell: (c) => h("span", { class: "wide" }, c.description) },
  ];
  const body = h("div");
  const sorted = () => {
    const { of } = columns.find((column) => column.key === order.by), words = order.text.toLowerCase();
    const rows = data.candidates.filter((c) => !words || `${c.name} ${c.description}`.toLowerCase().includes(words));
    const compare = (a, b) => (of(a) == null) - (of(b) == null) || (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (order.down ? -1 : 1);
    return rows.sort(compare);
  };
  const draw = () => {
    const rows = sorted(), pages = Math.max(1, Math.ceil(rows.length / SIZE));
    order.page = Math.min(Math.max(order.page, 0), pages - 1);
    const heads = columns.map((column) => h("button", {
      type: "button", class: "sort",
      onclick: () => { order.down = order.by === column.key && !order.down; order.by = column.key; order.page = 0; draw(); },
    }, column.name, order.by === column.key ? (order.down ? " ▼" : " ▲") : ""));
    const turn = (by, text) => h("button", { type: "button", disabled: order.page + by < 0 || order.page + by >= pages, onclick: () => { order.page += by; draw(); } }, text);
    body.replaceChildren(
      table(heads, rows.slice(order.page * SIZE, (order.page + 1) * SIZE).map((c) => columns.map((column) => column.cell(c))), "search estimates; too high where they were selected"),
      h("p", { class: "pages" }, turn(-1, "previous"), ` page ${order.page + 1} of ${pages}, ${rows.length} candidates `, turn(1, "next")));
    markPickers();
  };
  listing.addEventListener("toggle", () => {
    if (!listing.open || body.parentNode) return;
    listing.append(h("p", {}, h("label", {}, "contains ", h("input", { type: "search", oninput: (event) => { order.text = event.target.value; order.page = 0; draw(); } }))), body);
    draw();
  });
}

select(page.choice);
