"use strict";
// Asks every second what has changed; a part whose HTML is the same is left alone, so nothing moves under a reader.
const at = id => document.getElementById(id);
const reach = "summary, [tabindex]";
let seen = "", ahead = document.body.dataset.now - Date.now() / 1000;

function words(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return s + " s";
  return s < 5400 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h";
}

function tick() {
  const now = Date.now() / 1000 + ahead;
  for (const t of document.querySelectorAll("[data-heard]")) t.textContent = words(now - t.dataset.heard) + " ago";
  for (const t of document.querySelectorAll("[data-due]")) t.textContent = words(t.dataset.due - now);
}

function replace(part, html) {
  const open = [...part.querySelectorAll("details")].map(d => d.open);
  const places = [...part.querySelectorAll(".scroll")].map(s => [s.scrollTop, s.scrollLeft]);
  const held = [...part.querySelectorAll(reach)].indexOf(document.activeElement);
  part.innerHTML = html;
  part.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? false; });
  part.querySelectorAll(".scroll").forEach((s, i) => { [s.scrollTop, s.scrollLeft] = places[i] ?? [0, 0]; });
  if (held >= 0) part.querySelectorAll(reach)[held]?.focus({preventScroll: true});
}

const last = {};
async function ask() {
  try {
    const answer = await fetch("state?seen=" + seen, {cache: "no-store"});
    if (answer.status === 200) {
      const state = await answer.json();
      ahead = state.now - Date.now() / 1000;
      for (const [id, html] of Object.entries(state.parts)) {
        if (last[id] !== html) replace(at(id), last[id] = html);
      }
      seen = state.seen;
    } else if (answer.status !== 204) throw new Error(await answer.text());
    if (at("link").textContent) at("link").textContent = "";
  } catch (error) {
    const text = "No answer from polypfed watch: " + error.message + ". Trying again.";
    if (at("link").textContent !== text) at("link").textContent = text;
  }
  tick();
  setTimeout(ask, 1000);
}
tick();
ask();
