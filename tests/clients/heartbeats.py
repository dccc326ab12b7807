"""Unchanged clients and plain answers with heartbeats: each reads an answer that begins with line
feeds, and each raises for an error that comes after them.

usage: heartbeats.py FOREBAY_BINARY [NODE_FOLDER]

Starts `forebay run`. Uses the clients that are installed, and those of NODE_FOLDER/node_modules.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
MESSAGES = [{"role": "user", "content": "hello"}]
# The answer takes a second, ten times as long as a heartbeat.
SLOW = ["--cold-start", "0s", "--decode-step-ms", "50"]
# No replica is ever ready, and a request is held for two seconds.
NEVER = ["--cold-start", "1h"]


def config(forebay):
    def pool(name, flags, timeout):
        command = [forebay, "vllm-sim", "--port", "{port}", "--served-model-name", name, *flags]
        hold = f"{{timeout: {timeout}, heartbeat: 100ms, heartbeatPlain: true}}"
        return (
            f"- name: {name}\n  models: [{name}]\n  hold: {hold}\n"
            f"  target: {{processes: {{command: {json.dumps(command)}}}}}\n"
        )

    return (
        "gateway: {listen: '127.0.0.1:0'}\nadmin: {listen: '127.0.0.1:0'}\npools:\n"
        + pool("slow", SLOW, "60s")
        + pool("never", NEVER, "2s")
    )


def python_clients(base):
    """Name and call of each installed client; a call returns the text of the answer."""
    try:
        import openai

        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        yield "openai chat", lambda model: client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=20
        ).choices[0].message.content
        yield "openai responses", lambda model: client.responses.create(
            model=model, input="hello", max_output_tokens=20
        ).output_text
    except ImportError as error:
        print(f"skip {error}")
    try:
        import anthropic

        claude = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
        yield "anthropic", lambda model: claude.messages.create(
            model=model, messages=MESSAGES, max_tokens=20
        ).content[0].text
    except ImportError as error:
        print(f"skip {error}")
    try:
        from langchain_openai import ChatOpenAI

        yield "langchain", lambda model: ChatOpenAI(
            base_url=f"{base}/v1", api_key="none", model=model, max_tokens=20, max_retries=0
        ).invoke("hello").content
    except ImportError as error:
        print(f"skip {error}")
    try:
        # It would ask another site for prices.
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        import litellm

        litellm.suppress_debug_info = True
        yield "litellm", lambda model: litellm.completion(
            model=f"openai/{model}",
            api_base=f"{base}/v1",
            api_key="none",
            messages=MESSAGES,
            max_tokens=20,
            num_retries=0,
            max_retries=0,
        ).choices[0].message.content
    except ImportError as error:
        print(f"skip {error}")


def begins_with_line_feeds(base, model):
    """Whether the answer on the wire is as this test wants it."""
    address = base.removeprefix("http://").split(":")
    body = json.dumps({"model": model, "max_tokens": 20, "messages": MESSAGES})
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )
    with socket.create_connection((address[0], int(address[1]))) as client:
        client.sendall(request.encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return answer.startswith(b"HTTP/1.1 200 ") and b"\r\n\r\n1\r\n\n\r\n" in answer


def main():
    forebay = str(pathlib.Path(sys.argv[1]).absolute())
    node = pathlib.Path(sys.argv[2]).absolute() if len(sys.argv) > 2 else None
    failed = 0

    def report(name, truth):
        nonlocal failed
        failed += not truth
        print(f"{'ok  ' if truth else 'FAIL'} {name}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "forebay.yaml"
        file.write_text(config(forebay))
        gateway = subprocess.Popen(
            [forebay, "run", "--config", str(file)],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FOREBAY_LOG": "info"},
        )
        try:
            line = next(line for line in gateway.stderr if "listening on http://" in line)
            base = re.search(r"http://[0-9.:]+", line.split("listening on ")[1]).group(0)
            for model in ["slow", "never"]:
                report(f"line feeds, {model}", begins_with_line_feeds(base, model))
            for name, call in python_clients(base):
                report(f"{name}: answer", bool(call("slow")))
                try:
                    print(f"     {name} took an error for an answer: {call('never')!r}")
                    report(f"{name}: error", False)
                except Exception as error:
                    report(f"{name}: error ({type(error).__name__})", True)
            if node:
                script = node / "heartbeats.mjs"
                script.write_bytes((HERE / "heartbeats.mjs").read_bytes())
                report("node clients", subprocess.run(["node", script, base]).returncode == 0)
        finally:
            gateway.terminate()
            gateway.wait()
    sys.exit(1 if failed else 0)


main()
