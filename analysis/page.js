"use strict";

// Tables: a button in each heading sorts by its column; cells without a number go last.
function key(cell, kind) {
  const text = cell.textContent.trim();
  if (kind === "text") return text.toLowerCase();
  const number = text.match(/-?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return number ? Number(number[0]) : NaN;
}

function compare(a, b) {
  if (typeof a === "string") return a < b ? -1 : a > b ? 1 : 0;
  if (Number.isNaN(a) || Number.isNaN(b)) return 0;
  return a - b;
}

function sortBy(table, heading) {
  const column = [...heading.parentNode.children].indexOf(heading);
  const up = heading.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row.cells[column], heading.dataset.kind), row]);
  const known = rows.filter(([value]) => !Number.isNaN(value));
  known.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
  const unknown = rows.filter(([value]) => Number.isNaN(value));
  body.append(...[...known, ...unknown].map(([, row]) => row));
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, heading));
    heading.replaceChildren(button);
  }
}

// Runs: rows that hold every word of the search and have the chosen outcome.
const search = document.getElementById("search");
const outcome = document.getElementById("outcome");
const rows = [...document.getElementById("run-table").tBodies[0].rows];
const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

function filter() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const fits = !outcome.value || row.dataset.outcome === outcome.value;
    row.hidden = !(fits && wanted.every((word) => words.get(row).includes(word)));
    shown += !row.hidden;
  }
  const all = shown === rows.length;
  document.getElementById("count").textContent = all ? `${shown} runs` : `${shown} of ${rows.length} runs`;
}

search.addEventListener("input", filter);
outcome.addEventListener("change", filter);
search.form.addEventListener("submit", (event) => event.preventDefault());

// Figures: the note nearest to the pointer, instead of the browser's own slow titles.
const tip = document.getElementById("tip");
const REACH = 16; // pixels
let shown = null;

for (const svg of document.querySelectorAll(".drawing svg")) {
  const notes = [...svg.querySelectorAll(".note")].map((circle) => {
    const title = circle.querySelector("title");
    circle.dataset.text = title.textContent;
    title.remove();
    return circle;
  });
  svg.addEventListener("pointermove", (event) => show(nearest(notes, svg, event), event));
  svg.addEventListener("pointerleave", () => show(null));
}

function nearest(notes, svg, event) {
  const toPage = svg.getScreenCTM();
  let found = null;
  let least = REACH;
  for (const circle of notes) {
    const x = toPage.a * circle.cx.baseVal.value + toPage.e - event.clientX;
    const y = toPage.d * circle.cy.baseVal.value + toPage.f - event.clientY;
    const distance = Math.hypot(x, y);
    if (distance < least) [found, least] = [circle, distance];
  }
  return found;
}

function show(circle, event) {
  if (shown !== circle && shown) shown.classList.remove("on");
  shown = circle;
  tip.hidden = !circle;
  if (!circle) return;
  circle.classList.add("on");
  tip.textContent = circle.dataset.text;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16;
  const fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 12}px`;
}
