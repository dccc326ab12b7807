"""An overload, live and in replay: one and a half times and three times what a fixed fleet can do.

Each order of held requests has a gateway and replicas of its own, and all of them run at the same time, each under
the same requests at the same moments. They hold for as long as the overload lasts, like those in docs/performance.md.
A request's end is that in the gateway's access log. Replay plays the same requests on the same replicas.
"""

import datetime
import json
import math
import random
import statistics
import subprocess
import time

import bench as shared
from bench import MODEL, Peer, start_forebay, start_replica

SCENARIO = shared.HERE.parent / "scenarios" / "overload.yaml"
# Requests a second, the median lengths of prompts and answers with their spread and the longest ones: those of the
# load `overload` of `forebay replay`.
RATE, PROMPT, OUTPUT = 33, (600, 0.8, 16_000), (150, 0.7, 2_000)
# The load as a multiple of what so many replicas can do.
REPLICAS = {1.5: 2, 3: 1}
ORDERS = ("arrival", "objective")
OBJECTIVE, PLACES = 5, 128
# Seconds of a replica for a prompt token, and for one of an answer when all places are taken.
PROMPT_TOKEN, OUTPUT_TOKEN = 1 / 15900, (14e-3 + PLACES * 0.1e-3) / PLACES
# `forebay load` takes a word for a token, a simulated replica five quarters of one.
TOKENS_OF_WORD = 1.25
COLUMNS = ("in time", "answered", "refused", "refused after p95", "TTFT p50", "p95", "replicas busy")


def write_requests(path, seconds, tokens_of_word=1.0):
    """Writes the requests of this many seconds as a trace, and returns their number."""
    chance, at = random.Random(1), 0.0
    lines = ["time,pool,promptTokens,generatedTokens"]
    while (at := at + chance.expovariate(RATE)) < seconds:
        prompt, output = (min(max(int(chance.lognormvariate(math.log(median), spread)), 1), most)
                          for median, spread, most in (PROMPT, OUTPUT))
        lines.append(f"{at:.6f},{MODEL},{max(round(prompt / tokens_of_word), 1)},{output}")
    path.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


def quantile(values, part):
    return sorted(values)[max(math.ceil(part * len(values)) - 1, 0)] if values else None


