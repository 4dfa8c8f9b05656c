// A map of one slide: its tiles as a picture, their scores over it; drag, pinch, wheel or keys.
const slideMap = (map, make) => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const colour = (share) => {
    const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(at), STOPS.length - 2);
    const mixed = STOPS[low].map((c, k) => Math.round(c + (at - low) * (STOPS[low + 1][k] - c)));
    return `rgb(${mixed.join(",")})`;
  };
  const scores = map.boxes.map((box) => box[3]).filter((score) => score !== null);
  const most = Math.max(...scores, 0);

  const sheet = make("div", "map-sheet");
  const picture = make("img");
  picture.src = map.uri;
  picture.alt = "";
  picture.draggable = false;
  const overlay = document.createElementNS(SVG, "svg");
  overlay.setAttribute("viewBox", `0 0 ${map.width} ${map.height}`);
  overlay.setAttribute("aria-hidden", "true");
  const readout = make("p", "readout");
  map.boxes.forEach(([left, top, side, score, tile]) => {
    const box = document.createElementNS(SVG, "rect");
    for (const [name, value] of [["x", left], ["y", top], ["width", side], ["height", side]])
      box.setAttribute(name, value);
    box.style.fill = score === null ? "transparent" : colour(most ? score / most : 0);
    box.addEventListener("pointerenter", () => {
      readout.textContent = score === null ? `${tile}: no score` : `${tile}: ${score.toFixed(3)}`;
    });
    overlay.append(box);
  });
  sheet.append(picture, overlay);

  const view = make("div", "map");
  view.tabIndex = 0;
  view.setAttribute("role", "group");
  view.setAttribute("aria-label", "Map of the slide: plus and minus zoom, arrows move, 0 resets");
  view.style.aspectRatio = `${map.width} / ${map.height}`;
  view.append(sheet);

  let scale = 1, x = 0, y = 0;
  const apply = () => {
    const { clientWidth: width, clientHeight: height } = view;
    x = Math.min(0, Math.max(width * (1 - scale), x));
    y = Math.min(0, Math.max(height * (1 - scale), y));
    sheet.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    view.dataset.scale = scale.toFixed(2);
  };
  const zoom = (factor, atX = view.clientWidth / 2, atY = view.clientHeight / 2) => {
    const next = Math.min(16, Math.max(1, scale * factor));
    x = atX - (atX - x) * (next / scale);
    y = atY - (atY - y) * (next / scale);
    scale = next;
    apply();
  };
  const move = (dx, dy) => { x += dx; y += dy; apply(); };
  const reset = () => { scale = 1; x = y = 0; apply(); };
  const keys = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": reset,
    ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0),
    ArrowUp: () => move(0, 40), ArrowDown: () => move(0, -40),
  };
  view.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });
  view.addEventListener("wheel", (event) => {
    // The page scrolls over a map until the reader has chosen it.
    if (!event.ctrlKey && document.activeElement !== view) return;
    event.preventDefault();
    const { left, top } = view.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - left, event.clientY - top);
  }, { passive: false });
  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  view.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (fingers.size === 1) move(event.clientX - last.x, event.clientY - last.y);
    else if (fingers.size === 2 && before) zoom(spread() / before);
  });
  for (const name of ["pointerup", "pointercancel"])
    view.addEventListener(name, (event) => fingers.delete(event.pointerId));

  const button = (words, label, action) => {
    const made = make("button", "small", words);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  };
  const range = make("input");
  range.type = "range";
  range.min = 0;
  range.max = 100;
  range.value = 45;
  const fade = () => { overlay.style.opacity = range.value / 100; };
  range.addEventListener("input", fade);
  fade();
  const opacity = make("label", "opacity", "Scores over the tissue ");
  opacity.append(range);
  const bar = make("div", "map-bar");
  bar.append(button("+", "Zoom in", keys["+"]), button("\u2212", "Zoom out", keys["-"]),
    button("Whole slide", "Whole slide", reset), opacity);
  const legend = make("p", "legend");
  const scaleBar = make("span", "viridis");
  legend.append("0 ", scaleBar, ` ${most.toFixed(3)}, the largest score of this slide`);
  const box = make("div", "map-box");
  box.append(bar, view, readout, legend);
  return box;
};
