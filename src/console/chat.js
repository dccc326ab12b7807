// Try it: one chat with a model through the gateway, with what the gateway measured.

import { get } from "./feed.js";
import { h, setText } from "./dom.js";
import { count, number, seconds } from "./format.js";

/** The values of `server-timing` in seconds, by name. */
function timing(header) {
  const entries = (header ?? "").split(",").map((part) => part.trim().match(/^([^;]+);dur=([\d.]+)/));
  return Object.fromEntries(entries.filter(Boolean).map(([, name, millis]) => [name, Number(millis) / 1000]));
}

export class Chat {
  /** `path` is the pool's; `models()` names those that it serves. */
  constructor(path, models) {
    [this.path, this.models] = [path, models];
    this.model = h("select", { "aria-label": "Model" });
    this.key = h("input", { type: "password", placeholder: "API key, if one is needed", "aria-label": "API key", autocomplete: "off" });
    this.prompt = h("textarea", { rows: 2, "aria-label": "Message", placeholder: "Say something to the model" });
    this.button = h("button", { class: "primary", type: "submit", text: "Send" });
    this.figures = h("p", { class: "note" });
    // The figures change with each token. A screen reader speaks the answer once it is complete.
    this.spoken = h("p", { class: "spoken", role: "status" });
    this.answer = h("pre", { class: "output answer", tabindex: 0, "aria-label": "Answer", hidden: true });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.form = h("form", { class: "chat", onsubmit: (event) => this.submit(event) }, this.prompt, h("div", { class: "tools" }, this.model, this.key, this.button));
    this.element = h("section", { hidden: true }, h("h2", { text: "Try it" }), this.form, this.figures, this.spoken, this.answer);
    this.appear().catch(() => {});
  }

  /** Shows the form, or the reason why there is no way to a gateway. */
  async appear() {
    const response = await fetch("/try");
    if (response.status === 401) return;
    this.form.hidden = !response.ok;
    if (!response.ok) setText(this.figures, `Not here: ${(await response.text()).trim()}.`);
    this.element.hidden = false;
  }

  stop() {
    this.abort?.abort();
  }

  render() {
    const models = this.models();
    if (this.shown === models.join("\n")) return;
    this.shown = models.join("\n");
    this.model.replaceChildren(...models.map((name) => h("option", { value: name, text: name })));
    this.model.hidden = models.length === 0;
  }

  async submit(event) {
    event.preventDefault();
    if (this.abort) return this.stop();
    const content = this.prompt.value.trim() || "Hello!";
    this.abort = new AbortController();
    this.answer.hidden = false;
    this.answer.textContent = "";
    setText(this.spoken, "Sent.");
    setText(this.button, "Stop");
    const began = performance.now();
    const run = { first: null, last: null, words: [] };
    const waiting = setInterval(() => run.first ?? setText(this.figures, `waiting for ${seconds(Math.round((performance.now() - began) / 1000))}…`), 500);
    try {
      await this.send(content, run, began);
    } catch (error) {
      run.words.push(error.name === "AbortError" ? "stopped" : error.message);
    } finally {
      await run.found;
      clearInterval(waiting);
      this.abort = null;
      setText(this.button, "Send");
      this.show(run);
      setText(this.spoken, `${this.answer.textContent} ${run.words.join(". ")}`);
    }
  }

  async send(content, run, began) {
    const headers = { "content-type": "application/json" };
    if (this.key.value) headers["x-forebay-key"] = this.key.value;
    const body = { messages: [{ role: "user", content }], stream: true, stream_options: { include_usage: true }, max_tokens: 512 };
    if (this.model.value) body.model = this.model.value;
    const response = await fetch("/try/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal: this.abort.signal });
    run.id = response.headers.get("x-request-id");
    run.hold = timing(response.headers.get("server-timing")).hold;
    if (!response.ok) {
      const text = await response.text();
      let message = text.trim();
      try {
        message = JSON.parse(text).error.message;
      } catch {
        // It is plain text.
      }
      throw new Error(`${response.status}: ${message}`);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: {")) this.take(JSON.parse(line.slice(6)), run, began);
    }
  }

  take(event, run, began) {
    if (event.error) throw new Error(event.error.message);
    run.tokens = event.usage?.completion_tokens ?? run.tokens;
    const delta = event.choices?.[0]?.delta;
    const text = (delta?.reasoning_content ?? "") + (delta?.content ?? "");
    if (!text) return;
    run.last = performance.now();
    if (!run.first) {
      run.first = run.last;
      run.found = this.find(run).catch(() => {});
    }
    run.ttft = (run.first - began) / 1000;
    const atEnd = this.answer.scrollHeight - this.answer.scrollTop - this.answer.clientHeight < 30;
    this.answer.append(text);
    if (atEnd) this.answer.scrollTop = this.answer.scrollHeight;
    this.show(run);
  }

  /** Asks the gateways which replica answers, and how long the request was held: a head that came with a heartbeat can't know. */
  async find(run) {
    if (!run.id) return;
    const answers = await get(`${this.path}/tried?id=${encodeURIComponent(run.id)}`, this.abort.signal);
    const known = answers.find(({ request }) => request)?.request;
    if (known) [run.replica, run.hold] = [known.endpoint, known.heldSeconds];
    this.show(run);
  }

  show(run) {
    const words = [];
    if (run.ttft !== undefined) words.push(`first token after ${seconds(run.ttft)}`);
    if (run.hold >= 0.001) words.push(`of that held ${seconds(run.hold)}`);
    if (run.tokens > 1 && run.last > run.first) words.push(`${count(run.tokens, "token")}, ${number(((run.tokens - 1) / (run.last - run.first)) * 1000)} a second`);
    if (run.replica) words.push(`by ${run.replica}`);
    if (run.id) words.push(`request ${run.id}`);
    setText(this.figures, [...words, ...run.words].join(" · "));
  }
}
