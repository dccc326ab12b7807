// Commands for a pool, each after a question that says what will happen.

import { h, notify, openDialog } from "./dom.js";
import { count } from "./format.js";
import { post } from "./feed.js";

/** How long a command that takes long keeps a connection, of which a browser has six, before it goes on alone. */
const LONGEST = 10000;

/**
 * Asks before a command is sent. `field` may be an input whose value goes into the path. `goesOn` says that a
 * command that takes long goes on without the page.
 */
export function confirm({ title, text, button, path, field, danger = false, goesOn }) {
  const error = h("p", { class: "error", role: "alert" });
  const send = async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      const signal = goesOn ? AbortSignal.timeout(LONGEST) : undefined;
      notify(await post(typeof path === "function" ? path(field?.value) : path, { signal }));
      dialog.close();
    } catch (failure) {
      if (goesOn && failure.name === "TimeoutError") {
        notify(goesOn);
        dialog.close();
      } else if (dialog.isOpen()) {
        error.textContent = failure.message;
        go.disabled = false;
      } else {
        notify(`${title} ${failure.message}`, true);
      }
    }
  };
  const go = h("button", { class: danger ? "primary danger" : "primary", type: "submit", text: button });
  const back = h("button", { type: "button", text: "Cancel", onclick: () => dialog.close() });
  const label = field ? h("label", null, field.getAttribute("aria-label"), " ", field) : null;
  const dialog = openDialog(title, h("form", { onsubmit: send }, h("p", { text }), label, error, h("div", { class: "buttons" }, back, go)));
  (field ?? go).focus();
}

/** The buttons of a pool. */
export function poolActions(name) {
  const at = `/pools/${encodeURIComponent(name)}`;
  const button = (text, onclick) => h("button", { type: "button", text, onclick });
  const wake = button("Wake", () =>
    confirm({ title: `Wake ${name}?`, text: "Starts a replica as if a request had come. The pool goes to sleep again once it was idle for its cooldown.", button: "Wake", path: `${at}/wake` }));
  const zero = button("To zero", () =>
    confirm({ title: `Send ${name} to its idle count?`, text: "Stops its replicas now, as if the cooldown had passed. It is refused while a request is held or in flight. The next request wakes the pool.", button: "To zero", path: `${at}/zero`, danger: true }));
  const pause = button("Pause", () =>
    confirm({ title: `Pause ${name}?`, text: "The count stays as it is, whatever the load, until you resume.", button: "Pause", path: `${at}/override?paused=true` }));
  const resume = button("Let Forebay decide", () =>
    confirm({ title: `Let Forebay decide for ${name}?`, text: "Takes back the override. The count follows the load again.", button: "Let Forebay decide", path: `${at}/override?none=true` }));
  const fix = button("Set count…", () => {
    const pool = fix.pool;
    const field = h("input", { type: "number", min: 0, max: pool.settings.maxReplicas, value: pool.desired, required: true, "aria-label": "Replicas" });
    confirm({ title: `Fix the count of ${name}?`, text: `Exactly this many replicas, at most ${pool.settings.maxReplicas}, until you take it back. Surplus replicas finish their requests first.`, button: "Fix the count", path: (value) => `${at}/override?replicas=${Number(value)}`, field });
  });
  const element = h("div", { class: "actions", role: "group", "aria-label": "Actions" }, wake, zero, pause, fix, resume);
  return {
    element,
    update(pool) {
      fix.pool = pool;
      const overridden = Boolean(pool.operatorOverride);
      element.hidden = pool.settings.target === "none";
      resume.hidden = !overridden;
      pause.hidden = overridden;
      wake.hidden = overridden || pool.desired > 0;
      zero.hidden = overridden || pool.desired <= pool.settings.idleReplicas;
    },
  };
}

/** The button that drains a replica. */
export function drainButton(address) {
  return h("button", {
    class: "small",
    type: "button",
    text: "Drain",
    "aria-label": `Drain ${address}`,
    onclick: () =>
      confirm({ title: `Drain ${address}?`, text: "It gets no new requests and finishes those it has. A replica that the load still needs is replaced by another.", button: "Drain", path: `/drain?endpoint=${encodeURIComponent(address)}`, danger: true, goesOn: `${address} still finishes its requests. Its row shows when it has.` }),
  });
}

/** An override in words, or nothing. */
export function overrideWords(override) {
  if (override === "paused") return "paused by an operator: the count stays as it is";
  if (override?.fixed !== undefined) return `fixed by an operator at ${count(override.fixed, "replica")}`;
  return "";
}
