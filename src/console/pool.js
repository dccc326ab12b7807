// One pool: its present state, charts with the decisions as marks, the queue, endpoints, output.

import { h, keyed, setText } from "./dom.js";
import { age, clock, cost, count, money, number, seconds, share, time } from "./format.js";
import { Chart, spanOf } from "./chart.js";
import { Chat } from "./chat.js";
import { drainButton, overrideWords, poolActions } from "./actions.js";
import { showDecision } from "./decision.js";
import { get } from "./feed.js";
import { WhatIf } from "./whatif.js";
import { replicaBar, replicaWords } from "./overview.js";

const CHARTS = [
  { title: "Requests", series: [{ key: "inFlight", label: "in flight", kind: "inFlight", shape: "step" }, { key: "held", label: "held", kind: "held", shape: "step" }] },
  {
    title: "Replicas",
    series: [
      { key: "ready", label: "ready", kind: "ready", shape: "area" },
      { key: "starting", label: "starting", kind: "starting", shape: "step", of: (history) => history.starting.map((n, i) => n + history.pending[i]) },
      { key: "desired", label: "wanted", kind: "desired", shape: "step" },
    ],
    unit: number,
    least: 1,
  },
  { title: "Time to first token", series: [{ key: "ttftP95", label: "p95", kind: "ttftP95", shape: "line" }, { key: "ttftP50", label: "p50", kind: "p50", shape: "line" }], unit: seconds, least: 0.05 },
  { title: "Between tokens", series: [{ key: "itlP95", label: "p95", kind: "ttftP95", shape: "line" }, { key: "itlP50", label: "p50", kind: "p50", shape: "line" }], unit: seconds, least: 0.005 },
  { title: "Arrivals a second", series: [{ key: "arrivals", label: "arrived", kind: "inFlight", shape: "line" }, { key: "failures", label: "failed", kind: "failed", shape: "line" }] },
  { title: "Tokens a second", series: [{ key: "tokens", label: "generated", kind: "tokens", shape: "line" }] },
  { title: "Found in prefix caches", series: [{ key: "hitShare", label: "of prompt tokens", kind: "ready", shape: "line" }], unit: share, least: 1 },
];
/** Why an endpoint may have no more requests, unless it is configured. */
const LIMITED = {
  slowStart: "starts slowly",
  growing: "grows",
  waiting: "more would wait",
  reported: "more waited",
  gain: "more bring nothing",
  kvCache: "its cache is full",
};
const MOST_DECISIONS = 40;
const MOST_ENDPOINTS = 200;
const MOST_MISSING = 3;
const UNKNOWN = "–";
const MOST_OUTPUT = 200e3;

/** A table whose body is kept in line with keyed rows of texts and elements. */
class Table {
  constructor(label, heads) {
    this.known = new Map();
    this.body = h("tbody");
    this.element = h("div", { class: "scroll" }, h("table", { class: "list", "aria-label": label }, h("thead", null, h("tr", null, ...heads.map((text) => h("th", { scope: "col", text })))), this.body));
  }

  /** `rows` are `[key, cells, kind]`; a cell is a text, or a function that makes an element once. */
  update(rows) {
    const make = ([, cells]) => {
      const fields = cells.map((cell) => h("td", null, typeof cell === "function" ? cell() : ""));
      return { element: h("tr", null, ...fields), fields };
    };
    keyed(this.body, this.known, rows, ([key]) => key, make, ({ element, fields }, [, cells, kind]) => {
      element.className = kind ?? "";
      cells.forEach((cell, i) => typeof cell !== "function" && setText(fields[i], String(cell)));
    });
  }
}

/** Endpoints by address, as the gateways see them: the newest probe and answer, the most failures. */
function seenByGateways(reports) {
  const seen = new Map();
  for (const { report } of reports) {
    for (const one of report?.endpoints ?? []) {
      const known = seen.get(one.address);
      if (!known) {
        seen.set(one.address, one);
        continue;
      }
      for (const key of ["lastProbeMillis", "lastAnswerMillis", "failuresInARow", "silentProbes"]) known[key] = Math.max(known[key] ?? 0, one[key] ?? 0) || null;
      if (!known.learned?.cacheReported) known.learned = one.learned ?? known.learned;
    }
  }
  return seen;
}

/** How much a prefix cache remembers: tokens; "about" if the replica does not report it. */
function cacheWords(one) {
  if (!one?.learned) return UNKNOWN;
  return `${one.learned.cacheReported ? "" : "about "}${number(one.learned.cacheTokens)} tokens`;
}

