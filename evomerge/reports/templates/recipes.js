// Recipes: coefficients by layer, module and expert; the path through layers; the difference between two.

const EDGES = ["embed", "head"];
const withRecipe = data.candidates.filter((candidate) => candidate.recipe);

/** One parameter as columns (source and modules; modules with equal values share one), rows (depth) and values. */
function heatmap({ recipe, variants }, name) {
  const field = recipe.parameters[name];
  const modules = Object.keys(field).filter((role) => !EDGES.includes(role));
  const width = field.embed[0].length, depth = field[modules[0]].length;
  const sources = width === recipe.sources.length ? variants ?? recipe.sources : ["all"];
  const columns = sources.flatMap((source, k) => {
    const groups = new Map();
    for (const role of modules) {
      const key = JSON.stringify(field[role].map((row) => row[k]));
      groups.set(key, [...(groups.get(key) ?? []), role]);
    }
    return [...groups.values()].map((same) => ({ source, k, role: same[0], name: same.length === modules.length ? "all modules" : same.join(" + ") }));
  });
  const edge = (role) => columns.map(({ k }) => field[role][0][k]);
  return {
    columns: columns.map((column) => `${column.source} · ${column.name}`),
    keys: columns.map((column) => [column.k, column.role]),
    rows: ["embed", ...Array.from({ length: depth }, (_, layer) => `layer ${layer}`), "head"],
    values: [edge("embed"), ...Array.from({ length: depth }, (_, layer) => columns.map(({ k, role }) => field[role][layer][k])), edge("head")],
  };
}
/** Colours of a parameter mean the same for all candidates. */
const bounds = new Map();
for (const { recipe } of withRecipe) {
  for (const [name, field] of Object.entries(recipe.parameters)) {
    const [low, high] = bounds.get(name) ?? [Infinity, -Infinity], [a, b] = extent(Object.values(field).flat(2));
    bounds.set(name, [Math.min(a, low), Math.max(b, high)]);
  }
}

function parameterView(id, name) {
  const { columns, rows, values } = heatmap(byId.get(id), name);
  const constant = new Set(values.flat()).size === 1;
  return h("div", {}, h("h4", {}, name), constant ? h("p", {}, `${number(values[0][0])} everywhere`)
    : heatTable(`${name} of ${called(id)}`, columns, rows, values, bounds.get(name)));
}

function differenceView(one, other, name) {
  const [a, b] = [one, other].map((id) => byId.get(id).recipe.parameters[name]);
  if (!a || !b) return h("p", {}, `${name}: only one of the two has it.`);
  const less = Object.fromEntries(Object.entries(a).map(([role, rows]) => [role, rows.map((row, i) => row.map((v, k) => b[role]?.[i]?.[k] - v))]));
  if (Object.values(less).flat(2).some(Number.isNaN)) return h("p", {}, `${name}: not comparable.`);
  const { columns, rows, values } = heatmap({ ...byId.get(one), recipe: { ...byId.get(one).recipe, parameters: { [name]: less } } }, name);
  const bound = Math.max(...values.flat().map(Math.abs));
  return h("div", {}, h("h4", {}, name), bound === 0 ? h("p", {}, "the same everywhere")
    : heatTable(`${name}: difference`, columns, rows, values, [-bound, bound]));
}

/** Which source layer runs at each depth; scales other than 1 are written below. */
function pathView(recipe) {
  const hops = recipe.path ?? [];
  if (!hops.length) return h("p", { class: "note" }, "Every layer of the merge runs once, in order.");
  const sources = [...new Set(hops.map(([source]) => source))];
  const head = (text, values) => h("tr", {}, h("th", { scope: "row" }, text), values);
  return h("div", { class: "scroll strip", tabindex: 0, role: "region", "aria-label": "path through layers" },
    h("table", {}, h("tbody", {},
      head("depth", hops.map((_, depth) => h("td", {}, String(depth)))),
      head("layer of", hops.map(([source]) => h("td", { class: `source source-${sources.indexOf(source) % 6}` }, source ?? "the merge"))),
      head("layer", hops.map(([, layer]) => h("td", {}, String(layer)))),
      head("scale", hops.map(([, , scale]) => h("td", {}, scale === 1 ? "1" : number(scale)))))));
}

