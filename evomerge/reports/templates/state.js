// The run, and what the reader has selected: one candidate, and one to compare it with.

const data = read("evomerge-data"), page = read("evomerge-page");
const objectives = data.objectives;
const byId = new Map(data.candidates.map((candidate) => [candidate.id, candidate]));
const status = data.confirmed ? "confirmed" : "estimated";
const frontIds = new Set(data.confirmed ? data.confirmed.front : data.estimated.front);
const probability = data.confirmed?.probability ?? {};
const roles = (id) => Object.entries(data.picks).filter(([, pick]) => pick === id).map(([name]) => name);
const called = (id) => [byId.get(id).name, ...roles(id)].join(" · ");
const chance = (share) => share < 0.01 ? "< 1 %" : share > 0.99 ? "> 99 %" : `${Math.round(100 * share)} %`;
const command = (id) => page.export + (page.names[id] ?? id);
/** The measure of an objective; the mean of the objectives comes first in the data. */
const measure = (candidate, kind, objective) => candidate[kind]?.[objective + 1];
/** Lower is better. */
const cost = (objective, value) => objectives[objective].goal === "max" ? -value : value;

const state = { selected: null, compared: null, shown: null };
const followers = [];
const follow = (run) => followers.push(run);
const tell = (what) => followers.forEach((run) => run(what));

function select(id, compare = false) {
  if (compare) state.compared = id === state.selected ? null : id;
  else state.selected = id;
  if (state.compared === state.selected) state.compared = null;
  tell("selection");
}
/** Only these candidates are drawn in full; null for all. */
function show(ids) {
  state.shown = ids;
  tell("shown");
}

/** What there is to say of a candidate in few words. */
function describe(candidate, kind) {
  const confirmed = kind === "confirmed";
  return [
    h("b", {}, called(candidate.id)), " ", confirmed ? "confirmed on unseen items" : "estimated in the search",
    objectives.map((objective, k) => candidate[kind] && h("div", {}, `${objective.name}: ${span(measure(candidate, kind, k))}`)),
    confirmed && probability[candidate.id] != null ? h("div", {}, `on the front: ${chance(probability[candidate.id])}`) : null,
    (candidate.broken ?? []).map((text) => h("div", {}, `breaks ${text}`)),
    h("div", { class: "recipe" }, candidate.description),
  ].flat().filter(Boolean);
}

/** A button that selects a candidate; with Shift, it is the one to compare with. */
const picker = (id) => h("button", {
  type: "button", class: "pick", "data-candidate": id, title: "select; with Shift: compare",
  onclick: (event) => select(id, event.shiftKey),
}, byId.get(id).name);

function markPickers() {
  for (const button of document.querySelectorAll(".pick")) {
    const id = Number(button.dataset.candidate);
    button.setAttribute("aria-pressed", id === state.selected);
    button.classList.toggle("compared", id === state.compared);
  }
}
follow(markPickers);
