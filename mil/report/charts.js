(() => {
  "use strict";
  const source = document.getElementById("charts");
  const charts = source ? JSON.parse(source.textContent) : {};
  const places = Object.keys(charts).map((id) => document.getElementById(id));
  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = () => ({
    "font.color": colour("--ink"),
    "font.family": getComputedStyle(document.body).fontFamily,
    "hoverlabel.bgcolor": colour("--surface"),
    "hoverlabel.bordercolor": colour("--rule"),
    "hoverlabel.font.color": colour("--ink"),
  });
  const draw = async (place) => {
    const { data, layout } = charts[place.id];
    await Plotly.newPlot(place, data, layout, { displayModeBar: false, responsive: true });
    await Plotly.relayout(place, theme());
  };
  // One after another, so that the page answers to the reader in between.
  places.reduce((before, place) => before.then(() => draw(place)), Promise.resolve());

  const repaint = () => places.forEach((place) => place.data && Plotly.relayout(place, theme()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  const closed = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...closed()];
    opened.forEach((part) => (part.open = true));
    const paper = { ...theme(), "font.color": "#111" };
    places.forEach((place) => {
      const wide = !place.closest(".pair");
      if (place.data) Plotly.relayout(place, { ...paper, width: wide ? 640 : 330 });
    });
  });
  addEventListener("afterprint", () => {
    opened.forEach((part) => (part.open = false));
    places.forEach((place) => {
      if (place.data) Plotly.relayout(place, { ...theme(), width: null, autosize: true });
    });
  });
})();
