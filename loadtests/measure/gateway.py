"""A `forebay gateway` to measure, and the two ends of its requests: an upstream and a client.

The two ends go in lockstep: there is one request at a time, and the upstream sends a part of an
answer when the client has received the one before. So the gateway does the same work in every run,
however slow the machine is.
"""

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import platform
import resource
import socket
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Under callgrind, and of 10,000 endpoints.
READY_SECONDS = 600
ANSWER_SECONDS = 120

PLAIN = json.dumps({
    "id": "chatcmpl-b69eb275ee051fb6", "object": "chat.completion", "created": 1795452011, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "respond " * 20},
                 "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 190, "completion_tokens": 20, "total_tokens": 210},
}, separators=(",", ":")).encode()
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm","root":"m"}]}'
STREAM_HEAD = (b"HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
               b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
EVENT = (b'data: {"id":"chatcmpl-b69eb275ee051fb6","object":"chat.completion.chunk","created":1795452011,'
         b'"model":"m","choices":%s}\n\n')
DELTA = EVENT % (b'[{"index":0,"delta":{"content":" respon"},"logprobs":null,"finish_reason":null,'
                 b'"token_ids":null}]')
# A server that is asked for token ids sends the prompt's first, and then those of each chunk.
PROMPT_IDS = EVENT.replace(b"}\n\n", b',"prompt_token_ids":[%s],"prompt_text":null}\n\n'
                           % b",".join(b"%d" % id for id in range(1000, 1190))) \
    % b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
DELTA_WITH_IDS = DELTA.replace(b'"token_ids":null', b'"token_ids":[1614]')
LAST = EVENT % (b'[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop",'
                b'"stop_reason":null}]')
USAGE = EVENT % b'[],"usage":{"prompt_tokens":190,"completion_tokens":20,"total_tokens":210}'
LAST_CHUNK = b"0\r\n\r\n"


def chunk(body):
    """An HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def answer(body):
    return (b"HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


def allow_open_files():
    """Raises the limit of open files, for this process and its children, as far as it goes."""
    wanted = 120_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def build():
    """The path of the binary, from a release build of the source as it stands."""
    subprocess.run(["cargo", "build", "-q", "--release", "--bin", "forebay"], cwd=ROOT, check=True)
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "forebay"


def machine():
    """The machine in words, for the head of a table."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {name}"


def version(binary):
    """What the binary says of itself: its version and its commit."""
    return subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Exchange(asyncio.Protocol):
    """One connection of the gateway to the upstream."""

    def __init__(self, upstream):
        self.upstream, self.buffer, self.wanted = upstream, bytearray(), None

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data):
        self.buffer += data
        while True:
            if self.wanted is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                self.head = bytes(self.buffer[:end])
                lower = self.head.lower()
                at = lower.find(b"content-length:")
                length = int(lower[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
                self.wanted = end + 4 + length
            if len(self.buffer) < self.wanted:
                return
            body = bytes(self.buffer[-200:])
            del self.buffer[:self.wanted]
            self.wanted = None
            self.upstream.received(self, self.head.split(b" ", 2)[1], body)
            if b"connection: close" in self.head.lower():
                self.transport.close()
                return


class Upstream:
    """A server at one port of every loopback address, 127.0.0.0/8, that answers like vLLM.

    A stream waits for `send` after its first event; every other request is answered at once, unless
    `hold` is set: then chat requests wait, unanswered, and are counted in `waiting`.
    """

    def __init__(self):
        self.streams, self.waiting, self.hold = [], [], False
        # The chunk of the streams that are open.
        self.delta = DELTA
        self.served = 0
        self.loop = asyncio.new_event_loop()
        listening = threading.Event()
        threading.Thread(target=self._run, args=(listening,), daemon=True).start()
        listening.wait()

    def _run(self, listening):
        asyncio.set_event_loop(self.loop)
        # Accepted connections inherit it: a prompt of 200 KiB fits whole.
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("0.0.0.0", 0))
        self.port = sock.getsockname()[1]
        server = self.loop.create_server(lambda: Exchange(self), sock=sock, backlog=16384)
        self.loop.run_until_complete(server)
        listening.set()
        self.loop.run_forever()

    def received(self, exchange, path, body):
        if path == b"/v1/models":
            exchange.transport.write(answer(MODELS))
        elif not path.startswith(b"/v1/"):
            exchange.transport.write(answer(b""))
        elif b'"stream":true' in body:
            self.streams.append(exchange)
            with_ids = b'"return_token_ids":true' in body
            self.delta = DELTA_WITH_IDS if with_ids else DELTA
            first = chunk(PROMPT_IDS) if with_ids else b""
            exchange.transport.write(STREAM_HEAD + first + chunk(self.delta))
        elif self.hold:
            self.waiting.append(exchange)
        else:
            self.served += 1
            exchange.transport.write(answer(PLAIN))

    def send(self, parts):
        """Writes these parts into every open stream."""
        def write():
            for stream in self.streams:
                stream.transport.write(parts)
        self.loop.call_soon_threadsafe(write)

    def end_streams(self):
        def end():
            for stream in self.streams:
                stream.transport.write(chunk(LAST) + chunk(USAGE) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
            self.streams = []
        self.loop.call_soon_threadsafe(end)


class Gateway:
    """A running `forebay gateway` with one thread for its clients.

    `pools` is a list of endpoint counts, one a pool. Endpoint i of all is 127.x.y.z at the upstream's
    port. `wrapper` goes before the command, such as valgrind. `pool` and `gateway` are further fields of
    every pool and of the gateway, as YAML without braces; `sections` are further lines of the file.
    """

    def __init__(self, binary, upstream, folder, pools=(1,), access_log=False, wrapper=(), environment=None,
                 threads=1, pool="", gateway="", sections=()):
        self.folder = pathlib.Path(folder)
        self.port, self.admin, self.endpoints = free_port(), free_port(), sum(pools)
        lines = [
            f"gateway: {{listen: '127.0.0.1:{self.port}', threads: {threads}{gateway and ', ' + gateway}}}",
            f"admin: {{listen: '127.0.0.1:{self.admin}'}}",
            f"logging: {{access: {str(access_log).lower()}}}",
            *sections,
            "pools:",
        ]
        at = 0
        for number, count in enumerate(pools):
            addresses = ", ".join(f"'{address(at + i)}:{upstream.port}'" for i in range(count))
            model = "m" if number == 0 else f"m{number}"
            lines.append(f"- {{name: p{number}, models: [{model}], endpoints: [{addresses}]{pool and ', ' + pool}}}")
            at += count
        config = self.folder / "gateway.yaml"
        config.write_text("\n".join(lines) + "\n")
        self.log = self.folder / "gateway.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*map(str, wrapper), str(binary), "gateway", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                # Its levels would beat the configuration's.
                env={name: value for name, value in os.environ.items() if name != "FOREBAY_LOG"} | (environment or {}))

    def fail(self, why):
        text = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        raise SystemExit(f"{why}\n" + "\n".join(text))

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=120)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready_endpoints(self):
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, page = self.get("/metrics")
            lines = [line for line in page.splitlines() if line.startswith("forebay_endpoints{")]
            return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if 'ready"' in line)
        return 0

    def wait(self, limit=READY_SECONDS):
        """Waits until every endpoint is ready. Returns the seconds that it took."""
        start = time.monotonic()
        while (ready := self.ready_endpoints()) < self.endpoints:
            if self.process.poll() is not None:
                self.fail(f"the gateway ended with {self.process.returncode}")
            if time.monotonic() - start > limit:
                self.fail(f"{ready} of {self.endpoints} endpoints are ready after {limit} s")
            time.sleep(0.2)
        return time.monotonic() - start

    def status(self, field):
        """A number of /proc/PID/status, in KiB where it is a size."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise SystemExit(f"/proc/PID/status has no {field}")

    def cpu_seconds(self):
        """CPU time of the process so far, user and system."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def address(number):
    """The loopback address of endpoint `number`."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def request(content, stream=False, path="/v1/chat/completions"):
    """The bytes of a request, as the OpenAI client sends it."""
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": stream}
    body = json.dumps(body, separators=(",", ":")).encode()
    head = (f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nuser-agent: OpenAI/Python 3.54.0\r\n"
            f"accept: application/json\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
    return head.encode() + body


PROMPT_1K = "word " * 180
PROMPT_200K = "word " * (200 * 1024 // 5)


class Collector:
    """A receiver of OTLP over HTTP, which counts the bytes of what it gets."""

    def __init__(self):
        collector = self
        self.received = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                collector.received += len(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Client:
    """One connection to the gateway, over TLS if there is a `context` for it."""

    def __init__(self, port, context=None):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.settimeout(ANSWER_SECONDS)
        if context:
            self.socket = context.wrap_socket(self.socket)
        self.buffer = b""

    def until(self, mark):
        """Reads up to the end of `mark`, and returns all that was read."""
        while (at := self.buffer.find(mark)) < 0:
            try:
                data = self.socket.recv(1 << 18)
            except TimeoutError:
                raise SystemExit(f"no answer within {ANSWER_SECONDS} s; so far: {self.buffer[-500:]!r}") from None
            if not data:
                raise SystemExit(f"the gateway closed the connection after {self.buffer[-500:]!r}")
            self.buffer += data
        end = at + len(mark)
        text, self.buffer = self.buffer[:end], self.buffer[end:]
        return text

    def plain(self, text, count):
        """Sends the request `count` times, each after the answer to the one before."""
        for _ in range(count):
            self.socket.sendall(text)
            got = self.until(PLAIN)
            if not got.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"not a plain answer: {got[:500]!r}")

    def stream(self, upstream, text, chunks):
        """Sends a request for a stream, and has the upstream send this many chunks, one by one."""
        self.socket.sendall(text)
        self.until(b"respon")
        for _ in range(chunks):
            upstream.send(chunk(upstream.delta))
            self.until(b"respon")
        upstream.end_streams()
        self.until(b"data: [DONE]\n\n")
        self.until(b"\r\n" + LAST_CHUNK)
