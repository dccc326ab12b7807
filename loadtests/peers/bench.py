"""The things that comparisons of proxies share: the stub upstream, the cores, peers and their load.

The proxies run on one core, the upstream and the load on another, and take turns.
"""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCENARIOS = HERE.parent / "scenarios" / "load"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "forebay-peers"
READY_SECONDS = 120


class Unavailable(Exception):
    """A peer cannot be installed or started; the text says why."""


class Ports:
    """Free ports; each is given out once."""

    def __init__(self):
        self.taken = set()

    def free(self):
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            if port not in self.taken:
                self.taken.add(port)
                return port


def tail(path, lines=3):
    text = path.read_text(errors="replace") if path.exists() else ""
    return " | ".join(text.strip().splitlines()[-lines:])


def output_of(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise Unavailable(f"`{' '.join(map(str, command[:4]))} …` failed: {last[0]}")
    return done.stdout + done.stderr


def apt_package(name):
    """The path of a program, installed if it is missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found:
        return found
    if os.geteuid() != 0:
        raise Unavailable(f"not installed; as root: apt-get install {name}")
    # A package that starts its service would take a port and CPU time.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    output_of(["apt-get", "update", "-q"])
    output_of(["apt-get", "install", "-qy", name], env=environment)
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not found:
        raise Unavailable(f"apt-get installed no program `{name}`")
    return found


def python_package(name, requirement):
    """The Python of a virtual environment that has this package."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    done = folder / requirement.replace("/", "_")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        output_of([sys.executable, "-m", "venv", folder])
        output_of([python, "-m", "pip", "install", "-q", requirement])
        done.touch()
    return python


def version_of(python, package):
    script = f"import importlib.metadata as m; print(m.version('{package}'))"
    return output_of([python, "-c", script]).strip()


class Peer:
    """A proxy that runs."""

    def __init__(self, version, port, process, admin=None):
        self.version, self.port, self.pid, self.process = version, port, process.pid, process
        # Forebay's admin port.
        self.admin = admin


class Bench:
    """The things that all peers share: the upstream, ports, a folder for files, the cores."""

    def __init__(self, folder, quick=False):
        self.folder = folder
        self.ports = Ports()
        self.processes = []
        cores = sorted(os.sched_getaffinity(0))
        self.proxy_core, self.load_core = cores[0], cores[-1]
        self.all_cores = ",".join(map(str, cores))
        self.forebay, self.stub = build(quick)
        self.upstream = None

    def start_upstream(self):
        """Starts the stub, at one port of every loopback address."""
        self.upstream = self.start_stub("stub")

    def start_stub(self, name):
        """Starts a stub, at one port of every loopback address, and returns the port."""
        port = self.ports.free()
        process = self.start([self.stub, "--address", "0.0.0.0", "--port", port], name, self.load_core)
        self.wait_for(port, process, name)
        return port

    def fill(self, name, target=None, **values):
        """Writes a configuration with its @NAMES@ filled in, and returns its path."""
        text = (HERE / name).read_text()
        for key, value in (values | {"FOLDER": self.folder, "UPSTREAM": self.upstream}).items():
            text = text.replace(f"@{key}@", str(value))
        path = self.folder / (target or name)
        path.write_text(text)
        return path

    def start(self, command, name, core, **environment):
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=os.environ | environment, start_new_session=True,
            )
        self.processes.append(process)
        return process

    def wait_for(self, port, process, name, path="/v1/models", statuses=(200,)):
        """Waits until a GET of `path` has one of these statuses."""
        deadline = time.monotonic() + READY_SECONDS
        last = "no answer"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise Unavailable(f"ended with {process.returncode}: {tail(self.folder / f'{name}.log')}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", path)
                last = connection.getresponse().status
                connection.close()
                if last in statuses:
                    return
            time.sleep(0.1)
        raise Unavailable(f"not ready after {READY_SECONDS} s ({last}): {tail(self.folder / f'{name}.log')}")

    def check(self, port):
        """One plain request and one stream, which must come through whole."""
        for stream in (False, True):
            body = {"model": "m", "stream": stream, "max_tokens": 100,
                    "messages": [{"role": "user", "content": "hello"}]}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read().decode()
            except OSError as error:
                reason = error.read()[:200].decode() if hasattr(error, "read") else ""
                raise Unavailable(f"does not answer: {error} {reason}") from error
            wanted = "[DONE]" if stream else "finish_reason"
            if wanted not in text:
                raise Unavailable(f"its answer has no {wanted}: {text[:200]}")

    def end(self, peer):
        """Ends one peer, so that another may take its place."""
        self.processes.remove(peer.process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(peer.pid, signal.SIGKILL)
        peer.process.wait()

    def stop(self):
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def build(quick):
    """The paths of the forebay binary and of the stub: the program as it is released, unless quick, or the one that
    FOREBAY_BINARY names."""
    given = os.environ.get("FOREBAY_BINARY")
    if quick:
        # As the tests are built, so that the dependencies are not built once more.
        builds = [["--workspace", "--bins", "--examples"]]
    else:
        builds = [["--release", "-p", "forebay-loadtests", "--example", "stub"]]
        if not given:
            subprocess.run([ROOT / "deploy" / "build"], check=True)
    for what in builds:
        subprocess.run(["cargo", "build", "-q", *what], cwd=ROOT, check=True)
    target = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
    if quick:
        return target / "debug" / "forebay", target / "debug" / "examples" / "stub"
    forebay = pathlib.Path(given) if given else target / "dist" / "forebay"
    return forebay, target / "release" / "examples" / "stub"


# The name of the simulated replicas' model.
MODEL = "chat"


def start_replica(bench, name, seed=0, slower=1):
    """A simulated replica with a prefix cache, of the speed and cache in loadtests/scenarios/affinity.yaml, which
    says where they come from: its process and port. `slower`: how many times as long it takes."""
    block = 16
    port = bench.ports.free()
    process = bench.start(
        [bench.forebay, "vllm-sim", MODEL, "--port", port, "--seed", seed,
         "--prefill-tokens-per-second", 15900 / slower, "--decode-step-ms", 14 * slower,
         "--decode-step-ms-per-seq", 0.1 * slower, "--max-num-seqs", 256, "--num-gpu-blocks-override", 300_000 // block,
         "--block-size", block, "--max-model-len", 131072, "--enable-prompt-tokens-details"],
        name, bench.all_cores)
    return process, port


def start_replicas(bench, count, slow=()):
    """So many of them, ready. `slow`: by number, how many times as long some take."""
    replicas = [start_replica(bench, f"replica-{number}", number, dict(slow).get(number, 1)) for number in range(count)]
    for number, (process, port) in enumerate(replicas):
        bench.wait_for(port, process, f"replica-{number}", "/health")
    return replicas


def start_forebay(bench, name, access_log="false", threads=1, cores=None, pools=None, more=""):
    """`pools` are the lines of the configuration; without them there is one pool of one endpoint. `more`: further
    fields of `gateway`, which begin with a comma."""
    port, admin = bench.ports.free(), bench.ports.free()
    pools = pools or [f"- {{name: p, models: [m], endpoints: ['127.0.0.1:{bench.upstream}'], maxInFlight: 100000}}"]
    config = bench.fill("forebay.yaml", f"{name}.yaml", PORT=port, ADMIN=admin, ACCESS_LOG=access_log,
                        THREADS=threads, POOLS="\n".join(pools), MORE=more)
    process = bench.start([bench.forebay, "gateway", "--config", config], name, cores or bench.proxy_core)
    bench.wait_for(admin, process, name, "/readyz")
    # The name is the row's first word already.
    version = output_of([bench.forebay, "--version"]).strip().removeprefix("forebay ")
    return Peer(version, port, process, admin)


def start_nginx(bench, name, access_log="false", workers=1, cores=None, upstreams=None):
    """`upstreams` is a list of lists of addresses; the load goes to the first list."""
    nginx = apt_package("nginx")
    port = bench.ports.free()
    log = f"{bench.folder}/{name}-access.log json" if access_log == "true" else "off"
    lists = upstreams or [[f"127.0.0.1:{bench.upstream}"]]
    blocks = "\n".join(
        f"  upstream replicas{number or ''} {{\n"
        + "".join(f"    server {each};\n" for each in servers)
        + f"    keepalive {max(256, len(servers))};\n    keepalive_requests 1000000000;\n  }}"
        for number, servers in enumerate(lists))
    config = bench.fill("nginx.conf", f"{name}.conf", PORT=port, ACCESS_LOG=log, UPSTREAMS=blocks, WORKERS=workers)
    process = bench.start([nginx, "-p", bench.folder, "-c", config], name, cores or bench.proxy_core)
    bench.wait_for(port, process, name)
    return Peer(output_of([nginx, "-v"]).strip().split("/")[-1], port, process)


def measure(bench, peer, scenario, figure, seconds, *options):
    """One run of `forebay load` through a peer. `options` are further flags."""
    done = subprocess.run(
        ["taskset", "-c", str(bench.load_core), bench.forebay, "load", f"http://127.0.0.1:{peer.port}",
         "--scenario", SCENARIOS / scenario, "--duration", f"{round(seconds * 1000)}ms", "--timeout", "60s",
         "--cpu-of", str(peer.pid), "--json", *map(str, options)],
        capture_output=True, text=True)
    # Of a peer too slow to finish one stream in time, the chunks that came still have their cost.
    if not done.stdout.strip():
        return {"error": done.stderr.strip().splitlines()[-1:]}
    results = json.loads(done.stdout)
    requests = results["requests"]
    return {
        "cpuMicros": results["cpu"][figure],
        "perSecond": requests["perSecond"],
        "cores": results["cpu"]["cores"],
        "failures": requests["failures"],
        "misordered": requests["misordered"],
        "generatorCores": results["generatorCpu"]["cores"],
    }


def median(rounds, key):
    values = [each[key] for each in rounds if each.get(key) is not None]
    return statistics.median(values) if values else None


def spread(rounds, key, digits):
    values = [each[key] for each in rounds if each.get(key) is not None]
    if not values:
        return "–"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def problems(rounds):
    """Failed requests and disorder, which make a figure worthless."""
    found = []
    for each in rounds:
        found += each.get("error") or []
        found += [f"{count} × {name}" for name, count in each.get("failures", {}).items()]
        if each.get("misordered"):
            found.append(f"{each['misordered']} streams out of order")
    return sorted(set(found))
