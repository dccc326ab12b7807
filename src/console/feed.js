// The live feed of all pools, and requests for data.

import { time } from "./format.js";

/** Time without an event after which the feed counts as lost. A sender writes once a second. */
const SILENCE = 5000;
const RETRIES = [300, 1000, 2000, 4000];

/** The port refuses this browser: a login is needed. */
export class Unauthorized extends Error {
  constructor() {
    super("You are logged out.");
  }
}

/** Dispatches `unauthorized` once the port refuses this browser. */
export const session = new EventTarget();

function refused() {
  session.dispatchEvent(new Event("unauthorized"));
  return new Unauthorized();
}

/** JSON of a path; throws with the server's words. */
export async function get(path, signal) {
  const response = await fetch(path, { signal, headers: { accept: "application/json" } });
  if (response.status === 401) throw refused();
  if (!response.ok) throw new Error((await response.text()).trim() || `${path}: ${response.status}`);
  return response.json();
}

/** Sends a command; returns the server's sentence. */
export async function post(path, { body, signal } = {}) {
  const response = await fetch(path, { method: "POST", body, signal });
  const text = (await response.text()).trim();
  if (response.status === 401 && path !== "/login") throw refused();
  if (!response.ok) throw new Error(text || `${path}: ${response.status}`);
  return text;
}

/**
 * Follows `/overview` while the page is in view: browsers allow a host six connections, and one that is kept
 * by each hidden tab would leave none. `pools` is a map by name. Calls `changed(names)` after each event,
 * `state("connecting" | "live" | "lost", reason)` when that changes.
 */
export class Feed {
  constructor(changed, state) {
    this.pools = new Map();
    this.gateways = null;
    this.heardAt = 0;
    this.changed = changed;
    this.report = state;
    this.state = "connecting";
    this.tries = 0;
    this.end = new AbortController();
    document.addEventListener("visibilitychange", () => this.turn(), { signal: this.end.signal });
    this.turn();
  }

  stop() {
    this.end.abort();
    this.reading?.abort();
  }

  /** Begins or ends to read, as the page comes into view or leaves it. */
  turn() {
    this.reading?.abort();
    if (document.hidden) return this.set("connecting");
    this.reading = new AbortController();
    this.follow(this.reading.signal);
  }

  set(state, reason) {
    if (this.state !== state || state === "lost") {
      this.state = state;
      this.report(state, reason);
    }
  }

  async follow(signal) {
    while (!signal.aborted) {
      const began = Date.now();
      let reason = "the server closed it";
      try {
        await this.read(signal);
      } catch (error) {
        if (error instanceof Unauthorized) return;
        reason = error.message;
      }
      if (signal.aborted) return;
      this.set("lost", reason);
      if (Date.now() - began > 10000) this.tries = 0;
      const pause = RETRIES[Math.min(this.tries++, RETRIES.length - 1)];
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  async read(signal) {
    const silence = new AbortController();
    const silent = () => silence.abort(new Error("no event for 5 s"));
    let alarm = setTimeout(silent, SILENCE);
    try {
      const response = await fetch("/overview", {
        signal: AbortSignal.any([signal, silence.signal]),
        headers: { accept: "text/event-stream" },
        cache: "no-store",
      });
      if (response.status === 401) throw refused();
      if (!response.ok) throw new Error((await response.text()).trim() || `status ${response.status}`);
      time.learn(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let [text, last] = ["", null];
      for (;;) {
        const { done, value } = await reader.read();
        if (done || signal.aborted) return;
        clearTimeout(alarm);
        alarm = setTimeout(silent, SILENCE);
        text += value;
        let end;
        while ((end = text.indexOf("\n\n")) >= 0) {
          const data = text.slice(0, end).replace(/^data: /, "");
          text = text.slice(end + 2);
          last = this.take(JSON.parse(data), last);
        }
      }
    } finally {
      clearTimeout(alarm);
    }
  }

  /** Applies an event; throws if one before it is missing. */
  take(frame, last) {
    if (frame.goodbye) throw new Error("the scaler has ended");
    if (last && (frame.sender !== last.sender || frame.seq !== last.seq + 1)) throw new Error("events are missing");
    if (!last && !frame.full) throw new Error("no snapshot came first");
    const names = Object.keys(frame.pools);
    if (frame.full) {
      for (const name of [...this.pools.keys()]) {
        if (!(name in frame.pools)) {
          this.pools.delete(name);
          names.push(name);
        }
      }
    }
    for (const [name, pool] of Object.entries(frame.pools)) {
      if (pool === null) this.pools.delete(name);
      else this.pools.set(name, { name, ...pool, settings: pool.settings ?? this.pools.get(name)?.settings });
    }
    if (frame.gateways !== undefined) this.gateways = frame.gateways;
    this.heardAt = Date.now();
    this.tries = 0;
    this.set("live");
    this.changed(names);
    return frame;
  }
}
