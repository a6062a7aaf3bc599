"use strict";
// Draws every chart into its place, again where its width changes. Colours are CSS variables, so that light, dark
// and print need nothing from here.
(() => {
  const { theme, charts } = JSON.parse(document.getElementById("charts").textContent);

  // Vega-Lite remarks on every chart without a fixed height; its errors are thrown.
  const quiet = vega.logger(vega.Error);

  // Panels below one another share their left edge, so that their scales are in line.
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = `12px ${theme.font}`;
  const widest = (chart) => {
    if (chart.panels.length < 2) return 0;
    chart.names ??= [...new Set(chart.panels.flat().map((row) => row.row ?? ""))];
    return Math.max(0, ...chart.names.map((name) => ruler.measureText(name).width));
  };

  async function draw(place, chart, panel) {
    const width = place.clientWidth;
    if (!width || Number(place.dataset.width) === width) return;
    place.dataset.width = width;
    const limit = Math.max(70, Math.round(width * 0.4));
    const axisY = { ...theme.axisY, labelLimit: limit, minExtent: Math.min(limit, widest(chart)) + 8 };
    const spec = { ...chart.spec, width, autosize: { type: "fit-x", contains: "padding" } };
    spec.data = { values: chart.panels[panel] };
    const compiled = vegaLite.compile(spec, { config: { ...theme, axisY }, logger: quiet }).spec;
    const runtime = vega.parse(compiled, null, { ast: true });
    const view = new vega.View(runtime, { renderer: "svg", expr: vega.expressionInterpreter, logLevel: vega.Error });
    await view.initialize(place).runAsync();
    place.dataset.drawn = "yes";
  }

  // One after another, with room between them, so that the page can be read meanwhile.
  let current = 0;
  async function drawAll() {
    const mine = ++current;
    for (const place of document.querySelectorAll(".chart")) {
      try {
        await draw(place, charts[place.dataset.chart], Number(place.dataset.panel));
      } catch (error) {
        console.error(`chart ${place.dataset.chart}`, error);
        place.textContent = "This chart could not be drawn; its numbers are in the table.";
      }
      await new Promise((resume) => { setTimeout(resume); });
      if (mine !== current) return;
    }
  }

  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 150); });
  // What is folded away on the screen is printed all the same.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  drawAll();
})();
