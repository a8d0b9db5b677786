"use strict";
// Keys, the step slider, and figures of parts that were fetched.
function isTyping(target) {
  return target.matches("input, textarea, select, [contenteditable]");
}

function move(by) {
  const rows = [...document.querySelectorAll(".rows .row a")];
  if (!rows.length) return;
  const place = rows.indexOf(document.activeElement);
  const next = rows[Math.min(rows.length - 1, Math.max(0, place + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  n: () => document.querySelector("a[rel=next]")?.click(),
  p: () => document.querySelector("a[rel=prev]")?.click(),
  u: () => document.getElementById("up")?.click(),
  "/": () => document.getElementById("q")?.focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// The address names what is shown, so that it can be kept and sent.
function keepAddress(form) {
  const kept = [...new FormData(form)].filter(([name, value]) => value && !(name === "order" && value === "doubt"));
  const query = new URLSearchParams(kept).toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

document.addEventListener("input", (event) => {
  const any = document.getElementById("any-step");
  const step = document.getElementById("step");
  if (!any || !step) return;
  if (event.target === any) step.disabled = any.checked;
  document.getElementById("step-value").value = step.disabled ? "all" : step.value;
  if (event.target.form?.id === "filter") keepAddress(event.target.form);
});

document.addEventListener("htmx:after:swap", () => draw(document));
