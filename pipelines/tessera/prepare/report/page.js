// Draws the charts of the page's JSON as bars, in the colours of its style. Asks for nothing outside the page.
"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const night = matchMedia("(prefers-color-scheme: dark)");
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Plotly reads a little HTML in its texts; a source's name is text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const shortened = (text, length) => plain(text.length > length ? text.slice(0, length - 1) + "\u2026" : text);
// Names of one catalog begin alike and differ at their end, so both ends are kept.
const squeezed = (text, length) => plain(text.length > length
  ? text.slice(0, Math.floor(length / 3)) + "\u2026" + text.slice(text.length - Math.ceil((2 * length) / 3) + 1) : text);

function traces(chart) {
  const places = chart.categories.map((_, place) => place);
  return chart.series.map((series, at) => ({
    type: "bar", orientation: chart.lying ? "h" : "v", name: plain(series.name), marker: { color: shade(`--c${at}`) },
    x: chart.lying ? series.values : places, y: chart.lying ? places : series.values,
    text: chart.categories.map((category) => `<b>${shortened(category, 80)}</b><br>${shortened(series.name, 60)}`),
    textposition: "none", hovertemplate: `%{text}: %{${chart.lying ? "x" : "y"}:,}<extra></extra>`,
  }));
}

function axes(chart, width) {
  const line = { gridcolor: shade("--line"), linecolor: shade("--line"), zeroline: false, automargin: true };
  const room = chart.lying ? Math.max(12, Math.min(40, width / 28)) : 16;
  const names = {
    ...line, tickvals: chart.categories.map((_, place) => place), showgrid: false,
    ticktext: chart.categories.map((category) => squeezed(category, room)),
    title: { text: plain(chart.lying ? chart.y : chart.x) },
    ...(chart.lying ? { autorange: "reversed", tickangle: 0 } : {}),
  };
  const title = { text: plain(chart.lying ? chart.x : chart.y) };
  const values = { ...line, title, rangemode: "tozero", tickformat: "~s", nticks: Math.max(3, Math.floor(width / 120)) };
  if (chart.log) {
    const most = Math.max(...chart.series.flatMap((series) => series.values));
    Object.assign(values, { type: "log", dtick: 1, range: [Math.log10(0.7), Math.log10(most * 1.3)] });
  }
  return chart.lying ? { xaxis: values, yaxis: names } : { xaxis: names, yaxis: values };
}

function draw(chart) {
  const place = document.getElementById(chart.name);
  const font = { color: shade("--ink"), size: 14, family: "system-ui, Arial, sans-serif" };
  return Plotly.react(place, traces(chart), {
    ...axes(chart, place.clientWidth), barmode: chart.stacked ? "stack" : "group", bargap: 0.25, showlegend: false, font,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 48, r: 24, t: 8, b: 48 },
    hoverlabel: { align: "left", bgcolor: shade("--paper"), bordercolor: shade("--soft"), font, namelength: -1 },
    dragmode: false,
  }, { responsive: true, displayModeBar: false });
}

const drawAll = () => Promise.all(charts.map(draw));
night.addEventListener("change", drawAll);
window.drawn = drawAll();
