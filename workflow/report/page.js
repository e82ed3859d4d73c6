"use strict";
// The filter: what does not have all its words is not shown. And a hint under tables that are wider than the page.
const box = document.getElementById("filter");
const count = document.getElementById("filtered");
const parts = [...document.querySelectorAll("article, .runs tbody tr, .verdicts tbody tr, nav li")];
const texts = new Map(parts.map(part => [part, part.textContent.toLowerCase()]));
box.parentElement.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const part of parts) part.hidden = !words.every(word => texts.get(part).includes(word));
  for (const list of document.querySelectorAll(".runs")) list.open = words.length > 0;
  const found = document.querySelectorAll("article:not([hidden])").length;
  count.textContent = words.length ? `${found} of ${document.querySelectorAll("article").length}` : "";
});
const observer = new ResizeObserver(entries => entries.forEach(({ target }) =>
  target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth + 1)));
for (const wide of document.querySelectorAll(".wide")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "Wider than the page: scroll sideways →";
  wide.after(hint);
  observer.observe(wide);
}
