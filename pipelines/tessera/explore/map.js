// Draws the map and its curves from the JSON of the page, and sorts the table. Asks for nothing outside the page.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const chosen = { axis: "seconds", text: 0, colour: null, curve: "heldout" };
const MANY = 8; // so many values get a colour each; more numbers share a scale, more words share the last colour
const LIGHT = ["#2563eb", "#0f8a6b", "#b45309", "#9333ea", "#be185d", "#4d7c0f", "#0e7490", "#64748b"];
const DARK = ["#7ab3ff", "#4fd1a5", "#f0b35b", "#c79bff", "#ff8fb8", "#b4d455", "#5fd0e6", "#a9b4c0"];

const night = matchMedia("(prefers-color-scheme: dark)");
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const number = (value, digits = 0) =>
  value === null ? "" : value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const compact = (value) => value.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const numeric = (value) => value !== null && value.trim() !== "" && Number.isFinite(Number(value));
// Plotly reads a little HTML in its texts; a run's name is text.
const plain = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function shortened(value, length = 60) {
  const text = String(value);
  return plain(text.length > length ? text.slice(0, length - 1) + "\u2026" : text);
}

function hover(run) {
  const lines = [`<b>${shortened(run.name)}</b>` + (run.state === "finished" ? "" : ` (${run.state})`)];
  lines.push(`${number(run.quality, 3)} ${data.quality}`);
  lines.push(`${number(run.seconds, 1)} s, ${number(run.steps)} steps, ${number(run.tokens)} tokens`);
  lines.push(`${number(run.rate)} tokens/s, ${number(run.processor_seconds, 1)} processor-seconds`);
  if (run.parameters !== null) lines.push(`${number(run.parameters)} parameters`);
  if (run.gate) lines.push(`gate: ${plain(run.gate)}`);
  if (run.models.length) lines.push(`model: ${shortened(run.models.join(", "))}`);
  const recipe = data.settings.flatMap((setting, place) =>
    run.recipe[place] === null ? [] : [`${plain(setting.name)}: <b>${shortened(run.recipe[place], 40)}</b>`]);
  return lines.concat(recipe.length ? [""] : [], recipe.slice(0, 16)).join("<br>") +
    (recipe.length > 16 ? `<br>and ${recipe.length - 16} more` : "");
}

function colourValue(place, by) {
  const run = data.runs[place];
  if (by !== "parameters") return run.recipe[by];
  return run.parameters === null ? null : String(run.parameters);
}

// At first the colours tell models apart, else the setting with most values that still have a colour each.
function firstColour() {
  const count = (by) => new Set(data.runs.map((_, place) => colourValue(place, by)).filter((found) => found !== null)).size;
  if (count("parameters") > 1) return "parameters";
  const candidates = data.settings.map((_, place) => place).filter((place) => count(place) <= MANY);
  return candidates.length ? candidates.reduce((best, place) => (count(place) > count(best) ? place : best)) : null;
}

// What a place is coloured by: one group a value, in order, each with its colour and its name in the legend.
function groups(places) {
  const palette = night.matches ? DARK : LIGHT;
  if (chosen.colour === null) return [{ name: "runs", colour: palette[0], places }];
  const value = (place) => colourValue(place, chosen.colour);
  const title = chosen.colour === "parameters" ? "parameters" : data.settings[chosen.colour].name;
  const numbers = places.map(value).filter((found) => found !== null).every(numeric);
  const order = numbers ? (a, b) => Number(a) - Number(b) : (a, b) => (a < b ? -1 : 1);
  const values = [...new Set(places.map(value).filter((found) => found !== null))].sort(order);
  const colour = (found) => {
    if (found === null) return shade("--soft");
    const at = values.indexOf(found);
    if (numbers && values.length > 1) return scale(at / (values.length - 1));
    return palette[Math.min(at, palette.length - 1)];
  };
  const named = (found) => {
    if (found === null) return `${shortened(title, 24)} not known`;
    return chosen.colour === "parameters" ? `${compact(Number(found))} parameters` : `${shortened(title, 24)} ${shortened(found, 24)}`;
  };
  const shownInLegend = (at) => values.length <= MANY || (numbers
    ? Array.from({ length: 5 }, (_, n) => Math.round((n * (values.length - 1)) / 4)).includes(at) : at < MANY);
  return [...values, null].map((found, at) => ({
    name: named(found), colour: colour(found), places: places.filter((place) => value(place) === found),
    legend: found === null || shownInLegend(at),
  })).filter((group) => group.places.length);
}

