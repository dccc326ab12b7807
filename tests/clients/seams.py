"""The unchanged OpenAI client reads streams whose replica is killed: what it returns is what it returns
for streams of a replica that never fails.

usage: seams.py FOREBAY_BINARY

Starts `forebay gateway` and simulated replicas.
"""

import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import openai

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
TOKENS = 200


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def replica(forebay, port, step):
    flags = ["--decode-step-ms", str(step), "--enable-auto-tool-choice", "--tool-call-parser", "any"]
    command = [forebay, "vllm-sim", "--port", str(port), *flags]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return child
        except OSError:
            time.sleep(0.05)


def ways(client):
    """Each way to read a stream: its name, and a function that begins one."""
    messages = [{"role": "user", "content": "hello"}]
    common = {
        "model": "sim",
        "stream": True,
        "max_tokens": TOKENS,
        "extra_body": {"ignore_eos": True},
    }
    usage = {"stream_options": {"include_usage": True}}
    chat, completion = client.chat.completions.create, client.completions.create
    yield "chat", lambda: chat(messages=messages, **common)
    yield "usage", lambda: chat(messages=messages, **common, **usage)
    yield "logprobs", lambda: chat(messages=messages, logprobs=True, top_logprobs=2, **common)
    yield "tools", lambda: chat(messages=messages, tools=TOOLS, tool_choice="none", **common)
    yield "stop", lambda: chat(messages=messages, stop=["#"], **common)
    yield "completion", lambda: completion(prompt="hello", **common, **usage)
    yield "completion with logprobs", lambda: completion(prompt="hello", logprobs=2, **common)


def contents(chunks):
    """Everything in the chunks, but for the id and the time, of which there is one."""
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    return [chunk.model_dump(exclude={"id", "created"}) for chunk in chunks]


def main(forebay):
    ports = [free_port(), free_port()]
    replicas = [replica(forebay, port, 5) for port in ports]
    whole = free_port()
    others = [replica(forebay, whole, 0)]
    endpoints = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    config = (
        "gateway: {listen: '127.0.0.1:0'}\nadmin: {listen: '127.0.0.1:0'}\npools:\n"
        f"- {{name: p, models: [sim], pick: leastLoad, endpoints: [{endpoints}]}}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "forebay.yaml")
        file.write_text(config)
        gateway = subprocess.Popen(
            [forebay, "gateway", "--config", str(file)], stderr=subprocess.PIPE, text=True
        )
        others.append(gateway)
        try:
            line = next(line for line in gateway.stderr if "http://" in line)
            base = re.search(r"http://[\d.:]+", line).group()
            client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
            direct = openai.OpenAI(
                base_url=f"http://127.0.0.1:{whole}/v1", api_key="none", max_retries=0
            )
            for (name, begin), (_, unbroken) in zip(ways(client), ways(direct)):
                # One stream at each replica, of which the first one is killed.
                streams = [begin(), begin()]
                chunks = [[next(stream) for _ in range(20)] for stream in streams]
                replicas[0].send_signal(signal.SIGKILL)
                replicas[0].wait()
                for got, stream in zip(chunks, streams):
                    got.extend(stream)
                want = contents(list(unbroken()))
                if any(contents(got) != want for got in chunks):
                    print(f"FAIL {name}")
                    sys.exit(1)
                print(f"ok   {name}")
                replicas[0] = replica(forebay, ports[0], 5)
                # The gateway finds it again by its probe.
                time.sleep(1)
        finally:
            for child in replicas + others:
                child.kill()


main(sys.argv[1])
