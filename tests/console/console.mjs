// The console in a real Chromium, against the real binary and the simulated vLLM.
//
//   node tests/console/console.mjs FOREBAY NODE_MODULES [SHOTS]
//
// NODE_MODULES is the folder where playwright-core is installed. SHOTS is a folder for screenshots.
// ONLY=WORDS runs the steps whose names contain them. PICTURES=docs/console makes the pictures of the
// docs anew instead, which takes three minutes. PAGE=src/console takes the page's files from there, not
// from the binary, to see a change of them at once.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { steps as pageSteps } from "./page.mjs";

const [binary, modules, shots] = process.argv.slice(2);
const { chromium } = createRequire(join(modules, "x.js"))("playwright-core");
/** The longest wait for anything. Nothing takes this long, however busy the machine is. */
const PATIENCE = 120e3;
const folder = mkdtempSync(join(tmpdir(), "forebay-console-"));
if (shots) mkdirSync(shots, { recursive: true });

const ended = [];
process.on("exit", () => ended.forEach((end) => end()));

/** Starts a program, and resolves with the first match of each pattern in its output. */
function start(program, args, ...patterns) {
  const child = spawn(program, args, { cwd: folder, env: { ...process.env, NO_COLOR: "1", FOREBAY_LOG: "info", XDG_STATE_HOME: folder } });
  ended.push(() => child.kill("SIGKILL"));
  let output = "";
  return new Promise((resolve, reject) => {
    const alarm = setTimeout(() => reject(new Error(`${program} says:\n${output}`)), PATIENCE);
    const look = (bytes) => {
      output += bytes;
      const found = patterns.map((pattern) => output.match(pattern)?.[1]);
      if (found.every(Boolean)) {
        clearTimeout(alarm);
        resolve({ child, found, log: () => output });
      }
    };
    child.stdout.on("data", look);
    child.stderr.on("data", look);
    child.on("exit", () => reject(new Error(`${program} has ended:\n${output}`)));
  });
}

const forebay = async (...args) => {
  const { child, found } = await start(binary, args, /listening on (http:[^\s"]+)/, /console on (http:[^\s"]+)/);
  return { child, clients: found[0], admin: found[1].replace("0.0.0.0", "127.0.0.1") };
};

function config(name, text) {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}

/** One chat, to its end. */
async function chat(clients, model, tokens) {
  const body = JSON.stringify({ model, stream: true, max_tokens: tokens, ignore_eos: true, messages: [{ role: "user", content: "hello" }] });
  const response = await fetch(`${clients}/v1/chat/completions`, { method: "POST", headers: { "content-type": "application/json" }, body });
  const text = await response.text();
  assert.equal(response.status, 200, text);
  assert.match(text, /data: \[DONE\]/);
}

/** The status of a raw request with these headers. */
function ask(url, method, headers) {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, headers }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode));
    });
    sent.on("error", reject);
    sent.end();
  });
}

/** The share of a core that a process takes for some time, in percent. */
async function cost(pid, millis) {
  const ticks = () => {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
    return Number(fields[11]) + Number(fields[12]);
  };
  const [before, began] = [ticks(), performance.now()];
  await new Promise((resolve) => setTimeout(resolve, millis));
  // The kernel counts hundredths of a second.
  return ((ticks() - before) * 10) / (performance.now() - began) * 100;
}

/** Bytes a second of a feed, after its first event. */
async function bytesOf(url, millis) {
  const abort = new AbortController();
  const response = await fetch(url, { headers: { accept: "text/event-stream" }, signal: abort.signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  for (let text = ""; !text.endsWith("\n\n"); ) text += decoder.decode((await reader.read()).value, { stream: true });
  let [bytes, began] = [0, performance.now()];
  while (performance.now() - began < millis) bytes += (await reader.read()).value.length;
  const rate = (bytes / (performance.now() - began)) * 1000;
  abort.abort();
  return rate;
}

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP console.test 127.0.0.1"], timeout: PATIENCE });

async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "dark", ...options });
  context.setDefaultTimeout(PATIENCE);
  if (process.env.PAGE) {
    const name = (url) => url.pathname.match(/^\/console\/([\w.]+)$/)?.[1];
    await context.route((url) => Boolean(name(url)), (route) => route.fulfill({ path: join(process.env.PAGE, name(new URL(route.request().url()))) }));
  }
  const page = await context.newPage();
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  page.on("console", (message) => {
    // A refused login or a lost feed is a failed request, which Chromium reports too.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.faults.push(message.text());
  });
  await page.goto(url);
  return page;
}

