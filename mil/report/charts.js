// Charts are drawn last, one after another, so that the page answers to the reader before.
(() => {
  "use strict";
  const source = document.getElementById("charts");
  const packed = document.getElementById("plotly");
  if (!source || !packed) return;
  const charts = JSON.parse(source.textContent);
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
  // The library stands in the page compressed; its digest is in the page's own policy.
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(packed.textContent), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const paper = matchMedia("print");
  const width = (place) => (place.closest(".pair") ? 330 : 640);
  const draw = async (place) => {
    await new Promise((next) => setTimeout(next)); // a promise alone would not let the reader in
    const { data, layout } = charts[place.id];
    await Plotly.newPlot(place, data, layout, { displayModeBar: false, responsive: true });
    await Plotly.relayout(place, theme());
    const peek = document.getElementById(`${place.id}-slide`);
    if (peek && explorer)
      for (const event of ["plotly_hover", "plotly_click"])
        place.on(event, ({ points }) => {
          const point = points.find((one) => one.customdata);
          if (point) explorer.show(peek, point.customdata[1]);
        });
    place.dataset.drawn = "yes";
  };
  const sorry = (error) => places.forEach((place) => {
    if (place.dataset.drawn) return;
    place.textContent = "This browser cannot draw the charts; their numbers are in the tables.";
    console.warn(error);
  });
  const start = () => unpack()
    .then(() => places.reduce((before, place) => before.then(() => draw(place)), Promise.resolve()))
    .then(() => { document.documentElement.dataset.charts = "drawn"; }, sorry);
  if (window.requestIdleCallback) requestIdleCallback(start, { timeout: 800 });
  else setTimeout(start, 50);

  const repaint = () => places.forEach((place) => place.data && Plotly.relayout(place, theme()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // Fires for the print dialog and for a PDF made without one.
  paper.addEventListener("change", () => places.forEach((place) => {
    if (!place.data) return;
    const size = paper.matches ? { width: width(place) } : { width: null, autosize: true };
    Plotly.relayout(place, { ...theme(), ...size });
  }));
})();
