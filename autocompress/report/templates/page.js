"use strict";

// Tables: a click on a heading sorts by its column, another the other way round, a third as it was.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.getAttribute("aria-sort")];
      headings.forEach((each) => each.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", next);
      const rows = next === "none" ? original : [...original].sort(by(column, next === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
}

function by(column, sign) {
  return (first, second) => {
    const [a, b] = [first, second].map((row) => value(row.cells[column]));
    if (a === null || b === null) return (a === null) - (b === null); // unknown values last, either way
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  };
}

function value(cell) {
  const given = cell.dataset.value ?? cell.textContent.trim();
  return given === "" ? null : Number.isNaN(Number(given)) ? given : Number(given);
}

// The picture: which measure the bars show, and what a layer is bound to.
for (const picture of document.querySelectorAll(".picture")) {
  const show = (measure) => {
    for (const each of picture.querySelectorAll("[data-for]")) each.hidden = !each.dataset.for.split(" ").includes(measure);
  };
  for (const input of picture.querySelectorAll("input[name=measure]")) {
    input.addEventListener("change", () => show(input.value));
    if (input.checked) show(input.value); // browsers remember the choice
  }
  const layers = [...picture.querySelectorAll(".bars > li")];
  const detail = picture.querySelector(".detail");
  const tell = (layer) => {
    const kin = JSON.parse(layer.dataset.kin);
    picture.classList.add("telling");
    for (const each of layers) each.classList.toggle("kin", kin.includes(each.dataset.name));
    detail.textContent = layer.dataset.note;
  };
  const rest = () => picture.classList.remove("telling");
  layers.forEach((layer, index) => {
    const button = layer.querySelector("button");
    layer.addEventListener("pointerenter", () => tell(layer));
    layer.addEventListener("pointerleave", rest);
    button.addEventListener("focus", () => {
      for (const each of layers) each.querySelector("button").tabIndex = each === layer ? 0 : -1;
      tell(layer);
    });
    button.addEventListener("blur", rest);
    button.addEventListener("keydown", (event) => {
      const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: layers.length - 1 }[event.key];
      if (to === undefined || !layers[to]) return;
      event.preventDefault();
      layers[to].querySelector("button").focus();
    });
  });
}