async function see(page, selector, pattern) {
  await page.waitForFunction(([selector, source]) => [...document.querySelectorAll(selector)].some((node) => new RegExp(source, "i").test(node.innerText)), [selector, pattern.source], { timeout: PATIENCE });
}

/** Screenshots in dark and light, wide and narrow; of a part of the page if `place` names one. */
async function shoot(page, name, place) {
  if (!shots) return;
  for (const scheme of ["dark", "light"]) {
    for (const [kind, width, height] of [["wide", 1440, 900], ["narrow", 390, 844]]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height });
      await page.waitForTimeout(400);
      if (place) await page.locator(place).evaluate((element) => scrollTo(0, element.getBoundingClientRect().top + scrollY - 120));
      await page.screenshot({ path: join(shots, `${name}-${scheme}-${kind}.png`) });
    }
  }
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 1440, height: 900 });
}

const steps = {
  async "a request from zero is seen held, the replica starting, the decision, and the stream's figures"() {
    const { clients, admin } = await forebay("dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cold-start", "15s", "--idle", "10m");
    const page = await open(admin);
    await see(page, "#live", /^live$/);
    await see(page, ".rows .cell.replicas", /at zero/);
    await shoot(page, "zero");

    const first = chat(clients, "sim", 200);
    await see(page, ".rows .cell.held b", /^1$/);
    await see(page, ".rows .cell.replicas", /1 (pending|starting)/);
    await first;
    await see(page, ".rows .cell.replicas", /1 ready/);
    await see(page, ".rows .cell.why", /scaling 0 → 1 because 1 request is held/);

    // To zero by hand, and again: now the start is learned, and the time left is shown.
    await page.locator(".rows a").first().focus();
    await page.keyboard.press("Enter");
    await see(page, "h1", /^sim$/);
    // The scaler hears a second later that nothing is in flight.
    await see(page, ".now div:nth-child(2)", /in flight\s+0/);
    await page.getByRole("button", { name: "To zero", exact: true }).click();
    await page.locator("dialog").getByRole("button", { name: "To zero" }).click();
    await see(page, "#toast", /goes to zero/);
    await see(page, ".standing", /at zero/);
    const held = chat(clients, "sim", 4000);
    await see(page, ".standing", /1 (pending|starting), \d+ s left/);
    await see(page, ".now div.held dd", /^1$/);
    await shoot(page, "held");
    await see(page, ".standing", /1 ready/);

    // The stream's figures, the endpoint, and what it writes.
    await see(page, ".now", /TTFT p95\s+\d/);
    await see(page, ".list tr.ready", /ready/);
    await see(page, ".list tr.ready", /tokens\s+.* kB\/s[^]*(ago|just now)/);
    await see(page, ".output", /\S/);
    await see(page, ".decision", /scaling 1 → 0 because an operator asked for it/);
    const decision = page.locator(".decision.up").first();
    await decision.focus();
    await page.keyboard.press("Enter");
    await see(page, "dialog .sentence", /scaling 0 → 1 because 1 request is held/);
    await see(page, "dialog", /What would have changed it[^]*\d reasons ask for 1 replica/);
    await shoot(page, "decision");
    await page.keyboard.press("Escape");
    assert.equal(await page.locator("dialog[open]").count(), 0);
    // The charts have a point after the first slot.
    await page.waitForFunction(() => [...document.querySelectorAll(".plot .line")].some((path) => path.getAttribute("d")?.includes("L") || path.getAttribute("d")?.includes("H")), null, { timeout: PATIENCE });
    await shoot(page, "pool");
    await held;

    // A chat from the page, through the gateway.
    await page.getByLabel("Message").fill("hello");
    await page.getByRole("button", { name: "Send" }).click();
    await see(page, ".chat + .note", /first token after .* request \S+/);
    await see(page, ".answer", /\S/);

    // What if: the arrivals so far, played again with other settings.
    await page.getByText("With other settings").click();
    const settings = page.getByLabel("The scaling section, to be changed");
    await page.waitForFunction((area) => area.value.includes("maxReplicaCount"), await settings.elementHandle(), { timeout: PATIENCE });
    await settings.fill("maxReplicaCount: many");
    await page.getByRole("button", { name: "Play the last day again" }).click();
    await see(page, ".what-if .error", /maxReplicaCount/);
    await settings.fill("minReplicaCount: 1\nmaxReplicaCount: 2\n");
    await page.getByRole("button", { name: "Play the last day again" }).click();
    await see(page, ".results", /Forebay, present settings/);
    await see(page, ".results", /Forebay, your settings/);
    await see(page, ".results", /the optimum/);
    await see(page, ".what-if .sentence", /your settings cost/);
    await see(page, ".what-if .note", /\d requests in/);
    await page.waitForFunction(() => !document.querySelector(".what-if button.primary").disabled, null, { timeout: PATIENCE });
    await shoot(page, "what-if", ".what-if");
    await shoot(page, "endpoints", ".endpoints");
    // One at a time, and a cancelled one makes way.
    const begin = () => page.evaluate(() => fetch("/pools/sim/what-if", { method: "POST" }).then((response) => response.status));
    assert.deepEqual([await begin(), await begin()], [202, 409]);
    await page.evaluate(() => fetch("/what-if/cancel", { method: "POST" }));
    assert.equal((await page.evaluate(() => fetch("/what-if").then((response) => response.json()))).running, false);
    await see(page, ".what-if .note", /begun .* ago.* cancelled: \d of 6 were played/);
    assert.equal(await begin(), 202);

    // An override is made and taken back.
    await page.getByRole("button", { name: "Set count…" }).click();
    await page.getByRole("spinbutton", { name: "Replicas" }).fill("2");
    await page.getByRole("button", { name: "Fix the count" }).click();
    await see(page, ".override", /fixed by an operator at 2 replicas/);
    await see(page, ".standing", /2 ready/);
    await page.getByRole("button", { name: "Let Forebay decide" }).first().click();
    await page.locator("dialog").getByRole("button", { name: "Let Forebay decide" }).click();
    await see(page, "#toast", /Forebay decides/);
    await page.waitForFunction(() => document.querySelector(".override").textContent === "", null, { timeout: PATIENCE });
    // A refusal is shown in its own words.
    await page.getByRole("button", { name: "Set count…" }).click();
    await page.getByRole("spinbutton", { name: "Replicas" }).evaluate((input) => input.removeAttribute("max"));
    await page.getByRole("spinbutton", { name: "Replicas" }).fill("99");
    await page.getByRole("button", { name: "Fix the count" }).click();
    await see(page, "dialog .error", /at most 4 replicas/);
    await page.keyboard.press("Escape");
    await page.goto(admin);
    await shoot(page, "overview");
    assert.deepEqual(page.faults, []);
    await page.context().close();

    assert.equal(await ask(admin, "GET", { host: "evil.example", accept: "text/html" }), 403, "a foreign host");
    assert.equal(await ask(`${admin}pools/sim/wake`, "POST", { origin: "http://evil.example" }), 403, "a foreign origin");
    assert.equal(await ask(`${admin}pools/sim/wake`, "POST", { "sec-fetch-site": "same-site" }), 403, "another port of this host");
  },

  async "the feed's loss is shown, and mended"() {
    const { child, admin } = await forebay("dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0");
    const page = await open(admin);
    await see(page, "#live", /^live$/);
    child.kill("SIGSTOP");
    await see(page, "#lost", /The live feed is lost, so these figures are old. For \d+ s/);
    await see(page, "#live", /not live/);
    await shoot(page, "lost");
    child.kill("SIGCONT");
    await see(page, "#live", /^live$/);
    assert.equal(await page.locator("#lost").isVisible(), false);
    assert.deepEqual(page.faults, []);
    await page.context().close();
  },

  async "a token is asked for, a wrong one refused, and a page of another origin changes nothing"() {
    const token = config("token", "correct horse\n");
    const markup = "<img src=x onerror=\"window.harmed=1\">";
    const file = config("locked.yaml", `
gateway: {listen: 127.0.0.1:0}
admin: {listen: 0.0.0.0:0, tokenFile: ${token}}
pools:
- name: chat
  models: [ok, '${markup}', '</script><b>bold</b>', "\u202Ereversed & \\"quoted\\""]
  gpuHourPrice: 2.5
  target: {processes: {command: [${binary}, vllm-sim, --port, "{port}"], logDir: ${folder}/logs}}
`);
    const { admin } = await forebay("run", "--config", file);
    assert.equal(await ask(`${admin}overview`, "GET", {}), 401);
    assert.equal(await ask(`${admin}overview`, "GET", { cookie: "forebay_session=guess" }), 401);
    const page = await open(admin);
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Log in" }).click();
    await see(page, ".error", /not the token/);
    await shoot(page, "login");
    await page.getByLabel("Token").fill("correct horse");
    await page.getByRole("button", { name: "Log in" }).click();
    await see(page, "#live", /^live$/);
    const [cookie] = await page.context().cookies();
    assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
    assert.ok(!cookie.value.includes("correct"));

    await see(page, ".rows .cell.name", /<img src=x onerror=/);
    await page.goto(`${admin}#/pool/${encodeURIComponent(markup)}`);
    await see(page, "h1", /<img src=x/);
    await page.goto(`${admin}#/pool/chat`);
    await see(page, ".models", /<\/script><b>bold<\/b>/);
    await see(page, ".models", /\uFFFDreversed & "quoted"$/);
    await shoot(page, "markup");
    const harm = await page.evaluate(() => [window.harmed, document.querySelectorAll("main img, main b b, main script").length]);
    assert.deepEqual(harm, [undefined, 0]);
    assert.deepEqual(page.faults, []);

    // Another server on this machine: same site, but another origin. Its page sends what a form can.
    const other = createServer((_, response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>other</p>"));
    await new Promise((resolve) => other.listen(0, "127.0.0.1", resolve));
    const stranger = await page.context().newPage();
    await stranger.goto(`http://127.0.0.1:${other.address().port}/`);
    const path = `${admin}pools/chat/override?replicas=1`;
    const answered = page.context().waitForEvent("response", (response) => response.url() === path);
    await stranger.evaluate((path) => fetch(path, { method: "POST", mode: "no-cors", credentials: "include" }).catch(() => {}), path);
    assert.equal((await answered).status(), 403);
    other.close();
    await stranger.close();
    const pool = await page.evaluate(() => fetch("/overview").then((response) => response.json()).then((frame) => frame.pools.chat));
    assert.equal(pool.operatorOverride, undefined);

    await page.route("**/logout", (route) => route.abort());
    await page.getByRole("button", { name: "Log out" }).click();
    await see(page, "#toast.bad", /still logged in/);
    assert.equal(await page.evaluate(() => fetch("/overview").then((response) => response.status)), 200);
    await page.unroute("**/logout");
    await page.getByRole("button", { name: "Log out" }).click();
    await see(page, "h1", /Log in/);
    // The read that the logout ended is no loss.
    await page.waitForTimeout(500);
    assert.ok(await page.locator("#lost").isHidden());
    assert.equal(await page.evaluate(() => fetch("/overview").then((response) => response.status)), 401);
    await page.context().close();
  },

  async "a scaler of its own shows the requests that the gateways hold"() {
    const token = config("shared-token", "battery staple\n");
    const pools = "pools:\n- {name: chat, models: [chat], endpoints: ['127.0.0.1:1']}\n";
    const admin = `admin: {listen: "127.0.0.1:0", tokenFile: ${token}}\n`;
    const apart = config("gateway.yaml", `gateway: {listen: "127.0.0.1:0"}\nadmin: {listen: "0.0.0.0:0", tokenFile: ${token}}\n${pools}`);
    const gateway = await start(binary, ["gateway", "--config", apart], /listening on (http:[^\s"]+)/, /metrics on http:\/\/[\d.]+:(\d+)/);
    const [clients, port] = gateway.found;
    assert.equal(await ask(`http://127.0.0.1:${port}/queue?pool=chat`, "GET", {}), 401, "without the token");
    const file = config("scaler.yaml", `scaler: {gateways: ["127.0.0.1:${port}"]}\n${admin}${pools}`);
    const { found } = await start(binary, ["scaler", "--config", file], /console on (http:[^\s"]+)/);
    const page = await open(`${found[0]}#/pool/chat`);
    await page.getByLabel("Token").fill("battery staple");
    await page.getByRole("button", { name: "Log in" }).click();
    await see(page, "h1", /^chat$/);
    const held = chat(clients, "chat", 5).catch(() => {});
    await see(page, ".now div.held dd", /^1$/);
    await see(page, "table[aria-label='Held requests'] tbody tr", /anonymous/);
    await see(page, ".endpoints .list", /127\.0\.0\.1:1/);
    // Without the gateways' address, a chat has no way to them.
    await see(page, ".chat + .note", /not here: the gateways run in other processes; .* scaler.gatewayAddress/);
    assert.equal(await page.getByRole("button", { name: "Send" }).isVisible(), false);
    assert.deepEqual(page.faults, []);
    gateway.child.kill("SIGKILL");
    await held;
    await page.goto(found[0]);
    await see(page, ".troubles", /the gateway at http:\/\/127\.0\.0\.1:\d+ is silent, so nothing scales down/);
    await shoot(page, "silent");
    await page.context().close();
  },

  async "a thousand busy pools leave the page small and quick"() {
    const script = fileURLToPath(new URL("gateway.mjs", import.meta.url));
    const port = 20000 + (process.pid % 10000);
    await start(process.execPath, [script, port, 1000, 10], /(many: \S+)/);
    const pools = Array.from({ length: 1000 }, (_, n) => `- {name: pool-${String(n).padStart(4, "0")}, models: [org/model-${n}, model-${n}], gpus: ${1 + (n % 4)}, gpuHourPrice: ${n % 10 === 9 ? 0 : 3.29}, discovery: {dns: {host: model-${n}, port: 8000}}, target: {keda: {scaledObject: model-${n}}}, scaling: {maxReplicaCount: 16}}`);
    const file = config("many.yaml", `scaler: {gateways: ["127.0.0.1:${port}"], keda: {listen: "127.0.0.1:0"}}\nadmin: {listen: "127.0.0.1:0"}\npools:\n${pools.join("\n")}\n`);
    const { child, found } = await start(binary, ["scaler", "--config", file], /console on (http:[^\s"]+)/, /(the scaler is ready)/);
    const alone = await cost(child.pid, 8000);
    const page = await open(found[0]);
    await see(page, ".found", /1000 pools/);
    await see(page, ".rows .row:first-child", /pool-0000/);
    await page.waitForTimeout(4000);
    const frames = await page.evaluate(async () => {
      const spans = [];
      let [last, end] = [performance.now(), performance.now() + 8000];
      let [most, at] = [0, 0];
      while (performance.now() < end) {
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        spans.push(now - last);
        last = now;
        scrollTo(0, (at += 90));
        most = Math.max(most, document.querySelectorAll("*").length);
      }
      spans.sort((a, b) => a - b);
      return { most, frames: spans.length, median: spans[spans.length >> 1], p99: spans[Math.floor(spans.length * 0.99)] };
    });
    await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
    await see(page, ".rows .row:last-child", /pool-0999/);
    const bytes = await bytesOf(`${found[0]}overview`, 8000);
    const watched = await cost(child.pid, 8000);
    const heap = await page.evaluate(() => Math.round(performance.memory.usedJSHeapSize / 1e6));
    console.log(`   ${frames.most} elements at most, ${Math.round(bytes / 1024)} KiB a second, ${heap} MB of heap; while scrolling, frames of ${frames.median.toFixed(1)} ms (median) and ${frames.p99.toFixed(1)} ms (99 %)`);
    console.log(`   the scaler takes ${alone.toFixed(1)} % of a core without a page, and ${watched.toFixed(1)} % with one`);
    assert.ok(frames.most < 1800, `${frames.most} elements`);
    assert.ok(bytes < 200 * 1024, `${bytes} bytes a second`);
    await page.getByLabel("Filter by pool or model").fill("model-777");
    await see(page, ".found", /1 of 1000 pools/);
    await page.getByLabel("Filter by pool or model").fill("");
    await page.evaluate(() => scrollTo(0, 0));
    await see(page, ".rows .row:first-child", /pool-0000/);
    await shoot(page, "many");
    assert.deepEqual(page.faults, []);
    await page.context().close();
  },
};

/** The pictures of docs/console, of a small fleet that is two minutes old. */
async function pictures(docs) {
  const sim = (model, ...flags) => JSON.stringify([binary, "vllm-sim", model, "--port={port}", ...flags]);
  const file = config("fleet.yaml", `
gateway: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
pools:
- name: chat
  models: [meta-llama/Llama-3.3-70B-Instruct, chat]
  maxInFlight: 16
  gpus: 4
  gpuHourPrice: 3.29
  target: {processes: {command: ${sim("meta-llama/Llama-3.3-70B-Instruct", "--served-model-name", "meta-llama/Llama-3.3-70B-Instruct", "chat", "--cold-start=15s", "--decode-step-ms=24")}, ports: 26100-26199, logDir: ${logs("chat")}}}
  scaling: {maxReplicaCount: 6, objective: {ttft: 2s}}
- name: code
  models: [Qwen/Qwen3-Coder-30B]
  gpus: 2
  gpuHourPrice: 3.29
  target: {processes: {command: ${sim("Qwen/Qwen3-Coder-30B", "--cold-start=10s")}, ports: 26200-26299, logDir: ${logs("code")}}}
  scaling: {minReplicaCount: 1, maxReplicaCount: 4}
- name: embed
  models: [BAAI/bge-m3]
  gpus: 1
  gpuHourPrice: 1.1
  target: {processes: {command: ${sim("BAAI/bge-m3")}, ports: 26300-26399, logDir: ${logs("embed")}}}
  scaling: {maxReplicaCount: 2}
- name: night-batch
  models: [mistralai/Mistral-Small-24B]
  gpus: 2
  gpuHourPrice: 3.29
  target: {processes: {command: [${JSON.stringify(binary)}, vllm-sim, --no-such-flag, "--port={port}"], ports: 26400-26499, logDir: ${logs("night")}}}
  scaling: {maxReplicaCount: 2}
replay:
  replica: {coldStart: {scheduled: 0s, started: 0s, healthy: 15s}, decodeStep: 24ms}
`);
  const { clients, admin } = await forebay("run", "--config", file);
  const load = (model, ...flags) => ended.push(((child) => () => child.kill("SIGKILL"))(spawn(binary, ["load", clients, "--model", model, "--duration", "5m", ...flags], { stdio: "ignore" })));
  load("chat", "--ramp", "1-6", "--prompt-tokens", "~900", "--shared-prefix-tokens", "400", "--output-tokens", "~180");
  load("Qwen/Qwen3-Coder-30B", "--poisson", "3", "--prompt-tokens", "~1500", "--shared-prefix-tokens", "1200", "--output-tokens", "~120");
  chat(clients, "mistralai/Mistral-Small-24B", 10).catch(() => {});
  const page = await open(admin, { colorScheme: "light", viewport: { width: 1280, height: 830 } });
  await page.waitForTimeout(150e3);
  await page.setViewportSize({ width: 1280, height: 446 });
  await page.waitForTimeout(1000);
  await page.screenshot({ path: join(docs, "overview.png") });
  await page.setViewportSize({ width: 1280, height: 1120 });
  await page.goto(`${admin}#/pool/chat`);
  await see(page, ".list tr.ready", /ready/);
  await page.waitForTimeout(3000);
  await page.screenshot({ path: join(docs, "pool.png") });
  await page.getByText("With other settings").click();
  const settings = page.getByLabel("The scaling section, to be changed");
  await page.waitForFunction((area) => area.value.includes("maxReplicaCount"), await settings.elementHandle(), { timeout: PATIENCE });
  await settings.fill("minReplicaCount: 1\nmaxReplicaCount: 6\nobjective: {ttft: 2s}\n");
  await page.getByRole("button", { name: "Play the last day again" }).click();
  await see(page, ".results", /the optimum/);
  await see(page, ".what-if .sentence", /your settings cost/);
  await page.locator(".what-if").screenshot({ path: join(docs, "what-if.png") });
}

/** A folder for a pool's logs. */
function logs(pool) {
  return join(folder, `${pool}-logs`);
}

if (process.env.PICTURES) {
  await pictures(process.env.PICTURES);
  process.exit(0);
}

const only = process.env.ONLY;
const all = { ...steps, ...pageSteps({ binary, folder, forebay, start, open, see, config, shoot, PATIENCE }) };
for (const [name, step] of Object.entries(all)) {
  if (only && !name.includes(only)) continue;
  const began = Date.now();
  try {
    await step();
  } catch (error) {
    console.error(`failed: ${name}`);
    for (const context of browser.contexts()) for (const page of context.pages()) if (shots) await page.screenshot({ path: join(shots, "failed.png") }).catch(() => {});
    throw error;
  }
  console.log(`ok: ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
}
await browser.close();
process.exit(0);
