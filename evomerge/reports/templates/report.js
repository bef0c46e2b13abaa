"use strict";
const figures = JSON.parse(document.getElementById("evomerge-figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 560px)");

/** The page's own colours for text and grids; figures bring only those of their marks. */
function themed(figure) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line") };
  const layout = structuredClone(figure.layout);
  layout.font = { color: color("--ink"), size: narrow.matches ? 11 : 13 };
  layout.hoverlabel = { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" };
  for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...layout[name] };
  for (const name of Object.keys(layout.scene ?? {})) {
    layout.scene[name] = { ...axis, backgroundcolor: "rgba(0,0,0,0)", ...layout.scene[name] };
  }
  return layout;
}

function draw(element) {
  const figure = figures[element.id];
  if (!figure || element.offsetParent === null) return; // hidden elements have no width yet
  Plotly.react(element, figure.data, themed(figure), { responsive: true, displaylogo: false, displayModeBar: false });
}

function drawAll() {
  document.querySelectorAll(".plot").forEach(draw);
}

const choice = document.getElementById("choose-candidate");
function choose() {
  for (const block of document.querySelectorAll(".choice")) block.hidden = block.dataset.candidate !== choice.value;
  drawAll();
}

if (choice) choice.addEventListener("change", choose);
for (const query of [dark, narrow]) query.addEventListener("change", drawAll);
choice ? choose() : drawAll();
