// A stand-in for the admin port with a thousand busy pools: it serves the real page, and a feed in
// which two hundred pools change each second, as many as a scaler publishes at once.
//
//   node tests/console/many.mjs PORT [POOLS]

import { createServer } from "node:http";
import { readFileSync, existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../../src/console/", import.meta.url));
const [port, pools] = [Number(process.argv[2]), Number(process.argv[3] ?? 1000)];
const AT_ONCE = 200;

let seed = 1;
const random = () => ((seed = (seed * 48271) % 2147483647) - 1) / 2147483646;
const upTo = (most) => Math.floor(random() * (most + 1));

function settings(n) {
  return {
    models: [`org/model-${n}`, `model-${n}`],
    modelCount: 2,
    target: "kubernetes",
    minReplicas: 0,
    maxReplicas: 12,
    idleReplicas: 0,
    maxInFlight: 128,
    objectiveTtftSeconds: 2,
    objectiveShare: 0.99,
    gpus: 1 + (n % 4),
    gpuHourPrice: n % 10 === 9 ? 0 : 3.29,
  };
}

function pool() {
  const starting = random() < 0.15 ? upTo(2) : 0;
  const ready = random() < 0.2 ? 0 : 10 - starting;
  return {
    held: random() < 0.2 ? upTo(90) : 0,
    inFlight: ready * upTo(40),
    arrivals: upTo(300) / 10,
    failures: 0,
    tokens: ready * upTo(900),
    ttftP50: 0.2 + random() / 2,
    ttftP95: 0.5 + random() * 2,
    itlP50: 0.012,
    itlP95: 0.02 + random() / 50,
    hitShare: random(),
    desired: ready + starting,
    replicas: { pending: 0, starting, ready, draining: random() < 0.05 ? 1 : 0, failed: 0 },
    ...(starting ? { nextReadyMillis: Date.now() + upTo(60000) } : {}),
    why: `scaling ${ready} → ${ready + starting} because ${upTo(90)} requests are held and ${ready * 30} in flight, and ${upTo(30)}.4 more arrive each second`,
    ...(random() < 0.01 ? { troubles: [{ kind: "cannotStart", text: "no replica can be started: exited with status 1: CUDA out of memory" }] } : {}),
    today: { sinceMillis: Date.now() - 3600e3, gpuHours: upTo(900) / 10, atMaximum: 96 },
  };
}

const all = new Map(Array.from({ length: pools }, (_, n) => [`pool-${String(n).padStart(4, "0")}`, { settings: settings(n), ...pool() }]));

function history() {
  const now = Math.floor(Date.now() / 10000) * 10000;
  const column = (make) => Array.from({ length: 360 }, (_, i) => make(i));
  const wave = (i) => 0.6 + 0.4 * Math.sin(i / 40) + 0.2 * random();
  const zero = column(() => 0);
  return {
    atMillis: column((i) => now - (359 - i) * 10000),
    held: column((i) => (i % 90 < 8 ? upTo(60) : 0)),
    inFlight: column((i) => Math.round(200 * wave(i))),
    arrivals: column((i) => 20 * wave(i)),
    failures: zero,
    tokens: column((i) => 9000 * wave(i)),
    ttftP50: column((i) => 0.3 * wave(i)),
    ttftP95: column((i) => 0.9 * wave(i)),
    itlP50: column(() => 0.012),
    itlP95: column((i) => 0.02 * wave(i)),
    hitShare: column((i) => 0.5 * wave(i)),
    desired: column((i) => (i < 90 ? 8 : 10)),
    pending: zero,
    starting: column((i) => (i >= 90 && i < 96 ? 2 : 0)),
    ready: column((i) => (i < 96 ? 8 : 10)),
    draining: zero,
    failed: zero,
  };
}

const readers = new Set();
let [seq, turn, bytes] = [0, 0, 0];
const event = (frame) => `data: ${JSON.stringify({ schema: 1, sender: "many", gateways: 2, ...frame })}\n\n`;

setInterval(() => {
  const names = [...all.keys()];
  const changed = {};
  for (let i = 0; i < Math.min(AT_ONCE, pools); i++) {
    const name = names[turn++ % pools];
    const next = pool();
    all.set(name, { settings: all.get(name).settings, ...next });
    changed[name] = next;
  }
  const text = event({ seq: ++seq, pools: changed });
  bytes = text.length;
  for (const reader of readers) reader.write(text);
}, 1000);

createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const json = (value) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
  if (url.pathname === "/") return response.writeHead(200, { "content-type": "text/html; charset=utf-8" }).end(readFileSync(`${folder}index.html`));
  const file = url.pathname.match(/^\/console\/([a-z]+\.(css|js))$/);
  if (file && existsSync(folder + file[1])) {
    const type = file[2] === "css" ? "text/css" : "text/javascript";
    return response.writeHead(200, { "content-type": `${type}; charset=utf-8` }).end(readFileSync(folder + file[1]));
  }
  if (url.pathname === "/overview") {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(event({ seq, full: true, pools: Object.fromEntries(all) }));
    readers.add(response);
    return request.on("close", () => readers.delete(response));
  }
  if (url.pathname === "/history") return json(Object.fromEntries(url.searchParams.get("pool").split(",").map((name) => [name, history()])));
  if (url.pathname === "/gateways") return json([{ url: "http://10.0.0.7:9900", listed: true }]);
  if (url.pathname === "/bytes") return json({ bytes });
  response.writeHead(404).end("not here\n");
}).listen(port, "127.0.0.1", () => console.log(`many: http://127.0.0.1:${port}/`));