function recipeView(id) {
  const { recipe, description, digest } = byId.get(id);
  if (!recipe) return [h("p", {}, h("b", {}, called(id)), `: ${description}`), h("p", {}, "This page holds the coefficients of the best candidates only, to stay small; this one's are in the run folder: "), h("pre", {}, command(id))];
  return [
    h("p", {}, h("b", {}, called(id)), `: ${description}. `, h("small", {}, `digest ${digest}, ${recipe.dtype}`)),
    h("div", { class: "grid" }, Object.keys(recipe.parameters).map((name) => parameterView(id, name))),
    h("h4", {}, "path"), pathView(recipe),
  ];
}

function comparison(one, other) {
  const [a, b] = [one, other].map((id) => byId.get(id).recipe);
  if (!a || !b) return [h("p", {}, "One of the two recipes is not in this page.")];
  const heading = h("h3", {}, `${called(other)} less ${called(one)}`);
  if (a.operator !== b.operator || a.base !== b.base || String([a.sources, a.transforms]) !== String([b.sources, b.transforms])) {
    return [heading, h("p", {}, "They have different operators or sources, so their coefficients do not compare."), recipeView(other)].flat();
  }
  const names = [...new Set([...Object.keys(a.parameters), ...Object.keys(b.parameters)])];
  return [heading, h("div", { class: "grid" }, names.map((name) => differenceView(one, other, name))), h("h4", {}, `path of ${called(other)}`), pathView(b)];
}

function gainsOf(id) {
  const gains = (data.confirmed?.gains ?? []).filter((gain) => gain.candidate === id);
  if (!gains.length) return null;
  const kinds = [...new Set(gains.map((gain) => gain.of))], anchors = [...new Set(gains.map((gain) => gain.anchor))];
  const cell = (anchor, of) => {
    const [mean, low, high, items] = gains.find((gain) => gain.anchor === anchor && gain.of === of).measure;
    return h("span", { class: low > 0 ? "sure" : "" }, items ? `${signed(mean)} [${signed(low)}, ${signed(high)}]` : signed(mean));
  };
  return table(["over", ...kinds], anchors.map((anchor) => [byId.get(anchor).name, ...kinds.map((of) => cell(anchor, of))]), `Gains of ${called(id)} on unseen items; bold: above 0 for sure`);
}

function exchangesOf(id) {
  const found = (data.confirmed?.exchanges ?? []).filter((exchange) => exchange.candidate === id);
  if (!found.length) return null;
  const count = (items) => Array.isArray(items) ? items.length : items;
  const listed = (items) => Array.isArray(items) && items.length ? h("details", {}, h("summary", {}, `${items.length}`), items.join(" ")) : String(count(items));
  return table(["against", "task", "metric", "items", "gained", "lost"],
    found.map((e) => [byId.get(e.anchor).name, e.task, e.metric, String(e.items), listed(e.gained), listed(e.lost)]),
    `Items that ${called(id)} answers better (gained) and worse (lost) than each parent; open a number for the items`);
}

const recipePlace = document.getElementById("recipe-view");
if (recipePlace) {
  const choose = document.getElementById("choose-candidate"), against = document.getElementById("choose-other");
  const order = [...new Set([...Object.values(data.picks), ...marks.filter((m) => m.group.intervals).map((m) => m.id), ...withRecipe.map((c) => c.id)])];
  const options = () => order.map((id) => h("option", { value: id }, called(id)));
  choose.append(...options());
  against.append(h("option", { value: "" }, "nothing"), ...options());
  choose.addEventListener("change", () => select(Number(choose.value)));
  against.addEventListener("change", () => { state.compared = against.value === "" ? null : Number(against.value); tell("selection"); });
  follow((what) => {
    if (what !== "selection" || state.selected == null) return;
    for (const [box, id] of [[choose, state.selected], [against, state.compared]]) {
      if (id != null && ![...box.options].some((option) => option.value === String(id))) box.append(h("option", { value: id }, called(id)));
      box.value = id ?? "";
    }
    recipePlace.replaceChildren(...recipeView(state.selected));
    document.getElementById("comparison").replaceChildren(...state.compared == null ? [] : comparison(state.selected, state.compared));
    document.getElementById("against-parents").replaceChildren(...[gainsOf(state.selected), exchangesOf(state.selected)].filter(Boolean));
  });
}
