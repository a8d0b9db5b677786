"use strict";
// Draws every figure of the page in the page's colours, and again when they change between light and dark.
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: of("--line"), linecolor: of("--soft"), tickcolor: of("--soft"), color: of("--ink") };
  return { ink: of("--ink"), paper: of("--paper"), axis };
}

function dressed(layout) {
  const { ink, paper, axis } = colours();
  const hover = { align: "left", bgcolor: paper, font: { color: ink } };
  return {
    ...layout, font: { ...layout.font, color: ink }, hoverlabel: hover,
    xaxis: { ...layout.xaxis, ...axis }, yaxis: { ...layout.yaxis, ...axis },
  };
}

// Black lines would vanish in the dark.
function seen(data) {
  const change = (value) => (dark.matches && value === "#000000" ? "#ffffff" : value);
  return data.map((trace) => ({
    ...trace,
    ...(trace.line ? { line: { ...trace.line, color: change(trace.line.color) } } : {}),
    ...(trace.marker ? { marker: { ...trace.marker, color: change(trace.marker.color) } } : {}),
  }));
}

function draw(root) {
  for (const source of root.querySelectorAll("script[data-chart]")) {
    const place = document.getElementById(source.dataset.chart);
    if (!place) continue;
    const figure = JSON.parse(source.textContent);
    Plotly.react(place, seen(figure.data), dressed(figure.layout), { responsive: true, displayModeBar: false });
  }
}

function drawWhenVisible() {
  draw(document);
  dark.addEventListener("change", () => draw(document));
  document.addEventListener("toggle", (event) => {
    if (event.target.open) draw(event.target);
  }, true);
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawWhenVisible);
else drawWhenVisible();
