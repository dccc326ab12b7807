// One decision: its sentence, its figures, each trigger's proposal, and what would have changed it.

import { h, openDialog } from "./dom.js";
import { clock, count, number, seconds } from "./format.js";

/** Rules that keep a count which would otherwise have changed, with the way out. */
const WAITS = {
  steady: "Nothing asks for another count.",
  unheard: "It changes once every gateway reports again.",
  unread: "It changes once the trigger can be read again.",
  learning: "It changes once the load was observed for a whole stableWindow.",
  panic: "It changes a stableWindow after the load last rose steeply.",
  starting: "It changes once the start under way has ended.",
  behavior: "It changes when scaling.behavior allows the next step.",
  kept: "It falls once the highest demand is older than the stableWindow.",
  last: "It goes to zero after the cooldown without requests.",
  paused: "It changes once the pause is taken back.",
  fixed: "It changes once the override is taken back.",
  maximum: "A higher maxReplicaCount would have allowed more.",
  minimum: "A lower minReplicaCount would have allowed fewer.",
  idle: "A request within the cooldown, or a longer cooldownPeriod, would have kept the replicas.",
  ordered: "An operator asked for it; the load decides from then on.",
  unscaled: "The pool has no scale target.",
};

/** A trigger's part in the demand. At zero, one that is not active asks for nothing. */
function ofTrigger(trigger, from) {
  const silent = trigger.needed === null || (from === 0 && !trigger.active);
  return { label: `trigger ${trigger.name}`, count: silent ? null : Math.max(0, Math.ceil(trigger.needed - 1e-9)), problem: trigger.problem?.message };
}

/** The counts that were asked for, the largest first. Triggers replace the load, if any can work. */
export function demands(decision) {
  const { figures, from, triggers = [] } = decision;
  const all = triggers.map((trigger) => ofTrigger(trigger, from));
  if (triggers.every((trigger) => trigger.problem?.kind === "misconfigured")) {
    all.push(
      { label: "the arrivals of the last minutes", count: figures.recent },
      { label: "the queue and the arrivals expected next", count: figures.ahead },
      { label: "the usual load at this time of day", count: figures.season },
    );
    if (figures.concurrency !== undefined) all.push({ label: "targetConcurrency", count: figures.concurrency });
  }
  if (figures.held > 0) all.push({ label: "a held request", count: 1 });
  return all.sort((a, b) => (b.count ?? -1) - (a.count ?? -1));
}

/** What would have changed a decision, in plain words. */
export function counterfactual(decision) {
  const words = [];
  const asked = demands(decision).filter((demand) => demand.count !== null);
  const first = asked[0];
  if (WAITS[decision.rule]) words.push(WAITS[decision.rule]);
  if (first && first.count > 0 && !["paused", "fixed", "ordered", "unscaled"].includes(decision.rule)) {
    const equal = asked.filter((demand) => demand.count === first.count);
    const next = asked[equal.length];
    words.push(equal.length > 1
      ? `${equal.length} reasons ask for ${count(first.count, "replica")}: ${equal.map((demand) => demand.label).join("; ")}. Without one of them the others would have asked for the same.`
      : `The largest demand, for ${first.count}, comes from ${first.label}. Without it the demand would have been for ${next?.count ?? 0}${next?.count ? `, from ${next.label}` : ""}.`);
  }
  return words;
}

function table(rows) {
  return h("table", null, h("tbody", null, ...rows.map(([label, value]) => h("tr", null, h("th", { scope: "row", text: label }), h("td", { text: value })))));
}

/** Shows a decision. */
export function showDecision(decision) {
  const { figures } = decision;
  const facts = table([
    ["Requests held", figures.held],
    ["Requests in flight", figures.inFlight],
    ["Replicas ready", figures.ready],
    ["Replicas starting", figures.coming],
    ["Arrivals a second", number(figures.rate)],
    ["Expected cold start", seconds(figures.coldStartSeconds)],
  ]);
  const asked = table(demands(decision).map((demand) => [demand.label, demand.problem ?? (demand.count === null ? "proposes nothing" : number(demand.count))]));
  const triggers = decision.triggers?.length
    ? h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null, ...["Trigger", "Kind", "Value", "Threshold", "Replicas", "Age"].map((text) => h("th", { scope: "col", text })))), h("tbody", null, ...decision.triggers.map((one) => h("tr", null, h("th", { scope: "row", text: one.name }), ...[one.kind, number(one.figure), number(one.threshold), one.needed === null ? "–" : number(one.needed), one.ageMs === undefined ? "first-hand" : seconds(one.ageMs / 1000)].map((text) => h("td", { text })))))))
    : null;
  openDialog(
    `${clock(decision.atMillis)}: ${decision.from} → ${decision.desired}`,
    h("p", { class: "sentence", text: decision.why }),
    h("div", { class: "columns" }, h("section", null, h("h3", { text: "The figures" }), facts), h("section", null, h("h3", { text: "Who asked for how many" }), asked)),
    triggers && h("section", null, h("h3", { text: "Triggers" }), triggers),
    h("section", null, h("h3", { text: "What would have changed it" }), ...counterfactual(decision).map((text) => h("p", { text }))),
    h("p", { class: "rule" }, "Rule: ", h("code", { text: decision.rule })),
  );
}