def ends(log):
    """The access log's lines."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("target") == "forebay::access"]


class Live:
    """A gateway with one order before replicas of its own."""

    def __init__(self, bench, order, replicas, hold):
        self.name, self.replicas = f"{order}-{replicas}", []
        for number in range(replicas):
            name = f"{self.name}-{number}"
            process, port = start_replica(bench, name, number)
            bench.wait_for(port, process, name, "/health")
            self.replicas.append(Peer("", port, process))
        addresses = ", ".join(f"'127.0.0.1:{replica.port}'" for replica in self.replicas)
        pool = (f"- {{name: p, models: [{MODEL}], endpoints: [{addresses}], "
                f"hold: {{order: {order}, timeout: {hold}s}}, scaling: {{objective: {{ttft: {OBJECTIVE}s}}}}}}")
        self.gateway = start_forebay(bench, self.name, access_log="true", cores=bench.all_cores, pools=[pool])
        self.log = bench.folder / f"{self.name}.log"

    def figures(self, sent):
        """The figures of a table's row, once all requests have ended; and those that ended in no good way."""
        deadline = time.monotonic() + 10
        while len(lines := ends(self.log)) < sent and time.monotonic() < deadline:
            time.sleep(0.1)
        answered = [line for line in lines if line["outcome"] == "completed"]
        refused = [line for line in lines if line["outcome"] == "refused"]
        ttft = [line["ttft_ms"] / 1e3 for line in answered]
        at = [datetime.datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
        began = min(end - line["took_ms"] / 1e3 for end, line in zip(at, lines))
        last = max(end for end, line in zip(at, lines) if line["outcome"] == "completed")
        work = sum(line["prompt_tokens"] * PROMPT_TOKEN + (line["generated_tokens"] - 1) * OUTPUT_TOKEN
                   for line in answered)
        return {
            "in time": sum(time <= OBJECTIVE for time in ttft) / sent,
            "answered": len(answered) / sent,
            "refused": len(refused) / sent,
            "refused after p95": quantile([line["took_ms"] / 1e3 for line in refused], 0.95),
            "TTFT p50": statistics.median(ttft),
            "p95": quantile(ttft, 0.95),
            "replicas busy": work / ((last - began) * len(self.replicas)),
        }, sent - len(answered) - len(refused)


def replayed(bench, trace, replicas, hold):
    """The same figures of replay, by order."""
    scenario = bench.folder / "scenario.yaml"
    before, changed = SCENARIO.read_text(), f"patience: {hold}s"
    scenario.write_text(before.replace("patience: 10m", changed))
    assert changed in scenario.read_text(), "the scenario's patience is another"
    done = subprocess.run([bench.forebay, "replay", "--config", scenario, "--trace", trace, "--orders", "--replicas",
                           str(replicas), "--json"], capture_output=True, text=True, check=True)
    return {report["order"].split()[0]: {
        "in time": report["shareWithin"],
        "answered": report["shareAnswered"],
        "refused": report["shareTooLate"],
        "refused after p95": (report["refusedAfterSeconds"] or {}).get("p95"),
        "TTFT p50": report["ttftSeconds"]["p50"],
        "p95": report["ttftSeconds"]["p95"],
        "replicas busy": report["busyShare"],
    } for report in json.loads(done.stdout)["orders"]}


def run(bench, seconds):
    """The rows of all loads and orders, live and in replay, and the goals that are missed."""
    trace, words = bench.folder / "overload.csv", bench.folder / "words.csv"
    sent = write_requests(trace, seconds)
    write_requests(words, seconds, TOKENS_OF_WORD)
    live = {(times, order): Live(bench, order, replicas, seconds)
            for times, replicas in REPLICAS.items() for order in ORDERS}
    loads = [subprocess.Popen(
        [bench.forebay, "load", f"http://127.0.0.1:{one.gateway.port}", "--model", MODEL, "--trace", words,
         "--pool", MODEL, "--timeout", "30m", "--body", '{"ignore_eos": true}', "--json"], stdout=subprocess.DEVNULL)
        for one in live.values()]
    try:
        for one in loads:
            one.wait()
    finally:
        for one in loads:
            one.kill()
    rows, missed = {}, []
    for times, replicas in REPLICAS.items():
        replay = replayed(bench, trace, replicas, seconds)
        for order in ORDERS:
            rows[times, f"`{order}`, live"], lost = live[times, order].figures(sent)
            rows[times, f"`{order}`, in replay"] = replay[order]
            if lost:
                missed.append(f"{times} times, {order}: {lost} requests neither answered nor refused")
        rows[times, "`evenly`, in replay"] = replay["evenly"]
        own, first = rows[times, "`objective`, live"], rows[times, "`arrival`, live"]
        for goal, met in (
            ("90 % of what `evenly` has in time", own["in time"] >= 0.9 * replay["evenly"]["in time"]),
            ("95 % of those who are refused hear it as soon as in replay, or a second later",
             (own["refused after p95"] or 0) <= (replay["objective"]["refused after p95"] or 0) + 1),
            ("as many answered as with `arrival`, but for 2 %", own["answered"] >= first["answered"] - 0.02),
        ):
            missed += [] if met else [f"{times} times: {goal}"]
    return sent, rows, missed


def cell(column, value):
    if value is None:
        return "–"
    if column.startswith(("TTFT", "p95", "refused after")):
        return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"
    return f"{100 * value:.1f} %"


def table(rows, times):
    lines = [f"| {times} times the load of {REPLICAS[times]} | " + " | ".join(COLUMNS) + " |",
             "| --- " * (len(COLUMNS) + 1) + "|"]
    for (of, name), row in rows.items():
        if of == times:
            lines.append(f"| {name} | " + " | ".join(cell(column, row[column]) for column in COLUMNS) + " |")
    return "\n".join(lines)