// From blue through green to yellow or brown: readable on its paper at both ends.
function scale(part) {
  const stops = night.matches ? [[96, 140, 255], [60, 200, 170], [250, 224, 90]] : [[50, 60, 190], [15, 140, 130], [200, 130, 0]];
  const low = Math.min(Math.floor(part * 2), 1);
  const share = part * 2 - low;
  return `rgb(${stops[low].map((from, n) => Math.round(from + share * (stops[low + 1][n] - from))).join(",")})`;
}

function size(run) {
  const known = data.runs.map((other) => other.parameters).filter((count) => count !== null);
  const most = Math.max(...known);
  return run.parameters === null || !known.length ? 11 : 9 + 13 * Math.sqrt(run.parameters / most);
}

function layout(x, y, extra) {
  const line = { gridcolor: shade("--line"), linecolor: shade("--line"), zeroline: false, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: shade("--ink"), size: 14, family: "system-ui, Arial, sans-serif" },
    margin: { l: 56, r: 16, t: 16, b: 48 }, hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: shade("--paper"), bordercolor: shade("--soft"), font: { color: shade("--ink"), size: 13, family: "system-ui, Arial, sans-serif" }, namelength: -1 },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 13 }, bgcolor: "rgba(0,0,0,0)" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: shade("--soft"), activecolor: shade("--ink") },
    xaxis: { ...line, title: { text: x } }, yaxis: { ...line, title: { text: y } }, ...extra,
  };
}

// An axis of costs: from zero, or logarithmic with ticks at 1, 2 and 5, over many decades at 1 alone.
function cost(log, values) {
  if (!log || !values.length) return { type: "linear", rangemode: "tozero", tickformat: "~s" };
  const [low, high] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
  const steps = Math.max(...values) / Math.min(...values) > 5000 ? [1] : [1, 2, 5];
  const ticks = Array.from({ length: high - low + 1 }, (_, n) => steps.map((step) => step * 10 ** (low + n))).flat();
  return { type: "log", tickvals: ticks, ticktext: ticks.map(compact) };
}

const config = {
  responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  toImageButtonOptions: { filename: "tessera-map", scale: 2 },
};

function drawMap() {
  const text = data.texts[chosen.text];
  const front = text.fronts[chosen.axis];
  const lit = new Set(front);
  const shown = text.runs.filter((place) => data.runs[place].shown);
  const of = (places, key) => places.map((place) => data.runs[place][key]);
  const traces = groups(shown).map((group) => ({
    type: "scatter", mode: "markers", name: group.name, showlegend: chosen.colour !== null && group.legend,
    x: of(group.places, chosen.axis), y: of(group.places, "quality"), customdata: group.places,
    text: group.places.map((place) => hover(data.runs[place])), hovertemplate: "%{text}<extra></extra>",
    marker: {
      color: group.colour, size: group.places.map((place) => size(data.runs[place])),
      opacity: group.places.map((place) => (lit.has(place) ? 1 : 0.5)),
      symbol: group.places.map((place) => (data.runs[place].state === "finished" ? "circle" : "x-thin-open")),
      line: { width: group.places.map((place) => (data.runs[place].state === "finished" ? 0 : 2)), color: group.colour },
    },
  }));
  traces.push({
    type: "scatter", mode: "lines+markers+text", name: "front", meta: "front", showlegend: front.length > 0,
    x: of(front, chosen.axis), y: of(front, "quality"), text: front.map((_, rank) => `<b>${rank + 1}</b>`),
    textposition: "bottom left", textfont: { color: shade("--front"), size: 15 }, hoverinfo: "skip",
    line: { color: shade("--front"), width: 3, shape: "hv" },
    marker: { symbol: "circle-open", color: shade("--front"), size: front.map((place) => size(data.runs[place]) + 7), line: { width: 3 } },
  });
  const look = layout(data.axes[chosen.axis], data.quality + " (lower is better)");
  Object.assign(look.xaxis, cost(text.log[chosen.axis], of(shown, chosen.axis)));
  return Plotly.react("map", traces, look, config).then((plot) => {
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => choose(event.points[0].customdata));
  });
}

