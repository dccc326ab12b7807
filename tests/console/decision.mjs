// The console's explanation of a decision, without a browser: who asked for how many, and what would have
// changed it.

import assert from "node:assert/strict";

// Modules look their elements up as they are loaded.
globalThis.document = { getElementById: () => ({ addEventListener() {} }), addEventListener() {} };
const { counterfactual, demands } = await import("../../src/console/decision.js");

const figures = { held: 0, recent: 0, ahead: 0, season: 0 };
const trigger = (name, needed, active, problem) => ({ name, needed, active, problem });
const asked = (decision) => demands(decision).map(({ label, count }) => [label, count]);

const concurrency = { from: 1, rule: "held", figures: { ...figures, held: 30, recent: 1, ahead: 2, concurrency: 4 } };
assert.deepEqual(asked(concurrency)[0], ["targetConcurrency", 4]);
assert.match(counterfactual(concurrency)[0], /for 4, comes from targetConcurrency\..* for 2, from the queue/);

const woken = { from: 0, rule: "held", figures: { ...figures, held: 1 }, triggers: [trigger("queue", 1, false), trigger("gpu", null, false)] };
assert.deepEqual(asked(woken), [["a held request", 1], ["trigger queue", null], ["trigger gpu", null]]);
assert.deepEqual(counterfactual(woken), ["The largest demand, for 1, comes from a held request. Without it the demand would have been for 0."]);

const broken = { from: 1, rule: "recent", figures: { ...figures, recent: 2 }, triggers: [trigger("gpu", null, false, { kind: "misconfigured", message: "no threshold" })] };
assert.deepEqual(asked(broken)[0], ["the arrivals of the last minutes", 2]);

const nothing = { from: 0, rule: "steady", figures, triggers: [trigger("queue", null, false)] };
assert.deepEqual(counterfactual(nothing), ["Nothing asks for another count."]);
console.log("decision.mjs: ok");