/** How fast a replica reads prompts, and how it compares with the others. */
function speedWords(one) {
  if (!one?.learned) return UNKNOWN;
  const { promptBytesPerSecond, firstTokenSlowness } = one.learned;
  const than = firstTokenSlowness > 1.15 ? `, ${number(firstTokenSlowness)}× slower` : firstTokenSlowness < 0.87 ? `, ${number(1 / firstTokenSlowness)}× faster` : "";
  return `${number(promptBytesPerSecond / 1e3)} kB/s${than}`;
}

function failedWords(endpoint, one) {
  return one?.failuresInARow ? `${number(endpoint.failed)}, ${one.failuresInARow} in a row` : number(endpoint.failed);
}

/** The last probe; requests that are answered make probes needless. */
function probeWords(one) {
  if (!one?.lastProbeMillis) return UNKNOWN;
  const silent = one.silentProbes ? `, ${one.silentProbes} silent` : "";
  const recent = time.now() - one.lastProbeMillis < 1000;
  return (recent ? "just now" : `${age(one.lastProbeMillis)} ago`) + silent;
}

export class PoolPage {
  constructor(feed, name) {
    [this.feed, this.name] = [feed, name];
    this.path = `/pools/${encodeURIComponent(name)}`;
    this.abort = new AbortController();
    this.actions = poolActions(name);
    this.bar = replicaBar();
    this.words = h("p", { class: "words" });
    this.models = h("p", { class: "models" });
    this.override = h("p", { class: "override" });
    this.now = h("dl", { class: "now" });
    this.facts = new Map();
    this.troubles = h("ul", { class: "troubles inline" });
    this.why = h("p", { class: "sentence" });
    this.charts = CHARTS.map((chart) => new Chart({ ...chart, hover: (at) => this.charts.forEach((other) => other.point(at)), pick: showDecision }));
    this.span = h("h2", { text: "The last hour" });
    this.decisions = h("ol", { class: "decisions" });
    this.noDecisions = h("p", { class: "note", text: "The count has not changed since the scaler began.", hidden: true });
    this.decisionViews = new Map();
    this.queue = new Table("Held requests", ["Tenant", "Class", "Held for", "Starts in", "Refused in", "Tokens", "Remarks"]);
    this.queueNote = h("p", { class: "note" });
    this.endpoints = new Table("Endpoints", ["Replica", "State", "In flight", "TTFT", "ITL", "Tokens/s", "Cache hits", "Cache", "Reads prompts", "Served", "Failed", "Probed", ""]);
    this.endpointNote = h("p", { class: "note" });
    this.rates = new Map();
    this.replica = h("select", { "aria-label": "Replica", onchange: () => this.showOutput() });
    this.output = h("pre", { class: "output", tabindex: 0, "aria-label": "Output" });
    this.outputSection = h("section", { hidden: true }, h("div", { class: "tools" }, h("h2", { text: "Output" }), this.replica), this.output);
    this.chat = new Chat(this.path, () => this.feed.pools.get(this.name)?.settings.models ?? []);
    this.whatIf = new WhatIf(name);
    this.header = h("section", { class: "head" }, h("div", { class: "title" }, h("a", { class: "back", href: "#/", "aria-label": "Back to all pools", text: "←" }), h("h1", { text: name }), this.actions.element), this.models, this.override, h("div", { class: "standing" }, this.bar.element, this.words), this.now, this.troubles);
    this.element = h("div", { class: "pool" }, this.header, h("section", null, h("h2", { text: "Why" }), this.why), h("section", null, this.span, h("div", { class: "charts" }, ...this.charts.map((chart) => chart.element))), h("div", { class: "halves" }, h("section", null, h("h2", { text: "Decisions" }), this.noDecisions, this.decisions), h("section", null, h("h2", { text: "Queue" }), this.queueNote, this.queue.element)), h("section", { class: "endpoints" }, h("h2", { text: "Endpoints" }), this.endpointNote, this.endpoints.element), this.chat.element, this.whatIf.element, this.outputSection);
    this.every(2000, () => this.look());
    this.every(2000, () => this.lookAtDecisions());
    this.every(10000, () => this.lookAtHistory());
    this.every(1000, () => this.follow());
    this.every(1500, () => this.whatIf.look(this.abort.signal));
  }

