"use strict";
// What all pages share: elements, numbers, tooltips. Text goes in as text, never as HTML.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const SVG = "http://www.w3.org/2000/svg";

/** Attributes, listeners (`onclick`) and children of an element; numbers and strings become text. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Three decimals for the usual 0..1 metrics, four digits for larger ones. */
const number = (value) => value == null ? "–" : Math.abs(value) < 10 ? value.toFixed(3) : String(+value.toPrecision(4));
const signed = (value) => (value >= 0 ? "+" : "") + number(value);
/** `0.712 [0.660, 0.764]`; a cost rests on no items and is exact. */
const span = ([mean, low, high, items]) => items ? `${number(mean)} [${number(low)}, ${number(high)}]` : String(+mean.toPrecision(6));
const measured = (measure) => h("span", {}, span(measure));

function table(heads, rows, caption) {
  const cell = (tag, value) => value instanceof Node ? h(tag, {}, value) : h(tag, { class: typeof value === "number" ? "n" : "" }, typeof value === "number" ? number(value) : value);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption ?? heads.join(", ") },
    h("table", {}, caption ? h("caption", {}, caption) : null,
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value) => cell("td", value)))))));
}
const numbers = (...content) => h("details", {}, h("summary", {}, "The numbers"), content);

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Round numbers between two values, about so many. */
function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k += 1) found.push(+(k * step).toPrecision(12));
  return found;
}
const extent = (values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
function padded([low, high], share = 0.05) {
  const pad = (high - low || Math.abs(high) || 1) * share;
  return [low - pad, high + pad];
}
const linear = ([low, high], [from, to]) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

/** Charts draw when they come into view, and again when their size or the colours change. */
const charts = new Map();
const seen = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  const chart = charts.get(target);
  chart.visible = isIntersecting;
  if (isIntersecting && chart.stale) redraw(target);
}), { rootMargin: "200px" });
const sized = new ResizeObserver((entries) => entries.forEach(({ target, contentRect }) => {
  if (Math.abs(contentRect.width - (charts.get(target).width ?? 0)) > 1) redraw(target);
}));
function chart(element, draw) {
  charts.set(element, { draw, stale: true, visible: false });
  seen.observe(element);
  sized.observe(element);
  return element;
}
function redraw(element) {
  const found = charts.get(element);
  found.stale = !found.visible || !element.clientWidth;
  if (found.stale) return;
  found.width = element.clientWidth;
  found.draw(element.clientWidth);
}
const redrawAll = () => charts.forEach((_, element) => redraw(element));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

const tip = document.body.appendChild(h("div", { id: "tip", role: "tooltip", hidden: true }));
function showTip(x, y, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 10) : y + 14}px`;
}
const hideTip = () => { tip.hidden = true; };

/** A canvas of CSS pixels, sharp on every screen. */
function canvas(width, height) {
  const element = h("canvas", { width: Math.round(width * devicePixelRatio), height: Math.round(height * devicePixelRatio), "aria-hidden": "true" });
  element.style.width = `${width}px`;
  element.style.height = `${height}px`;
  const pen = element.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  return [element, pen];
}
