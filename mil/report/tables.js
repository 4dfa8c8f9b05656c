// Every table of data can be sorted by its heads; without scripts they are plain heads.
(() => {
  "use strict";
  const number = (text) => {
    const found = /^[<>+\u2212-]?\s*[\d.,]+(e[+-]?\d+)?\s*%?$/i.test(text.trim());
    return found ? Number(text.replace(/[<>,%\s]/g, "").replace("\u2212", "-")) : NaN;
  };
  const value = (row, place) => {
    const cell = row.cells[place];
    const told = cell.dataset.value;
    // The interval under a value is not the value.
    return told === undefined ? (cell.firstChild ? cell.firstChild.textContent : "") : told;
  };
  const sort = (table, place, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, place).trim(), row]);
    const known = rows.filter(([text]) => text && text !== "\u2013");
    const numeric = known.every(([text]) => !Number.isNaN(number(text)));
    const order = new Intl.Collator("en", { numeric: true });
    const compare = numeric ? (a, b) => number(a) - number(b) : order.compare;
    known.sort(([a], [b]) => direction * compare(a, b));
    const unknown = rows.filter(([text]) => !text || text === "\u2013");
    body.append(...[...known, ...unknown].map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, other) => {
      if (other !== place) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    });
  };
  document.querySelectorAll("main table:not(.matrix)").forEach((table) => {
    if (!table.tHead || table.tBodies[0].rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      const words = head.querySelector("a");
      button.textContent = head.textContent.trim() || "name";
      button.title = "Sort by this column";
      if (words) {
        // The name of a metric leads to its definition; the arrow beside it sorts.
        button.setAttribute("aria-label", `Sort by ${button.textContent}`);
        button.textContent = "";
        head.append(button);
      } else head.replaceChildren(button);
      button.addEventListener("click", () =>
        sort(table, place, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
    });
  });
})();
