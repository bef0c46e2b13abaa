// Heat maps as tables: the colour helps to see, the number is there to read.

const SCALES = { // Cividis, and purple to orange: told apart by colour-blind readers
  unsigned: [[0, 34, 78], [66, 78, 108], [124, 123, 120], [187, 175, 113], [254, 232, 56]],
  signed: [[84, 39, 136], [153, 142, 195], [247, 247, 247], [241, 163, 64], [179, 88, 6]],
};

function shade(value, low, high) {
  const isSigned = low < 0, bound = Math.max(-low, high);
  const [from, to] = isSigned ? [-bound, bound] : [low, high];
  const scale = SCALES[isSigned ? "signed" : "unsigned"];
  const place = Math.min(Math.max((value - from) / (to - from || 1), 0), 1) * (scale.length - 1);
  const at = Math.min(Math.floor(place), scale.length - 2), share = place - at;
  const rgb = scale[at].map((c, i) => Math.round(c + share * (scale[at + 1][i] - c)));
  const bright = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
  return { background: `rgb(${rgb.join(" ")})`, ink: bright ? "#000" : "#fff" };
}

/** `values[row][column]`; `low` and `high` fix the colours, so that tables can be compared. */
function heatTable(label, columns, rows, values, [low, high]) {
  const cell = (value) => {
    const { background, ink } = shade(value, low, high);
    const found = h("td", { class: "heat" }, number(value));
    found.style.background = background;
    found.style.color = ink;
    return found;
  };
  return h("div", { class: "scroll heatmap", tabindex: 0, role: "region", "aria-label": label },
    h("table", {},
      h("thead", {}, h("tr", {}, h("td"), columns.map((column) => h("th", { scope: "col" }, column)))),
      h("tbody", {}, values.map((row, i) => h("tr", {}, h("th", { scope: "row" }, rows[i]), row.map(cell))))));
}
