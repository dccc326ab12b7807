// The overview: troubles on top, then a row for each pool. Only the rows in view are in the document.

import { h, keyed, setAttribute, setText } from "./dom.js";
import { cost, count, money, number, occupying, seconds, time } from "./format.js";
import { spark } from "./chart.js";
import { get } from "./feed.js";

const STATES = ["ready", "starting", "pending", "draining", "failed"];
const WORDS = { ready: "ready", starting: "starting", pending: "pending", draining: "draining", failed: "failed" };
/** Rows beyond the window's edges. */
const BEYOND = 4;
/** Troubles that are shown, and the pools named in each: at first, and with each further look. */
const MOST_TROUBLES = 6;
const MORE_TROUBLES = 50;
const MOST_NAMES = 3;
const MORE_NAMES = 30;
/** Kinds of trouble, the worst first. */
const RANK = ["gateway", "cannotStart", "target", "failed", "slowStart", "trigger", "maximum"];
const FRESH = 10e3;

/** Much quicker than `localeCompare`, which looks for its language each time. */
const byName = new Intl.Collator().compare;

const ORDERS = {
  name: ["Name", (a, b) => byName(a.name, b.name)],
  held: ["Most held", (a, b) => b.held - a.held || b.inFlight - a.inFlight],
  flight: ["Most in flight", (a, b) => b.inFlight - a.inFlight],
  trouble: ["Needs attention", (a, b) => (b.troubles?.length ?? 0) - (a.troubles?.length ?? 0) || byName(a.name, b.name)],
  ttft: ["Slowest first token", (a, b) => (b.ttftP95 ?? 0) - (a.ttftP95 ?? 0)],
  cost: ["Most GPUs", (a, b) => cost(b).gpus - cost(a).gpus],
};

/** The replicas of a pool as a bar, and in words. */
export function replicaWords(pool) {
  const { replicas, desired } = pool;
  const parts = STATES.filter((state) => replicas[state] > 0).map((state) => `${replicas[state]} ${WORDS[state]}`);
  const words = parts.length ? parts.join(", ") : desired > 0 ? `${desired} wanted` : "at zero";
  const left = pool.nextReadyMillis ? (pool.nextReadyMillis - time.now()) / 1000 : null;
  const wait = left === null ? "" : left > 0.5 ? `, ${seconds(Math.ceil(left))} left` : ", any moment";
  return words + wait;
}

export function replicaBar() {
  const segments = Object.fromEntries(STATES.map((state) => [state, h("i", { class: state })]));
  const missing = h("i", { class: "missing" });
  const element = h("span", { class: "bar", "aria-hidden": "true" }, ...Object.values(segments), missing);
  return {
    element,
    update({ replicas, desired }) {
      const there = occupying({ replicas }) + replicas.pending - replicas.draining;
      const grow = (segment, value) => {
        segment.hidden = value <= 0;
        segment.style.flexGrow = value;
      };
      for (const state of STATES) grow(segments[state], replicas[state]);
      grow(missing, desired - there);
      element.classList.toggle("none", desired === 0 && there === 0);
    },
  };
}

function row() {
  const cell = (kind, ...children) => h("span", { class: `cell ${kind}`, role: "cell" }, ...children);
  const name = h("b");
  // It covers the row. The row itself can't be the link: its role as a row would hide that.
  const link = h("a", null, name);
  const models = h("small");
  const badge = h("span", { class: "badge" });
  const bar = replicaBar();
  const replicas = h("small");
  const figures = ["held", "inFlight", "ttftP95", "tokens"].map((key) => ({ key, value: h("b"), chart: spark(key) }));
  const costs = h("b");
  const saved = h("small");
  const why = h("small", { class: "why" });
  const [held, flight, ttft, tokens] = figures.map((one) => cell(`figure ${one.key}`, one.value, one.chart.element));
  const element = h("div", { class: "row", role: "row" }, cell("name", h("span", { class: "first" }, link, badge), models), cell("replicas", bar.element, replicas), held, flight, ttft, tokens, cell("cost", costs, saved), cell("why", why));
  let drawn;
  return {
    element,
    update(pool, at, history) {
      const { settings } = pool;
      setAttribute(link, "href", `#/pool/${encodeURIComponent(pool.name)}`);
      element.style.transform = `translateY(${at.top}px)`;
      setAttribute(element, "aria-rowindex", at.index + 2);
      setText(name, pool.name);
      const more = settings.modelCount - settings.models.length;
      setText(models, settings.models.length ? settings.models.join(", ") + (more > 0 ? ` and ${more} more` : "") : "any model");
      const state = pool.troubles?.length ? "trouble" : pool.operatorOverride === "paused" ? "paused" : pool.operatorOverride?.fixed !== undefined ? "fixed" : "";
      setText(badge, state);
      badge.className = `badge ${state}`;
      bar.update(pool);
      setText(replicas, replicaWords(pool));
      setText(held.firstChild, number(pool.held));
      setText(flight.firstChild, number(pool.inFlight));
      setText(ttft.firstChild, seconds(pool.ttftP95));
      setText(tokens.firstChild, number(pool.tokens));
      held.classList.toggle("some", pool.held > 0);
      const price = cost(pool);
      setText(costs, price.priced ? money(price.hourly) : price.gpus === 1 ? "1 GPU" : `${price.gpus} GPUs`);
      setText(saved, price.priced ? `${money(price.saved)} saved` : `${number(price.savedGpuHours)} GPU-h saved`);
      setText(why, pool.why);
      setAttribute(link, "title", pool.why);
      if (history !== drawn) {
        drawn = history;
        for (const { chart, key } of figures) chart.update(history, key);
      }
    },
  };
}

