// A gateway of many pools, as a scaler sees it: `/signals`, and `/queue` and `/endpoints` on demand.
//
//   node gateway.mjs PORT POOLS REPLICAS
//
// All pools are busy: each second the figures of BUSY of them change, in turn.

import { createServer } from "node:http";

const [port, pools, replicas] = process.argv.slice(2).map(Number);
const BUSY = 200;

let seed = 1;
const random = () => ((seed = (seed * 48271) % 2147483647) - 1) / 2147483646;
const upTo = (most) => Math.floor(random() * (most + 1));
const histogram = () => ({ sum: 0, counts: [] });

/** Counts of these buckets of a histogram, whose bounds are 0.5 ms · 2^(n/4). */
function observe(histogram, low, high, count) {
  for (let i = 0; i < count; i++) {
    const bucket = low + upTo(high - low);
    const known = histogram.counts.find(([at]) => at === bucket);
    if (known) known[1]++;
    else histogram.counts.push([bucket, 1]);
    histogram.sum += 0.0005 * 2 ** (bucket / 4);
  }
}

function pool(n) {
  const endpoints = Array.from({ length: replicas }, (_, i) => [`10.${n >> 8}.${n & 255}.${i + 1}:8000`, { health: "ready", inFlight: 0, limit: 128, completed: 0, failed: 0, promptTokens: 0, cachedTokens: 0, generatedTokens: 0, firstTokens: 0, ttftSeconds: 0, tokenGaps: 0, itlSeconds: 0 }]);
  return {
    queueDepth: 0,
    inFlight: 0,
    totals: { accepted: 0, released: 0, completed: 0, promptTokens: 0, cachedTokens: 0, generatedTokens: 0, acceptedPromptTokens: 0 },
    ttft: histogram(),
    warmTtft: histogram(),
    upstreamTtft: histogram(),
    itl: histogram(),
    endToEnd: histogram(),
    hold: histogram(),
    endpoints: Object.fromEntries(endpoints),
  };
}

/** A few seconds of a pool's life: a change as the feed carries it. */
function live(state) {
  const { totals, endpoints, ...rest } = state;
  const requests = 1 + upTo(30);
  for (const key of ["accepted", "released", "completed"]) totals[key] += requests;
  totals.promptTokens += requests * 400;
  totals.acceptedPromptTokens += requests * 400;
  totals.cachedTokens += requests * upTo(300);
  totals.generatedTokens += requests * 120;
  for (const one of ["ttft", "warmTtft", "upstreamTtft"]) observe(state[one], 34, 46, requests);
  observe(state.itl, 16, 22, requests);
  const changed = {};
  for (const [address, endpoint] of Object.entries(endpoints)) {
    if (random() > 0.4) continue;
    endpoint.inFlight = upTo(60);
    endpoint.completed += upTo(4);
    endpoint.generatedTokens += upTo(900);
    changed[address] = endpoint;
  }
  state.inFlight = Object.values(endpoints).reduce((sum, endpoint) => sum + endpoint.inFlight, 0);
  state.queueDepth = random() < 0.1 ? upTo(40) : 0;
  return { ...rest, inFlight: state.inFlight, queueDepth: state.queueDepth, totals, endpoints: changed };
}

const all = new Map(Array.from({ length: pools }, (_, n) => [`pool-${String(n).padStart(4, "0")}`, pool(n)]));
const names = [...all.keys()];
for (const state of all.values()) live(state);

const readers = new Set();
let [seq, turn] = [0, 0];
const event = (frame) => `data: ${JSON.stringify({ schema: 1, sender: "many", ...frame })}\n\n`;

setInterval(() => {
  const changed = {};
  for (let i = 0; i < Math.min(BUSY, pools); i++) {
    const name = names[turn++ % pools];
    changed[name] = live(all.get(name));
  }
  const text = event({ seq: ++seq, pools: changed });
  for (const reader of readers) reader.write(text);
}, 1000);

createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const json = (value) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
  const name = url.searchParams.get("pool");
  if (url.pathname === "/signals") {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(event({ seq, full: true, pools: Object.fromEntries(all) }));
    readers.add(response);
    return request.on("close", () => readers.delete(response));
  }
  if (url.pathname === "/queue") return json({ pool: name, held: all.get(name).queueDepth, expectedWaitSeconds: null, requests: [] });
  if (url.pathname === "/endpoints") return json({ pool: name, count: replicas, endpoints: Object.entries(all.get(name).endpoints).map(([address, { health, inFlight, limit }]) => ({ address, health, reason: "", inFlight, limit, failuresInARow: 0, silentProbes: 0, lastProbeMillis: Date.now() - 800, lastAnswerMillis: Date.now(), learned: null })) });
  response.writeHead(404).end("not here\n");
}).listen(port, "127.0.0.1", () => console.log(`many: http://127.0.0.1:${port}/`));
