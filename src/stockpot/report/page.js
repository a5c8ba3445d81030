"use strict";
const tip = document.getElementById("tip");
let shown = null, shownAt = 0;
function hide() { tip.textContent = ""; if (shown) shown.classList.remove("near"); shown = null; }
function show(point, x, y) {
  shownAt = scrollY;
  if (shown !== point) { hide(); shown = point; point.classList.add("near"); tip.textContent = point.dataset.tip; }
  const box = tip.getBoundingClientRect(), gap = 12;
  const left = Math.min(Math.max(x + gap, 4), innerWidth - box.width - 4);
  const above = y - box.height - gap;
  tip.style.left = left + "px";
  tip.style.top = (above > 4 ? above : y + gap) + "px";
}
function centre(point) { const b = point.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }
function nearest(svg, x, y, reach) {
  let best = null, least = reach;
  for (const point of svg.querySelectorAll(".pt")) {
    const [cx, cy] = centre(point);
    // A curve ends on a model; the model is what one means there.
    const distance = Math.hypot(cx - x, cy - y) + (point.hasAttribute("tabindex") ? 0 : 4);
    if (distance <= least) { least = distance; best = point; }
  }
  return best;
}
for (const svg of document.querySelectorAll("figure svg")) {
  const at = event => {
    const point = nearest(svg, event.clientX, event.clientY, event.pointerType === "touch" ? 28 : 12);
    if (point) show(point, event.clientX, event.clientY); else hide();
  };
  svg.addEventListener("pointermove", at);
  svg.addEventListener("pointerdown", at);
  svg.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") hide(); });
  for (const point of svg.querySelectorAll(".pt[tabindex]")) {
    point.addEventListener("focus", () => show(point, ...centre(point)));
    point.addEventListener("blur", hide);
  }
}
addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
// Moving to a mark with the keyboard scrolls too; only scrolling on takes its name away.
addEventListener("scroll", () => { if (Math.abs(scrollY - shownAt) > 24) hide(); }, { passive: true });
function value(row, column) {
  const cell = row.cells[column];
  return column === 0 ? cell.textContent.trim() : cell.dataset.value;
}
function compare(a, b) {
  if (a === b) return 0;
  if (a === "") return 1;
  if (b === "") return -1;
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    // Numbers fall first, since the best is usually the largest; names rise.
    const order = head.getAttribute("aria-sort");
    const rise = order === null ? column === 0 : order === "descending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rise ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((r, s) => {
      const a = value(r, column), b = value(s, column);
      if (a === "" || b === "") return compare(a, b);
      return rise ? compare(a, b) : compare(b, a);
    });
    body.append(...rows);
  }));
}
for (const button of document.querySelectorAll(".command button")) {
  button.addEventListener("click", async () => {
    const text = button.previousElementSibling;
    try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(text); button.textContent = "Selected"; }
  });
}
// Only a table that is wider than its frame needs to say that it can be moved.
const frames = new ResizeObserver(entries => {
  for (const { target } of entries) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth + 1;
});
for (const frame of document.querySelectorAll(".scroll")) frames.observe(frame);