function fleetTroubles(gateways) {
  return gateways
    .filter((gateway) => gateway.silentMillis > 3000 && gateway.listed)
    .map((gateway) => ({ pool: null, kind: "gateway", text: `the gateway at ${gateway.url} is silent, so nothing scales down` }));
}

export class Overview {
  constructor(feed) {
    this.feed = feed;
    this.histories = new Map();
    this.listed = [];
    this.gateways = [];
    this.rows = new Map();
    this.troubleViews = new Map();
    this.filter = h("input", { type: "search", placeholder: "Filter by pool or model", "aria-label": "Filter by pool or model", oninput: () => this.render() });
    this.order = h("select", { "aria-label": "Order", onchange: () => this.render() }, ...Object.entries(ORDERS).map(([key, [label]]) => h("option", { value: key, text: label })));
    this.found = h("span", { class: "found", role: "status" });
    this.troubles = h("ul");
    this.moreTroubles = 0;
    this.more = h("button", { class: "quiet more", type: "button", hidden: true, onclick: () => this.showMore() });
    this.trouble = h("section", { class: "troubles", "aria-label": "Needs attention", hidden: true }, this.troubles, this.more);
    const heads = ["Pool", "Replicas", "Held", "In flight", "TTFT p95", "Tokens/s", "Per hour", "Last change"];
    const kinds = ["name", "replicas", "figure held", "figure inFlight", "figure ttftP95", "figure tokens", "cost", "why"];
    this.body = h("div", { class: "rows", role: "rowgroup" });
    this.table = h("div", { class: "table", role: "table", "aria-label": "Pools" }, h("div", { class: "row head", role: "row", "aria-rowindex": 1 }, ...heads.map((text, i) => h("span", { class: `cell ${kinds[i]}`, role: "columnheader", text }))), this.body);
    this.empty = h("p", { class: "empty" });
    this.element = h("div", { class: "overview" }, this.trouble, h("div", { class: "tools" }, this.filter, this.order, this.found), this.table, this.empty);
    this.onscroll = () => this.draw();
    addEventListener("scroll", this.onscroll, { passive: true });
    addEventListener("resize", this.onscroll);
    this.timer = setInterval(() => document.hidden || this.look(), 5000);
    this.look();
  }

  close() {
    removeEventListener("scroll", this.onscroll);
    removeEventListener("resize", this.onscroll);
    clearInterval(this.timer);
  }

  /** Asks for the gateways, and for histories that are out of date. */
  async look() {
    this.gateways = await get("/gateways").catch(() => this.gateways);
    await this.fetchHistories();
    this.render();
  }

  async fetchHistories() {
    const old = Date.now() - FRESH;
    const wanted = [...this.rows.keys()].filter((name) => !(this.histories.get(name)?.at > old)).slice(0, 64);
    if (!wanted.length || this.fetching) return;
    this.fetching = true;
    try {
      const histories = await get(`/history?pool=${wanted.map(encodeURIComponent).join(",")}`);
      const at = Date.now();
      for (const name of wanted) this.histories.set(name, { at, columns: histories[name] });
      for (const name of this.histories.keys()) if (!this.feed.pools.has(name)) this.histories.delete(name);
      if (this.histories.size > 500) this.histories = new Map([...this.histories].slice(-100));
    } catch {
      // The feed shows that the server is away.
    } finally {
      this.fetching = false;
    }
    this.render();
  }