function drawCurves() {
  const text = data.texts[chosen.text];
  const lit = new Set(text.fronts[chosen.axis]);
  const traces = groups(text.runs).flatMap((group) => group.places.map((place) => {
    const run = data.runs[place];
    const points = run[chosen.curve].filter((point) => point[0] > 0 || !text.log.seconds); // zero has no logarithm
    return {
      type: "scatter", mode: points.length < 40 ? "lines+markers" : "lines", showlegend: false,
      x: points.map((point) => point[0]), y: points.map((point) => point[1]),
      opacity: lit.has(place) ? 1 : 0.35, line: { color: group.colour, width: lit.has(place) ? 3 : 1.5 },
      marker: { size: 5 }, hovertemplate: `<b>${shortened(run.name, 40)}</b><br>%{x:,.1f} s: %{y:.3f}<extra></extra>`,
    };
  }));
  const y = chosen.curve === "heldout" ? "held-out bits per byte" : "training loss, nats per token";
  const look = layout("training seconds", y, { showlegend: false });
  const ends = text.runs.flatMap((place) => data.runs[place][chosen.curve].map((point) => point[0]).filter((x) => x > 0));
  Object.assign(look.xaxis, cost(text.log.seconds, ends));
  return Plotly.react("curves", traces, look, config);
}

function choose(place) {
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  const row = document.getElementById(`run-${place}`);
  row.classList.add("chosen");
  row.scrollIntoView({ block: "center", behavior: "smooth" });
}

// The place of every run on the front of its own text, for the chosen cost.
function markFronts() {
  const ranks = new Map(data.texts.flatMap((text) => text.fronts[chosen.axis].map((place, rank) => [place, rank + 1])));
  data.runs.forEach((_, place) => {
    const row = document.getElementById(`run-${place}`);
    const cell = row.querySelector("td.front");
    cell.textContent = cell.dataset.value = ranks.get(place) ?? "";
    row.classList.toggle("lit", ranks.has(place));
  });
}

function sortBy(head) {
  const column = Number(head.dataset.column);
  const cell = head.parentElement;
  const up = cell.getAttribute("aria-sort") !== "ascending";
  const body = document.querySelector("tbody");
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows];
  const numbers = rows.map(value).filter((found) => found !== "").every(numeric);
  rows.sort((first, second) => {
    const [a, b] = [value(first), value(second)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known stays last
    return (up ? 1 : -1) * (numbers ? Number(a) - Number(b) : a.localeCompare(b, "en"));
  });
  document.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  cell.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
}

function press(button) {
  for (const other of button.parentElement.querySelectorAll("button")) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

function draw() {
  markFronts();
  return Promise.all([drawMap(), drawCurves()]);
}

document.querySelectorAll("button[data-axis]").forEach((button) => button.addEventListener("click", () => {
  chosen.axis = button.dataset.axis;
  press(button);
  draw();
}));
document.querySelectorAll("button[data-text]").forEach((button) => button.addEventListener("click", () => {
  chosen.text = Number(button.dataset.text);
  press(button);
  draw();
}));
document.querySelectorAll("button[data-curve]").forEach((button) => button.addEventListener("click", () => {
  chosen.curve = button.dataset.curve;
  press(button);
  drawCurves();
}));
document.querySelectorAll("th button").forEach((head) => head.addEventListener("click", () => sortBy(head)));
document.getElementById("colour").addEventListener("change", (event) => {
  const by = event.target.value;
  chosen.colour = by === "" ? null : by === "parameters" ? by : Number(by);
  draw();
});
night.addEventListener("change", draw);
chosen.colour = firstColour();
document.getElementById("colour").value = chosen.colour ?? "";
window.drawn = draw();