  /** Repeats a look while the page is open, one at a time. A failure is shown by the feed's loss. */
  async every(pause, look) {
    const { signal } = this.abort;
    while (!signal.aborted) {
      if (!document.hidden) await look().catch(() => {});
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  get(path) {
    return get(path, this.abort.signal);
  }

  close() {
    this.abort.abort();
    this.chat.stop();
  }

  render() {
    const pool = this.feed.pools.get(this.name);
    if (!pool) {
      setText(this.words, this.feed.heardAt ? "There is no such pool, or no decision on it yet." : "");
      this.actions.element.hidden = true;
      return;
    }
    this.actions.update(pool);
    this.bar.update(pool);
    const { settings } = pool;
    setText(this.words, `${replicaWords(pool)}; ${pool.desired} wanted, between ${settings.minReplicas} and ${settings.maxReplicas}`);
    setText(this.models, settings.models.length ? `serves ${settings.models.join(", ")}${settings.modelCount > settings.models.length ? ` and ${settings.modelCount - settings.models.length} more` : ""}` : "serves any model");
    setText(this.override, overrideWords(pool.operatorOverride));
    const price = cost(pool);
    const facts = [
      ["held", number(pool.held), pool.held > 0 ? "held" : ""],
      ["in flight", number(pool.inFlight)],
      ["arrivals/s", number(pool.arrivals)],
      ["TTFT p95", seconds(pool.ttftP95)],
      ["tokens/s", number(pool.tokens)],
      [price.priced ? "per hour" : "GPUs", price.priced ? money(price.hourly) : number(price.gpus)],
      [price.priced ? "saved today" : "GPU-hours saved today", price.priced ? money(price.saved) : number(price.savedGpuHours)],
    ];
    keyed(this.now, this.facts, facts, ([label]) => label, ([label]) => {
      const value = h("dd");
      return { element: h("div", null, h("dt", { text: label }), value), value };
    }, (view, [, text, kind]) => {
      view.element.className = kind ?? "";
      setText(view.value, text);
    });
    this.chat.render();
    const troubles = pool.troubles ?? [];
    if (this.shown !== JSON.stringify(troubles)) {
      this.shown = JSON.stringify(troubles);
      this.troubles.replaceChildren(...troubles.map((one) => h("li", { class: one.kind, text: one.text })));
    }
  }

  async lookAtHistory() {
    this.history = (await this.get(`/history?pool=${encodeURIComponent(this.name)}`))[this.name];
    this.drawCharts();
  }

  drawCharts() {
    if (!this.history) return;
    const minutes = spanOf(this.history) / 60e3;
    setText(this.span, minutes === 60 ? "The last hour" : `The last ${minutes} minutes`);
    this.charts.forEach((chart) => chart.update(this.history, this.past));
  }

  async lookAtDecisions() {
    const all = await this.get(`/decisions?pool=${encodeURIComponent(this.name)}`);
    const current = all.find((decision) => decision.current);
    this.past = all.filter((decision) => !decision.current);
    setText(this.why, current ? current.why : "No decision yet.");
    const shown = this.past.slice(0, MOST_DECISIONS).map((decision) => ({ key: `${decision.atMillis}`, decision }));
    const make = ({ decision }) => {
      const kind = decision.desired > decision.from ? "up" : decision.desired < decision.from ? "down" : "kept";
      const button = h("button", { class: `decision ${kind}`, type: "button", onclick: () => showDecision(decision) }, h("time", { text: clock(decision.atMillis) }), h("span", { text: decision.why }));
      return { element: h("li", null, button) };
    };
    keyed(this.decisions, this.decisionViews, shown, ({ key }) => key, make, () => {});
    this.noDecisions.hidden = shown.length > 0;
    this.drawCharts();
  }

  async look() {
    const [detail, queues, reports] = await Promise.all([this.get(this.path), this.get(`${this.path}/queue?limit=50`), this.get(`${this.path}/endpoints?limit=${MOST_ENDPOINTS}`)]);
    this.detail = detail;
    this.drawEndpoints(detail, seenByGateways(reports));
    this.drawQueue(queues);
    this.drawReplicas(detail);
  }

  drawEndpoints({ published, endpoints, waiting, starts }, seen) {
    const at = performance.now();
    const names = new Map();
    const replicas = Object.entries(published.replicas).filter(([, replica]) => replica);
    for (const [id, replica] of replicas) if (replica.address) names.set(replica.address, [id, replica]);
    const rows = Object.entries(endpoints).map(([address, endpoint]) => {
      const [id, replica] = names.get(address) ?? [address, null];
      names.delete(address);
      const before = this.rates.get(address);
      const rate = before ? ((endpoint.generatedTokens - before.tokens) / (at - before.at)) * 1000 : 0;
      this.rates.set(address, { at, tokens: endpoint.generatedTokens });
      const state = replica?.state === "draining" || replica?.state === "failed" ? replica.state : endpoint.health;
      const reason = replica?.reason || endpoint.reason;
      const since = state === "starting" && starts[id] ? ` for ${age(starts[id])}` : "";
      const mean = (sum, n) => (n ? seconds(sum / n) : "–");
      return [
        address,
        [id === address ? address : `${id} at ${address}`, state + since + (reason && state !== "ready" ? `: ${reason}` : ""), `${endpoint.inFlight} of ${endpoint.limit}${LIMITED[endpoint.limitedBy] ? `: ${LIMITED[endpoint.limitedBy]}` : ""}`, mean(endpoint.ttftSeconds, endpoint.firstTokens), mean(endpoint.itlSeconds, endpoint.tokenGaps), number(Math.max(0, Math.round(rate * 10) / 10)), endpoint.promptTokens ? share(endpoint.cachedTokens / endpoint.promptTokens) : "–", cacheWords(seen.get(address)), speedWords(seen.get(address)), number(endpoint.completed), failedWords(endpoint, seen.get(address)), probeWords(seen.get(address)), () => drainButton(address)],
        state,
      ];
    });
    const others = [...replicas.filter(([, replica]) => !replica.address || names.has(replica.address)), ...Object.entries(waiting).map(([name, pod]) => [name, { state: pod.phase, reason: pod.reason }])];
    for (const [id, replica] of others) {
      const since = starts[id] ? ` for ${age(starts[id])}` : "";
      rows.push([id, [id, replica.state + since + (replica.reason ? `: ${replica.reason}` : ""), ...Array(10).fill("–"), () => document.createTextNode("")], replica.state]);
    }
    this.endpoints.update(rows);
    const learned = published.coldStart;
    setText(this.endpointNote, (rows.length ? "" : "No replica runs. The next request starts one. ") + (learned ? `A start takes ${seconds(learned.p50Seconds)}, nine of ten take at most ${seconds(learned.p90Seconds)} (${count(learned.samples, "start")}).` : "No start has been measured yet."));
  }

  drawQueue(queues) {
    const rows = [];
    const missing = queues.filter(({ error }) => error && !error.includes("404")).map(({ url, error }) => `${url}: ${error}`);
    let [total, wait] = [0, null];
    for (const { url, queue } of queues) {
      if (!queue) continue;
      total += queue.held;
      if (queue.expectedWaitSeconds != null) wait = Math.max(wait ?? 0, queue.expectedWaitSeconds);
      for (const one of queue.requests) {
        const left = (millis) => (millis == null ? "–" : seconds(Math.max(0, Math.round((millis - time.now()) / 1000))));
        const at = queues.length > 1 && `at ${url.split("/").at(-1)}`;
        const remarks = [one.again && "tried before", one.late && "late", at].filter(Boolean);
        const cells = [one.tenant, one.class, age(one.sinceMillis), left(one.expectedMillis), left(one.untilMillis), number(one.tokens), remarks.join(", ")];
        rows.push([`${url}/${one.seq}`, cells, one.late ? "late" : ""]);
      }
    }
    this.queue.update(rows);
    this.queue.element.hidden = rows.length === 0;
    const held = this.feed.pools.get(this.name)?.held ?? 0;
    const words = [held ? `${count(held, "request")} held.` : "Nothing is held."];
    if (rows.length && total > rows.length) words.push(`These are the first ${rows.length}.`);
    if (held && wait !== null) words.push(`One more would wait ${seconds(wait)}.`);
    if (held && missing.length) words.push(`Not known: the requests held at ${missing.slice(0, MOST_MISSING).join("; ")}${missing.length > MOST_MISSING ? `, and at ${count(missing.length - MOST_MISSING, "more gateway")}` : ""}.`);
    setText(this.queueNote, words.join(" "));
  }

  drawReplicas({ hasOutput, published }) {
    this.outputSection.hidden = !hasOutput;
    const ids = hasOutput ? Object.keys(published.replicas).filter((id) => published.replicas[id]) : [];
    if (this.ids === ids.join()) return;
    this.ids = ids.join();
    const chosen = ids.includes(this.replica.value) ? this.replica.value : ids.at(-1);
    this.replica.replaceChildren(...ids.map((id) => h("option", { value: id, text: id })));
    if (chosen) this.replica.value = chosen;
    this.replica.hidden = ids.length === 0;
    if (!ids.length && !this.output.textContent) this.output.textContent = "No replica runs.";
    if (chosen && chosen !== this.followed) this.showOutput();
  }

  showOutput() {
    this.followed = this.replica.value;
    this.next = undefined;
    this.output.textContent = "";
  }

  /** Reads what the chosen replica has written since. */
  async follow() {
    if (!this.followed || this.outputSection.hidden) return;
    const replica = this.followed;
    const from = this.next === undefined ? "" : `&from=${this.next}`;
    const piece = await this.get(`${this.path}/output?replica=${encodeURIComponent(replica)}${from}`);
    if (this.followed !== replica) return;
    this.next = piece.next;
    if (!piece.text) return;
    const atEnd = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 30;
    this.output.append(piece.text);
    if (this.output.textContent.length > MOST_OUTPUT) this.output.textContent = this.output.textContent.slice(-MOST_OUTPUT / 2);
    if (atEnd) this.output.scrollTop = this.output.scrollHeight;
  }
}
