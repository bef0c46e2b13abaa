// "Which one should I take?": weights and levels re-rank the front; nothing is measured anew.

const chooser = document.getElementById("chooser");
if (chooser) {
  const members = [...frontIds].map((id) => byId.get(id)).filter((candidate) => candidate[status]);
  const value = (candidate, k) => measure(candidate, status, k)[0];
  const ranges = objectives.map((_, k) => extent(members.map((candidate) => value(candidate, k))));
  const heaviest = Math.max(...objectives.map((objective) => objective.weight));
  const isCost = (k) => members[0] && measure(members[0], status, k)[3] === 0; // its weight is per unit, and merit has none
  const wishes = objectives.map((objective, k) => ({
    weight: isCost(k) ? 100 : Math.round(100 * objective.weight / heaviest),
    level: objective.goal === "max" ? ranges[k][0] : ranges[k][1],
  }));
  const first = structuredClone(wishes);
  const ranking = chooser.querySelector(".ranking"), choice = document.getElementById("choice");

  const scaled = (candidate, k) => {
    const [low, high] = ranges[k];
    const share = high > low ? (value(candidate, k) - low) / (high - low) : 1;
    return objectives[k].goal === "max" || high === low ? share : 1 - share;
  };
  const total = () => wishes.reduce((sum, wish) => sum + wish.weight, 0) || 1;
  const merit = (candidate) => objectives.reduce((sum, _, k) => sum + wishes[k].weight * scaled(candidate, k), 0) / total();
  const misses = (candidate) => objectives.flatMap((objective, k) =>
    cost(k, value(candidate, k)) > cost(k, wishes[k].level) + 1e-9 ? [objective.name] : []);

  const rank = (choose) => {
    const rows = members.map((candidate) => ({ candidate, merit: merit(candidate), misses: misses(candidate) }))
      .sort((a, b) => a.misses.length - b.misses.length || b.merit - a.merit || a.candidate.id - b.candidate.id);
    ranking.replaceChildren(table(["", "candidate", "merit", ...objectives.map((o) => `${o.name} ${o.goal === "max" ? "↑" : "↓"}`), "levels missed"],
      rows.map((row, i) => [String(i + 1), picker(row.candidate.id), row.merit, ...objectives.map((_, k) => measured(measure(row.candidate, status, k))), row.misses.join(", ") || "none"]),
      `The ${status} front, best first`));
    if (choose && rows.length) select(rows[0].candidate.id);
    else markPickers();
  };

  const slider = (wish, key, label, [low, high], step, shown) => {
    const output = h("output", {}, shown(wish[key]));
    const input = h("input", { type: "range", min: low, max: high, step, value: wish[key], "aria-label": label, "data-key": key });
    const take = () => { wish[key] = Number(input.value); output.textContent = shown(wish[key]); rank(true); };
    input.addEventListener("input", take);
    return h("label", {}, h("span", {}, label), output, input);
  };
  const build = () => chooser.querySelector(".wishes").replaceChildren(...objectives.map((objective, k) => {
    const [low, high] = ranges[k], up = objective.goal === "max";
    return h("fieldset", {}, h("legend", {}, objective.name),
      slider(wishes[k], "weight", `weight of ${objective.name}`, [0, 100], 1, String),
      high > low ? slider(wishes[k], "level", `${objective.name} ${up ? "at least" : "at most"}`, [low, high], (high - low) / 200, number) : null);
  }));
  document.getElementById("reset").addEventListener("click", () => {
    wishes.forEach((wish, k) => Object.assign(wish, first[k]));
    build();
    rank(true);
  });
  follow((what) => {
    if (what === "selection" && state.selected != null) choice.textContent = command(state.selected);
  });
  build();
  rank(false);
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.of);
    getSelection().selectAllChildren(source); // where the clipboard is forbidden, the text is selected at least
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "copied";
    } catch {
      button.textContent = "selected: press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