  /** Shows what has changed. */
  render() {
    if (!this.element.isConnected) return;
    this.renderTroubles();
    this.list();
    this.draw();
  }

  /** Chooses the pools to show, and their order. */
  list() {
    const text = this.filter.value.trim().toLowerCase();
    const fits = (pool) => !text || pool.name.toLowerCase().includes(text) || pool.settings.models.some((model) => model.toLowerCase().includes(text));
    this.listed = [...this.feed.pools.values()].filter(fits).sort(ORDERS[this.order.value][1]);
    const all = this.feed.pools.size;
    setText(this.found, text ? `${this.listed.length} of ${count(all, "pool")}` : count(all, "pool"));
    setText(this.empty, this.listed.length || !this.feed.heardAt ? "" : all ? "No pool fits the filter." : "No decision yet: the scaler has not heard a gateway.");
  }

  /** Draws the rows in view. Scrolling needs no more than this. */
  draw() {
    if (!this.element.isConnected) return;
    const pools = this.listed;
    const height = this.rowHeight();
    this.body.style.height = `${pools.length * height}px`;
    setAttribute(this.table, "aria-rowcount", pools.length + 1);
    const above = -this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / height) - BEYOND);
    const last = Math.min(pools.length, Math.ceil((above + innerHeight) / height) + BEYOND);
    const shown = pools.slice(first, last).map((pool, i) => ({ pool, at: { index: first + i, top: (first + i) * height } }));
    const focused = this.body.contains(document.activeElement) && document.activeElement.getAttribute("href");
    keyed(this.body, this.rows, shown, ({ pool }) => pool.name, row, (view, { pool, at }) => view.update(pool, at, this.histories.get(pool.name)?.columns));
    if (focused && !this.body.contains(document.activeElement)) this.body.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
    if (shown.some(({ pool }) => !this.histories.has(pool.name))) this.soon();
  }

  /** Fetches histories once scrolling has come to rest. */
  soon() {
    clearTimeout(this.pending);
    this.pending = setTimeout(() => this.fetchHistories(), 150);
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.body).getPropertyValue("--row")) || 60;
  }

  /** Troubles, the worst first. Pools with the same one share a line. */
  renderTroubles() {
    const groups = new Map();
    const add = (kind, text, pool) => {
      const key = `${kind}: ${text}`;
      if (!groups.has(key)) groups.set(key, { key, kind, text, pools: [] });
      if (pool) groups.get(key).pools.push(pool);
    };
    for (const { kind, text } of fleetTroubles(this.gateways)) add(kind, text);
    for (const pool of this.feed.pools.values()) for (const { kind, text } of pool.troubles ?? []) add(kind, text, pool.name);
    const all = [...groups.values()].sort((a, b) => RANK.indexOf(a.kind) - RANK.indexOf(b.kind) || byName(a.pools[0] ?? "", b.pools[0] ?? ""));
    this.trouble.hidden = all.length === 0;
    const make = ({ kind, text }) => {
      const pools = h("span", { class: "pools" });
      return { element: h("li", { class: kind }, pools, h("span", { text })), pools, shown: "" };
    };
    keyed(this.troubles, this.troubleViews, all.slice(0, MOST_TROUBLES + this.moreTroubles), ({ key }) => key, make, (view, { pools }) => {
      const most = this.moreTroubles ? MORE_NAMES : MOST_NAMES;
      const shown = pools.slice(0, most).join() + pools.length;
      if (view.shown === shown) return;
      view.shown = shown;
      const links = pools.slice(0, most).map((name) => h("a", { href: `#/pool/${encodeURIComponent(name)}`, text: name }));
      const rest = pools.length - links.length;
      view.pools.replaceChildren(...links, ...(rest > 0 ? [`and ${rest} more`] : []));
    });
    this.rest = Math.max(0, all.length - MOST_TROUBLES - this.moreTroubles);
    const hiddenNames = all.some(({ pools }) => pools.length > MOST_NAMES);
    this.more.hidden = !this.moreTroubles && !this.rest && !hiddenNames;
    setText(this.more, this.rest ? `Show ${Math.min(this.rest, MORE_TROUBLES)} of ${this.rest} more` : this.moreTroubles ? "Show fewer" : "Show all pools");
  }

  /** Shows more of the troubles, and the fewest again after all. */
  showMore() {
    this.moreTroubles = this.rest || !this.moreTroubles ? this.moreTroubles + MORE_TROUBLES : 0;
    this.renderTroubles();
  }
}
