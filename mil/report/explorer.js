// What a row of the slide table shows when it is pointed at, focused or chosen. Text only: names of
// slides, classes and tiles are set as text and never parsed.
const explorer = (() => {
  "use strict";
  const source = document.getElementById("slide-data");
  if (!source) return null;
  const { classes, method, slides } = JSON.parse(source.textContent);
  const byName = new Map(slides.map((slide) => [slide.slide_id, slide]));
  const body = document.querySelector("#slide-table tbody");
  const panel = document.getElementById("slide-panel");
  const SHOWN = 6;
  const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
  const make = (tag, name, ...words) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...words.map(String));
    return made;
  };
  const holding = (tag, name, ...parts) => {
    const made = make(tag, name);
    made.append(...parts);
    return made;
  };
  const facts = (pairs) => holding("dl", "facts", ...pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => holding("div", "", make("dt", "", key), make("dd", "", value))));

  const chances = (slide) => {
    const table = make("table", "chances");
    const head = make("tr");
    head.append(make("th", "", "Class"), make("th", "num", "Vote share"), make("th", "num", method));
    // With many classes: those that matter here.
    const weight = (place) => (classes[place] === slide.label ? 2 : 0) + slide.p[place];
    const places = classes.map((_, place) => place)
      .sort((a, b) => weight(b) - weight(a)).slice(0, SHOWN).sort((a, b) => a - b);
    const rows = places.map((place) => {
      const name = classes[place];
      const row = make("tr", name === slide.label ? "true" : "");
      row.append(make("th", "", name === slide.label ? `${name} (true)` : name));
      for (const shares of [slide.votes, slide.p]) {
        const cell = make("td", "num bar", shares ? percent(shares[place]) : "\u2013");
        if (shares) cell.style.setProperty("--share", shares[place]);
        row.append(cell);
      }
      return row;
    });
    table.append(holding("thead", "", head), holding("tbody", "", ...rows));
    return table;
  };
  const answers = (slide) => {
    const items = slide.answers.map((one) => holding("li", "",
      make("span", one.right ? "mark right" : "mark wrong", one.right ? "right" : "wrong"),
      ` ${one.method}: ${one.predicted}${one.p === null ? "" : ` (${percent(one.p)})`}`));
    return holding("details", "", make("summary", "", `All ${items.length} methods`),
      holding("ul", "answers", ...items));
  };
  const thumbnail = (slide, place) => {
    const { tile, score } = slide.tiles[place];
    const face = make("div", "face");
    face.setAttribute("role", "img");
    face.setAttribute("aria-label", `tile ${tile}`);
    face.title = tile;
    const sprite = slide.sprite;
    if (sprite && !sprite.unread.includes(place)) {
      face.style.backgroundImage = `url("${sprite.uri}")`;
      face.style.backgroundSize = `${100 * sprite.n}% 100%`;
      face.style.backgroundPosition = `${sprite.n > 1 ? (100 * place) / (sprite.n - 1) : 0}% 0`;
    } else face.append(make("span", "", tile.split("/").pop()));
    const times = slide.measure === "attention"
      ? `${score.toFixed(3)}, ${(score * slide.n_scored).toFixed(1)}\u00d7` : percent(score);
    return holding("figure", "tile", face, make("figcaption", "", times));
  };
  const tiles = (slide) => {
    if (!slide.tiles.length) return [make("p", "none", "No tiles of this slide were scored.")];
    const attended = slide.measure === "attention";
    const words = attended
      ? { top: "Most attended: weight, and times an even share", bottom: "Least attended" }
      : { top: "Tiles surest of this answer (no attention here)", bottom: "Tiles least sure of it" };
    return ["top", "bottom"].flatMap((end) => {
      const places = slide.tiles.map((_, place) => place)
        .filter((place) => slide.tiles[place].end === end);
      if (!places.length) return [];
      return [make("h4", "", words[end]),
        holding("div", "tiles", ...places.map((place) => thumbnail(slide, place)))];
    });
  };
  const fill = (target, name) => {
    const slide = byName.get(name);
    if (!slide || target.dataset.slide === name) return;
    target.dataset.slide = name;
    const mark = make("span", slide.right ? "mark right" : "mark wrong",
      slide.right ? "right" : "wrong");
    const set = slide.set
      ? slide.set.join(", ") || "no class fits" : null;
    const parts = [
      holding("h3", "", mark, " ", slide.slide_id),
      make("p", "says", slide.right ? `${slide.label}, and so answered.`
        : `Is ${slide.label}, answered ${slide.predicted}.`),
      ...(slide.marks.length ? [make("p", "marks", slide.marks.join(" \u00b7 "))] : []),
      chances(slide),
      ...(set === null ? [] : [make("p", "says", `Cannot rule out: ${set}`)]),
      ...tiles(slide),
      slide.map.uri ? slideMap(slide.map, make) : make("p", "none", slide.map.why),
      facts([["patient", slide.patient], ["site", slide.site], ["fold", slide.fold],
        ["tiles", slide.n_tiles]]),
      answers(slide),
    ];
    target.replaceChildren(...parts.filter((part) => part !== null));
  };

  let kept = null;
  const rows = () => [...body.rows].filter((row) => !row.hidden);
  const button = (row) => row.querySelector("button");
  const show = (row) => {
    body.querySelectorAll("tr.shown").forEach((other) => other.classList.remove("shown"));
    row.classList.add("shown");
    body.querySelectorAll("button").forEach((one) => { one.tabIndex = -1; });
    button(row).tabIndex = 0;
    fill(panel.querySelector(".content"), row.dataset.slide);
  };
  const keep = (row) => {
    if (kept) button(kept).setAttribute("aria-pressed", "false");
    kept = row;
    panel.classList.toggle("kept", Boolean(row));
    if (!row) return;
    button(row).setAttribute("aria-pressed", "true");
    show(row);
  };
  const rowOf = (event) => event.target.closest("tr");
  body.addEventListener("mouseover", (event) => { if (!kept && rowOf(event)) show(rowOf(event)); });
  body.addEventListener("focusin", (event) => {
    if (kept && kept !== rowOf(event)) keep(null);
    show(rowOf(event));
  });
  body.addEventListener("click", (event) => {
    const row = rowOf(event);
    if (row) keep(kept === row ? null : row);
  });
  body.addEventListener("keydown", (event) => {
    const all = rows(), at = all.indexOf(rowOf(event));
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    button(all[next]).focus();
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") keep(null); });
  panel.querySelector(".close").addEventListener("click", () => {
    const last = kept;
    keep(null);
    if (last) button(last).focus({ preventScroll: true });
  });

  const text = document.getElementById("slide-text");
  const chosen = [...document.querySelectorAll("#slide-filters select")];
  const filter = () => {
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      const slide = byName.get(row.dataset.slide);
      const words = [slide.slide_id, slide.patient, slide.site, slide.label, slide.predicted];
      const fits = {
        label: (value) => slide.label === value,
        answer: (value) => slide.right === (value === "right"),
        mark: (value) => slide.marks.includes(value),
      };
      row.hidden = !(words.some((word) => (word || "").toLowerCase().includes(wanted))
        && chosen.every((one) => !one.value || fits[one.dataset.by](one.value)));
      shown += !row.hidden;
    }
    document.getElementById("slide-count").textContent =
      shown === slides.length ? `All ${shown} slides` : `${shown} of ${slides.length} slides`;
    if (!rows().some((row) => button(row).tabIndex === 0) && rows().length)
      button(rows()[0]).tabIndex = 0;
  };
  text.addEventListener("input", filter);
  chosen.forEach((one) => one.addEventListener("change", filter));
  const everything = () => {
    text.value = "";
    chosen.forEach((one) => { one.value = ""; });
    filter();
  };
  filter();
  if (body.rows.length) show(body.rows[0]);
  const rowOfSlide = (name) => [...body.rows].find((row) => row.dataset.slide === name);
  document.querySelectorAll("[data-open]").forEach((link) => link.addEventListener("click", () => {
    everything();
    const row = rowOfSlide(link.dataset.open);
    if (row) { keep(row); button(row).focus(); }
  }));
  // On paper every slide counts, whatever was filtered.
  let before = null;
  addEventListener("beforeprint", () => {
    before = [...body.rows].map((row) => [row, row.hidden]);
    before.forEach(([row]) => { row.hidden = false; });
  });
  addEventListener("afterprint", () => before.forEach(([row, hidden]) => { row.hidden = hidden; }));
  return { show: (target, place) => fill(target, slides[place].slide_id) };
})();
