"""The official client against the gateway, unchanged.

usage: openai_client.py FOREBAY_BINARY          starts `forebay dev` and its simulated replicas
       openai_client.py BASE_URL MODEL [EMBED]  uses what runs there (for a real vLLM)
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

import openai


def check(what, truth):
    print(f"{'ok  ' if truth else 'FAIL'} {what}")
    if not truth:
        sys.exit(1)


def run(base_url, model, embeddings):
    # Retries would hide what the gateway gets wrong.
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)
    messages = [{"role": "user", "content": "hello"}]
    ignore_eos = {"ignore_eos": True}

    check("models", model in [entry.id for entry in client.models.list().data])
    check("one model", client.models.retrieve(model).id == model)

    chat = client.chat.completions.create(
        model=model, messages=messages, max_tokens=8, extra_body=ignore_eos
    )
    check("chat", chat.choices[0].finish_reason == "length" and chat.choices[0].message.content)
    check("usage", chat.usage.completion_tokens == 8 and chat.usage.prompt_tokens > 0)

    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=ignore_eos,
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check("stream", text and [c for c in chunks if c.choices][-1].choices[0].finish_reason == "length")
    check("stream usage", chunks[-1].usage.completion_tokens == 20)

    plain = list(
        client.chat.completions.create(
            model=model, messages=messages, max_tokens=5, stream=True, extra_body=ignore_eos
        )
    )
    check("stream without usage", plain and all(chunk.usage is None for chunk in plain))

    done = client.completions.create(model=model, prompt="The", max_tokens=5, extra_body=ignore_eos)
    check("completion", done.usage.completion_tokens == 5)
    parts = list(client.completions.create(model=model, prompt="The", max_tokens=5, stream=True))
    check("completion stream", parts and parts[-1].choices[0].finish_reason)

    if embeddings:
        vectors = client.embeddings.create(model=embeddings, input=["hello", "world"]).data
        check("embeddings", len(vectors) == 2 and len(vectors[0].embedding) > 1)

    for name, kind, kwargs in [
        ("unknown model", openai.NotFoundError, {"model": "nope", "messages": messages}),
        ("bad temperature", openai.BadRequestError, {"model": model, "messages": messages, "temperature": -1}),
        ("too long", openai.BadRequestError, {"model": model, "messages": messages, "max_tokens": 10**9}),
    ]:
        try:
            client.chat.completions.create(**kwargs)
            check(name, False)
        except kind as error:
            check(name, error.body["message"] and error.code is not None)


def started(command):
    """The process, and the base URL that it tells."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    base = None
    for line in process.stderr:
        if found := re.search(r"listening on (http://\S+)", line):
            base = found[1] + "/v1"
            break
    # Nobody else reads it, and a full pipe would stop the gateway.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return process, base


KEYED = """
gateway:
  listen: 127.0.0.1:0
  keys: {{file: {keys}, required: true}}
  tenants: [{{name: a, models: [sim, gone], requestsPerMinute: 2}}, {{name: b, models: [other]}}]
admin: {{listen: 127.0.0.1:0}}
pools:
- name: p
  models: [sim, other]
  target: {{processes: {{command: ['{binary}', vllm-sim, --served-model-name, sim, other, '--port={{port}}']}}}}
"""


def run_with_keys(binary):
    with tempfile.TemporaryDirectory() as folder:
        keys, file = pathlib.Path(folder, "keys.yaml"), pathlib.Path(folder, "forebay.yaml")
        sha256 = lambda key: hashlib.sha256(key.encode()).hexdigest()
        keys.write_text("".join(f"- {{tenant: {it}, sha256: {sha256('sk-' + it)}}}\n" for it in "ab"))
        file.write_text(KEYED.format(keys=keys, binary=pathlib.Path(binary).resolve()))
        process, base = started([binary, "run", "--config", file])
        try:
            for name, kind, key, model in [
                ("right key", None, "sk-a", "sim"),
                ("wrong key", openai.AuthenticationError, "sk-x", "sim"),
                ("another's model", openai.PermissionDeniedError, "sk-b", "sim"),
                # It counts: what is asked for is known only when the body is read.
                ("no such model", openai.NotFoundError, "sk-a", "gone"),
                ("over the limit", openai.RateLimitError, "sk-a", "sim"),
            ]:
                client = openai.OpenAI(base_url=base, api_key=key, max_retries=0, timeout=60)
                messages = [{"role": "user", "content": "hello"}]
                try:
                    client.chat.completions.create(model=model, messages=messages, max_tokens=2)
                    check(name, kind is None)
                except openai.APIStatusError as error:
                    check(f"{name}: {error}", kind and type(error) is kind and error.body["message"])
        finally:
            process.terminate()
            check("exit status", process.wait(timeout=60) == 0)


def main():
    if not sys.argv[1].startswith("http"):
        binary = sys.argv[1]
        for runner, pooling in [((), False), (("--runner", "pooling"), True)]:
            sim = [binary, "vllm-sim", "--host", "127.0.0.1", "--port", "{port}", "--cold-start", "1s"]
            sim += ["--served-model-name", "sim", *runner]
            command = [binary, "dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--model", "sim", "--", *sim]
            process, base = started(command)
            try:
                if pooling:
                    client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
                    vectors = client.embeddings.create(model="sim", input=["hello", "world"]).data
                    check("embeddings", len(vectors) == 2 and len(vectors[0].embedding) > 1)
                else:
                    run(base, "sim", None)
            finally:
                process.terminate()
                check("exit status", process.wait(timeout=60) == 0)
        run_with_keys(binary)
    else:
        run(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)


main()
