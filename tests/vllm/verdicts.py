#!/usr/bin/env python3
"""How vLLM reads the fields that the gateway reads: its own request classes behind FastAPI.

usage: verdicts.py            writes verdicts.json beside this file
       verdicts.py --check    exits 1 if that is not what the installed vLLM says

Run with the Python that `setup` installs. No server and no model is started.
"""
import json
import logging
import os
import sys
import warnings
from typing import Annotated

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

from fastapi import FastAPI, Form, Response
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient

from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.classify.protocol import ClassificationRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.pooling.protocol import PoolingRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.speech_to_text.transcription.protocol import TranscriptionRequest
from vllm.entrypoints.speech_to_text.translation.protocol import TranslationRequest

VLLM = "0.32.0"
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "verdicts.json")

HI = [{"role": "user", "content": "hi"}]
APIS = {
    "/v1/chat/completions": (ChatCompletionRequest, {"messages": HI}),
    "/v1/completions": (CompletionRequest, {"prompt": "hi"}),
    "/v1/responses": (ResponsesRequest, {"input": "hi"}),
    "/v1/messages": (AnthropicMessagesRequest, {"model": "tiny", "max_tokens": 2, "messages": HI}),
    "/v1/messages/count_tokens": (AnthropicCountTokensRequest, {"model": "tiny", "messages": HI}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "hi"}),
    "/v1/rerank": (RerankRequest, {"query": "a", "documents": ["b"]}),
    "/v1/score": (ScoreRequest, {"text_1": "a", "text_2": "b"}),
    "/pooling": (PoolingRequest, {"input": "hi"}),
    "/classify": (ClassificationRequest, {"input": "hi"}),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}
FORMS = {
    "/v1/audio/transcriptions": TranscriptionRequest,
    "/v1/audio/translations": TranslationRequest,
}
FIELDS = [
    "model", "stream", "stream_options", "stream_options.include_usage",
    "stream_options.continuous_usage_stats", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "n", "priority",
]
FORM_FIELDS = ["model", "stream", "max_completion_tokens"]

WORDS = [
    "", " ", "true", "True", "TRUE", "tRuE", " true", "true ", "t", "T", "yes", "YES", "y", "on",
    "oN", "1", "1.0", "01", "+1", "false", "False", "f", "no", "NO", "n", "N", "off", "0", "0.0",
    "-0", "00", "2", "-1", "null", "None", "nan", "enabled", "tiny", " 2 ", "2\\n", "2.0", "2.50",
    "2.", ".5", "2e0", "1_0", "1__0", "_1", "1_", "+2", "++2", "- 2", "0x2", "0b1", "\\u0032",
    "\\u00b2", "\\u0662", "\\uff12", "tru\\u0065", "\\u00a02", "2\\u2003", "9223372036854775807",
    "99999999999999999999", "-2.000", "0002", "2.0_0", "2.0000000000000000000000000001",
    "\\ud83d\\ude00", "\\u0000",
]
VALUES = [
    "null", "true", "false", "0", "1", "-0", "-1", "2", "0.0", "1.0", "-0.0", "1e0", "1E0", "10e-1",
    "0e5", "0.5", "1.5", "2.0", "-1.0", "3e0", "1e2", "1.0000000000000001", "0.99999999999999999",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "99999999999999999999", "1e15", "1e19", "1e308", "1e400", "-1e400", "NaN", "Infinity",
    "-Infinity", "1e-400", "[]", "[true]", "[1]", '["tiny"]', "{}", '{"a":1}', '{"a":{"b":[1]}}',
    '{"include_usage":true}', '{"include_usage":"no"}', '{"include_usage":2}', '"\\ud800"',
] + [f'"{word}"' for word in WORDS]
FORM_VALUES = [json.loads(f'"{word}"') for word in WORDS]


def nested(field, text, base):
    """The base with the field, as text: Python would write some values in another way."""
    name, _, inner = field.partition(".")
    base = {key: value for key, value in base.items() if key != name}
    if name == "stream_options":
        base["stream"] = True
    value = f'{{"{inner}":{text}}}' if inner else text
    return json.dumps(base)[:-1] + f',"{name}":{value}}}'


def read(request, field):
    name, _, inner = field.partition(".")
    value = getattr(request, name, None)
    value = getattr(value, inner, None) if inner else value
    if field == "stream_options":
        return value is not None
    if isinstance(value, str):
        # Half a surrogate pair can't be written down.
        return value.encode(errors="backslashreplace").decode()
    return value


def verdicts():
    out = {"vllm": VLLM, "values": VALUES, "words": FORM_VALUES, "bodies": {}, "verdicts": {}}
    app = FastAPI()
    field = None

    # FastAPI's own shows the input, which not every number can be.
    @app.exception_handler(RequestValidationError)
    async def refuse(_request, _error):
        return Response(status_code=400)

    def serve(path, model):
        @app.post(path)
        def answer(request: model):
            return {"read": json.dumps(read(request, field))}

    for path, (model, _) in APIS.items():
        serve(path, model)
    for path, model in FORMS.items():
        serve(path, Annotated[model, Form()])
    client = TestClient(app, raise_server_exceptions=True)

    def verdict(answer):
        if answer.status_code == 200:
            return [json.loads(answer.json()["read"])]
        assert answer.status_code == 400, answer.text
        return None

    kind = {"content-type": "application/json"}
    for path, (_, base) in APIS.items():
        out["bodies"][path] = base
        rows = out["verdicts"][path] = {}
        for field in FIELDS:
            post = lambda text: client.post(path, content=nested(field, text, base), headers=kind)
            rows[field] = [verdict(post(text)) for text in VALUES]
            # What is not declared is kept, whatever it is.
            if None not in rows[field]:
                rows[field] = "any"
    for path, model in FORMS.items():
        rows = out["verdicts"][path] = {}
        for field in FORM_FIELDS:
            post = lambda text: client.post(path, data={field: text}, files={"file": ("a.wav", b"RIFF")})
            rows[field] = [verdict(post(text)) for text in FORM_VALUES]
    return out


def written(found):
    """One line for each field, so that a change can be read."""
    lines = ["{"]
    for name in ("vllm", "values", "words", "bodies"):
        lines.append(f"{json.dumps(name)}: {json.dumps(found[name])},")
    lines.append('"verdicts": {')
    for i, (path, rows) in enumerate(found["verdicts"].items()):
        lines.append(f"{json.dumps(path)}: {{")
        body = [f"  {json.dumps(field)}: {json.dumps(row)}" for field, row in rows.items()]
        lines.append(",\n".join(body))
        lines.append("}" if i + 1 == len(found["verdicts"]) else "},")
    return "\n".join([*lines, "}", "}"]) + "\n"


if __name__ == "__main__":
    text = written(verdicts())
    if sys.argv[1:] == ["--check"]:
        with open(FILE) as file:
            sys.exit(0 if file.read() == text else f"{FILE} is not what vLLM says: run verdicts.py")
    with open(FILE, "w") as file:
        file.write(text)
