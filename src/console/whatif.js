// What if: the pool's last day, played again beside others and with changed settings.

import { h, setText } from "./dom.js";
import { age, count, money, number, seconds } from "./format.js";
import { get, post } from "./feed.js";

const NAMES = {
  forebay: "Forebay, present settings",
  beside: "Forebay, your settings",
  "keda-min1": "KEDA on waiting requests, from one replica",
  knative: "Knative",
  kubeai: "KubeAI",
  optimum: "The optimum, which knows the load",
};

/** The name of Forebay where the pool's settings have changed since. */
const OUTDATED = "Forebay, its settings then";

/** The contestants that are Forebay. */
const OURS = ["forebay", "beside"];

function name(key) {
  const fixed = key.match(/^fixed(?:=(\d+))?$/);
  return fixed?.[1] ? `A fixed fleet of ${count(Number(fixed[1]), "replica")}` : fixed ? "A fixed fleet" : (NAMES[key] ?? key);
}

/** The difference between two results, in plain words. */
export function difference(from, to, priced) {
  const words = [];
  const [hours, late] = [to.gpuHours - from.gpuHours, (from.shareWithin - to.shareWithin) * to.requests];
  const relative = from.gpuHours > 0 ? ` (${Math.round(Math.abs(hours / from.gpuHours) * 100)} %)` : "";
  if (Math.abs(hours) < 0.005) words.push("Your settings cost the same");
  else words.push(`Your settings cost ${number(Math.abs(hours))} GPU-hours${relative} ${hours > 0 ? "more" : "less"}${priced ? `, which is ${money(Math.abs(to.cost - from.cost))}` : ""}`);
  const requests = Math.round(Math.abs(late));
  words.push(requests === 0 ? "and serve as many requests within the objective." : `and ${number(requests)} ${late > 0 ? "fewer" : "more"} of ${count(to.requests, "request")} get their first token within the objective.`);
  return words.join(", ");
}

export class WhatIf {
  constructor(pool) {
    this.pool = pool;
    this.path = `/pools/${encodeURIComponent(pool)}/what-if`;
    this.text = h("textarea", { rows: 10, spellcheck: "false", "aria-label": "The scaling section, to be changed" });
    this.details = h("details", { ontoggle: () => this.load() }, h("summary", { text: "With other settings" }), this.text);
    this.button = h("button", { class: "primary", type: "button", text: "Play the last day again", onclick: () => this.begin() });
    this.cancel = h("button", { type: "button", text: "Cancel", hidden: true, onclick: () => post("/what-if/cancel").catch(() => {}) });
    this.progress = h("progress", { hidden: true, "aria-label": "Progress" });
    this.playing = h("span", { class: "note", role: "status" });
    this.note = h("p", { class: "note" });
    this.error = h("p", { class: "error", role: "alert" });
    this.body = h("tbody");
    const heads = ["", "Within the objective", "TTFT p95", "Gave up", "GPU-hours", "Cost", "Starts", "Most replicas"];
    this.table = h("div", { class: "scroll", hidden: true }, h("table", { class: "list results" }, h("thead", null, h("tr", null, ...heads.map((text) => h("th", { scope: "col", text })))), this.body));
    this.words = h("p", { class: "sentence" });
    this.played = h("pre", { class: "output" });
    this.settings = h("details", { hidden: true }, h("summary", { text: "The settings that were tried" }), this.played);
    this.element = h("section", { class: "what-if", hidden: true }, h("h2", { text: "What if" }), h("p", { class: "note", text: "Plays this pool's arrivals of the last day in simulated time, with the replica model of the configuration's replay section." }), this.details, h("div", { class: "tools" }, this.button, this.cancel, this.progress, this.playing), this.error, this.note, this.words, this.settings, this.table);
    fetch(this.path).then((response) => (this.element.hidden = !response.ok), () => {});
  }

  /** Fetches the present settings, once they are to be changed. */
  async load() {
    if (!this.details.open || this.text.value) return;
    const response = await fetch(this.path);
    this.present = response.ok ? await response.text() : "";
    this.text.value = this.present;
  }

  async begin() {
    setText(this.error, "");
    this.button.disabled = true;
    try {
      const changed = this.details.open && this.text.value !== this.present ? this.text.value : "";
      await post(this.path, { body: changed });
      this.busy = true;
    } catch (failure) {
      setText(this.error, failure.message);
    }
    this.button.disabled = false;
  }

  /** Shows the rehearsal under way, or the last one, if it is this pool's. */
  async look(signal) {
    if (this.element.hidden) return;
    const shown = await get("/what-if", signal);
    const ours = shown?.pool === this.pool;
    const running = Boolean(shown?.running);
    this.button.disabled = running;
    this.cancel.hidden = this.progress.hidden = !(running && ours);
    if (!ours) {
      setText(this.playing, "");
      setText(this.note, running ? `A rehearsal of ${shown.pool} is under way.` : "");
      return;
    }
    this.progress.max = shown.parts;
    this.progress.value = Object.keys(shown.contestants).length + (shown.playing?.share ?? 0);
    setText(this.error, shown.error ?? "");
    this.draw(shown);
  }

  draw({ load, setting, contestants, playing, sinceMillis, changed, outdated, cancelled, parts }) {
    const all = Object.entries(contestants).map(([key, contestant]) => ({ key, ...contestant }));
    this.table.hidden = all.length === 0;
    setText(this.playing, playing ? `Playing: ${name(playing.name)}…` : "");
    this.settings.hidden = !changed;
    setText(this.played, changed ?? "");
    const when = `Begun ${age(sinceMillis)} ago, with the arrivals until then${outdated ? " and the settings of that time, which have changed since" : ""}.`;
    const left = cancelled ? ` Cancelled: ${all.length} of ${parts} were played.` : "";
    if (!load) return setText(this.note, when + left);
    const priced = setting.gpuHourPrice > 0;
    setText(this.note, `${when}${left} ${number(load.requests)} requests in ${seconds(load.hours * 3600)}, objective: ${Math.round(setting.objectiveShare * 1000) / 10} % within ${seconds(setting.objectiveTtftSeconds)}; a start takes ${seconds(setting.coldStartSeconds)}.`);
    const order = (one) => OURS.indexOf(one.key);
    all.sort((a, b) => (order(b) + 1 ? 3 - order(b) : 0) - (order(a) + 1 ? 3 - order(a) : 0) || a.gpuHours - b.gpuHours);
    this.body.replaceChildren(...all.map((one) => h("tr", { class: order(one) >= 0 ? "ours" : "" }, ...[outdated && one.key === "forebay" ? OUTDATED : name(one.key), `${(one.shareWithin * 100).toFixed(1)} %`, one.ttftSeconds ? seconds(one.ttftSeconds.p95) : "–", number(one.gaveUp), number(one.gpuHours), priced ? money(one.cost) : "–", number(one.starts), number(one.peakReplicas)].map((text) => h("td", { text })))));
    setText(this.words, contestants.beside && contestants.forebay ? difference(contestants.forebay, contestants.beside, priced) : "");
  }
}
