// The page: login, the live feed, and the way between the overview and a pool.

import { closeDialog, h, notify, setText } from "./dom.js";
import { cost, money, number, seconds } from "./format.js";
import { Feed, Unauthorized, post, session } from "./feed.js";
import { Overview } from "./overview.js";
import { PoolPage } from "./pool.js";

const main = document.getElementById("main");
const live = document.getElementById("live");
const lost = document.getElementById("lost");
const [lostAlert, lostDetail] = lost.children;
const fleet = document.getElementById("fleet");
const logout = document.getElementById("logout");

const WORDS = { connecting: "connecting", live: "live", lost: "not live" };

let feed, view, lostSince, reason, drawing;

function theme() {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  localStorage.setItem("theme", now === "dark" ? "light" : "dark");
  theme();
});

logout.addEventListener("click", async () => {
  try {
    await post("/logout");
  } catch (failure) {
    // Without a session there is nothing to end. Otherwise it is still open, and the page must not hide that.
    if (!(failure instanceof Unauthorized)) return notify(`You are still logged in. The logout failed: ${failure.message}`, true);
  }
  if (view) login();
});

// The session has ended, whichever request finds out. One that was sent before a login may come back after it.
session.addEventListener("unauthorized", () => view && login());

/** Asks for the token. It goes to the server once, and comes back as a cookie that scripts can't read. */
function login() {
  localStorage.removeItem("loggedIn");
  feed.stop();
  view.close();
  view = null;
  logout.hidden = true;
  document.body.dataset.feed = "denied";
  setText(live.lastChild, "logged out");
  found();
  closeDialog();
  fleet.replaceChildren();
  const token = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
  const error = h("p", { class: "error", role: "alert" });
  const enter = async (event) => {
    event.preventDefault();
    setText(error, "");
    try {
      await post("/login", { body: token.value });
      localStorage.setItem("loggedIn", "yes");
      start();
    } catch (failure) {
      setText(error, failure.message);
      token.select();
    }
  };
  const form = h("form", { class: "login", onsubmit: enter }, h("h1", { text: "Log in" }), h("p", null, "This port asks for the token of ", h("code", { text: "admin.tokenFile" }), "."), h("label", { for: "token", text: "Token" }), token, h("button", { class: "primary", type: "submit", text: "Log in" }), error);
  main.replaceChildren(form);
  token.focus();
}

function start() {
  logout.hidden = localStorage.getItem("loggedIn") !== "yes";
  main.replaceChildren(h("p", { class: "empty", text: "Waiting for the first figures…" }));
  feed = new Feed(changed, state);
  route();
}

function state(now, why) {
  document.body.dataset.feed = now;
  setText(live.lastChild, WORDS[now]);
  if (now !== "lost") return found();
  lostSince ??= feed.heardAt || Date.now();
  reason = why;
  showLoss();
}

/** Shows no loss any more. */
function found() {
  lostSince = null;
  lost.hidden = true;
  setText(lostAlert, "");
}

/** Only the first words are an alert: a reader would speak the time again each second. */
function showLoss() {
  if (!lostSince) return;
  const span = seconds(Math.max(1, Math.round((Date.now() - lostSince) / 1000)));
  lost.hidden = false;
  setText(lostAlert, "The live feed is lost, so these figures are old.");
  setText(lostDetail, `For ${span}: ${reason}. Trying again…`);
}

/** Draws at most once a frame, whatever comes in. */
function changed() {
  drawing ??= requestAnimationFrame(draw);
}

function draw() {
  drawing = null;
  if (!view) return;
  drawFleet();
  view.render();
}

const facts = new Map();

function fact(label, text, kind = "") {
  if (!facts.has(label)) {
    const value = h("dd");
    facts.set(label, { value, element: h("div", { class: kind }, h("dt", { text: label }), value) });
  }
  const { value, element } = facts.get(label);
  setText(value, text);
  return element;
}

function drawFleet() {
  let [held, flight, tokens, ready, desired, gpus, hourly, saved, hours] = Array(9).fill(0);
  let priced = false;
  for (const pool of feed.pools.values()) {
    const price = cost(pool);
    priced ||= price.priced;
    held += pool.held;
    flight += pool.inFlight;
    tokens += pool.tokens;
    ready += pool.replicas.ready;
    desired += pool.desired;
    gpus += price.gpus;
    hourly += price.hourly;
    saved += price.saved;
    hours += price.savedGpuHours;
  }
  const all = [
    fact("replicas", `${ready} of ${desired}`),
    fact("held", number(held), "held"),
    fact("in flight", number(flight)),
    fact("tokens/s", number(tokens)),
    fact(gpus === 1 ? "GPU" : "GPUs", number(gpus)),
    priced ? fact("per hour", money(hourly), "money") : null,
    priced ? fact("saved today", money(saved), "money") : fact("GPU-hours saved today", number(hours), "money"),
  ].filter(Boolean);
  all.forEach((element, i) => {
    if (fleet.children[i] !== element) fleet.insertBefore(element, fleet.children[i] ?? null);
  });
  while (fleet.children.length > all.length) fleet.lastChild.remove();
}

/** The pool that the address names, or nothing. */
function poolOfAddress() {
  const encoded = location.hash.match(/^#\/pool\/(.+)$/)?.[1];
  try {
    return encoded && decodeURIComponent(encoded);
  } catch {
    return undefined; // It names nothing.
  }
}

function route() {
  view?.close();
  const pool = poolOfAddress();
  view = pool ? new PoolPage(feed, pool) : new Overview(feed);
  document.title = pool ? `${pool} · Forebay` : "Forebay";
  main.replaceChildren(view.element);
  scrollTo(0, 0);
  if (feed.heardAt) draw();
}

addEventListener("hashchange", () => {
  if (view) {
    route();
    main.focus({ preventScroll: true });
  }
});
// The address says which pool is shown, so the link can't use it.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
// Times that are left run down between events.
setInterval(() => {
  showLoss();
  if (!document.hidden) changed();
}, 1000);
theme();
start();
