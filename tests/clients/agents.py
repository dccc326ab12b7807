"""Unchanged clients that call tools and read typed answers, against `forebay dev` without a GPU.

usage: agents.py FOREBAY_BINARY [NODE_FOLDER]

Starts `forebay dev` with simulated replicas. Uses the clients that are installed, and those of
NODE_FOLDER/node_modules.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import anthropic
import openai
import pydantic
from langchain_openai import ChatOpenAI

HERE = pathlib.Path(__file__).parent
QUESTION = "Is it warm?"


class Weather(pydantic.BaseModel):
    city: str
    degrees: int = pydantic.Field(ge=-40, le=50)
    rainy: bool


SCHEMA = Weather.model_json_schema()
failed = False


def report(name, truth):
    global failed
    print(f"{'ok  ' if truth else 'FAIL'} {name}", flush=True)
    failed = failed or not truth


def openai_chat(client):
    """A conversation of three turns: a question, a call with its result, and the typed answer."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    messages = [{"role": "user", "content": QUESTION}]
    first = client.chat.completions.create(model="sim", messages=messages, tools=tools)
    call = first.choices[0].message.tool_calls[0]
    Weather.model_validate_json(call.function.arguments)
    report("openai: a tool is called", first.choices[0].finish_reason == "tool_calls")

    messages += [
        first.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "31 C"},
    ]
    answer = client.chat.completions.parse(
        model="sim", messages=messages, tools=[openai.pydantic_function_tool(Weather)],
        response_format=Weather,
    )
    report("openai: a typed answer", isinstance(answer.choices[0].message.parsed, Weather))

    with client.chat.completions.stream(model="sim", messages=messages[:1], tools=tools) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        arguments = stream.get_final_completion().choices[0].message.tool_calls[0].function.arguments
    Weather.model_validate_json(arguments)
    report("openai: a streamed call", len(pieces) > 1)


def openai_responses(client):
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
    first = client.responses.create(model="sim", input=QUESTION, tools=tools)
    call = first.output[0]
    Weather.model_validate_json(call.arguments)
    report("openai responses: a tool is called", call.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "31 C"}
    history = [{"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True), result]
    answer = client.responses.create(model="sim", input=history, tools=tools, max_output_tokens=20)
    report("openai responses: an answer in words", bool(answer.output_text))
    typed = client.responses.parse(model="sim", input=QUESTION, text_format=Weather)
    report("openai responses: a typed answer", isinstance(typed.output_parsed, Weather))


def anthropic_messages(base):
    client = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    question = {"role": "user", "content": QUESTION}
    asked = {"model": "sim", "max_tokens": 100, "tools": tools}
    first = client.messages.create(messages=[question], tool_choice={"type": "auto"}, **asked)
    use = first.content[0]
    Weather.model_validate(use.input)
    report("anthropic: a tool is called", first.stop_reason == "tool_use")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "31 C"}
    history = [
        question,
        {"role": "assistant", "content": [use.model_dump(exclude_none=True)]},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(messages=history, tool_choice={"type": "auto"}, **asked)
    report("anthropic: an answer in words", answer.content[0].type == "text")
    any_tool = {"type": "any"}
    with client.messages.stream(messages=[question], tool_choice=any_tool, **asked) as stream:
        Weather.model_validate(stream.get_final_message().content[0].input)
    report("anthropic: a streamed call", True)


def langchain(base):
    model = ChatOpenAI(base_url=f"{base}/v1", api_key="none", model="sim", max_retries=0)
    answer = model.bind_tools([Weather]).invoke(QUESTION)
    Weather.model_validate(answer.tool_calls[0]["args"])
    report("langchain: a tool is called", answer.tool_calls[0]["name"] == "Weather")
    for method in ("json_schema", "function_calling"):
        typed = model.with_structured_output(Weather, method=method).invoke(QUESTION)
        report(f"langchain: a typed answer by {method}", isinstance(typed, Weather))


def main():
    forebay = pathlib.Path(sys.argv[1]).absolute()
    node = pathlib.Path(sys.argv[2]).absolute() if len(sys.argv) > 2 else None
    flags = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cold-start", "0s"]
    with tempfile.TemporaryDirectory() as folder:
        gateway = subprocess.Popen(
            [forebay, "dev", *flags], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        try:
            line = next(line for line in gateway.stderr if "listening on http://" in line)
            base = re.search(r"http://[0-9.:]+", line.split("listening on ")[1]).group(0)
            client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
            openai_chat(client)
            openai_responses(client)
            anthropic_messages(base)
            langchain(base)
            if node:
                script = node / "agents.mjs"
                script.write_bytes((HERE / "agents.mjs").read_bytes())
                run = subprocess.run(["node", script, base, json.dumps(SCHEMA)])
                report("node clients", run.returncode == 0)
        finally:
            gateway.terminate()
            gateway.wait()
    sys.exit(1 if failed else 0)


main()
