"""The workloads: each asks one peer for one turn and says what came of it."""

import json
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field

from content import MIB

GIB = 1 << 30
ACCEPT = "Accept: application/vnd.oci.image.manifest.v1+json"
COLD_TURNS = 8


@dataclass
class Turn:
    """What one turn gave. The first of `figures` is the one that is compared."""

    figures: dict
    notes: list = field(default_factory=list)


@dataclass
class Workload:
    name: str
    what: str
    unit: str
    turn: object
    lower_is_better: bool = False
    upstream_too: bool = False
    by_tls: bool = False
    prepare: object = None


class Bench:
    """What the workloads share: the content, and how to ask."""

    def __init__(self, work, seconds, content):
        self.work, self.seconds = work, seconds
        mib = lambda n: content.blob_of(n * MIB)
        (self.large, large), (self.small, small) = mib(256), mib(1)
        self.tag, self.manifest = content.image("latest", [(large, 256 * MIB), (small, MIB)])
        self.cold = [content.blob(256 * MIB) for _ in range(COLD_TURNS)]
        self.herd = [content.blob(64 * MIB) for _ in range(COLD_TURNS * 2)]
        self.growing = [content.blob(256 * MIB) for _ in range(COLD_TURNS)]
        self.shelf = [content.blob(64 * MIB) for _ in range(32)]

    def blast(self, peer, *arguments):
        return self.begin_blast(peer, *arguments)()

    def begin_blast(self, peer, *arguments):
        """Asks while others do; what is returned waits for the end and tells what came."""
        command = [f"{self.work}/bin/blast", "-p", str(peer.port), "-H", ACCEPT, *map(str, arguments)]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return lambda: json.loads(asking.communicate()[0])

    def measured(self, peer, ask):
        """Asks, and adds the processor time and the peak of anonymous memory that it cost the peer."""
        before = peer.processor_seconds()
        with Peak(peer) as peak:
            result = ask()
        result["processor"] = peer.processor_seconds() - before
        result["anonymous_mib"] = peak.mib
        return result

    def warm(self, peer, *paths):
        for path in paths:
            self.blast(peer, "-n", 1, "-d", 60, path)

    def settled(self, peer, paths):
        """Until what was pulled is in the cache, as a second asking shows."""
        self.warm(peer, *paths)
        self.warm(peer, *paths)


class Peak:
    """The most anonymous memory while it is open."""

    def __init__(self, peer):
        self.peer, self.mib, self.done = peer, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while True:
            self.mib = max(self.mib, self.peer.anonymous_memory())
            if self.done.wait(0.2):
                return

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def throughput(result):
    gib = result["bytes"] / GIB
    return common(result, {"value": gib / result["seconds"], "processor_per_gib": result["processor"] / max(gib, 1e-9)})


def requests(result):
    per_thousand = result["processor"] * 1000 / max(result["requests"], 1)
    return common(result, {"value": result["requests"] / result["seconds"], "processor_per_1000": per_thousand})


def common(result, figures):
    figures |= {"p50_ms": result["last_ms"][0], "p99_ms": result["last_ms"][1], "anonymous_mib": result["anonymous_mib"]}
    notes = [f"{result['errors']} errors"] if result["errors"] else []
    notes += [f"{result['refused']} refused"] if result["refused"] else []
    return Turn(figures, notes)


def workloads(bench):
    def hit(path, connections):
        def turn(peer, _):
            bench.warm(peer, path)
            return throughput(bench.measured(peer, lambda: bench.blast(peer, "-c", connections, "-d", bench.seconds, path)))

        return turn

    def hit_read(path, connections):
        def turn(peer, _):
            bench.warm(peer, path)
            return throughput(bench.measured(peer, lambda: wrk(peer, path, connections, bench.seconds)))

        return turn

    def by_tls(path, connections, protocol, figures):
        def turn(peer, _):
            bench.warm(peer, path)
            return figures(bench.measured(peer, lambda: h2load(peer, bench, path, connections, protocol)))

        return turn

    def manifests(path, connections, *options):
        def turn(peer, _):
            bench.warm(peer, path)
            ask = lambda: bench.blast(peer, "-c", connections, "-d", bench.seconds, *options, path)
            return requests(bench.measured(peer, ask))

        return turn

    def cold(paths, connections):
        def turn(peer, n):
            result = bench.measured(peer, lambda: bench.blast(peer, "-c", connections, "-n", connections, "-d", 120, paths[n]))
            first = result["first_ms"]
            slowest = {"value": result["last_ms"][2], "first_ms": first[0], "first_most_ms": first[2]}
            return Turn(slowest | {"processor": result["processor"], "anonymous_mib": result["anonymous_mib"]},
                        [f"{result['errors']} errors"] if result["errors"] else [])

        return turn

    def ranges(peer, _):
        bench.warm(peer, bench.large)
        size = 256 * MIB
        ask = lambda: bench.blast(peer, "-c", 32, "-d", bench.seconds, "-x", f"4096:{size}", bench.large)
        return requests(bench.measured(peer, ask))

    def slow_readers(peer, _):
        bench.warm(peer, bench.large, bench.manifest)
        with Peak(peer) as peak:
            readers = bench.begin_blast(peer, "-c", 1000, "-d", 12, "-r", 32768, bench.large)
            time.sleep(5)
            meanwhile = bench.blast(peer, "-c", 4, "-d", 4, bench.manifest)
            result = readers()
        notes = [f"{result['errors']} readers broke"] if result["errors"] else []
        return Turn({"value": peak.mib, "manifest_p99_ms": meanwhile["last_ms"][1]}, notes)

    def growing(peer, n):
        bench.warm(peer, bench.manifest)
        with Peak(peer) as peak:
            readers = bench.begin_blast(peer, "-c", 200, "-d", 8, "-r", 32768, bench.growing[n])
            time.sleep(0.2)
            meanwhile = bench.begin_blast(peer, "-c", 4, "-d", 4, bench.manifest)
            fast = bench.blast(peer, "-c", 1, "-n", 1, "-d", 60, bench.growing[n])
            manifests, slow = meanwhile(), readers()
        notes = [f"{slow['errors']} readers broke"] if slow["errors"] else []
        figures = {"value": fast["last_ms"][2], "manifest_p99_ms": manifests["last_ms"][1], "anonymous_mib": peak.mib}
        return Turn(figures, notes)

    def beside_hits(connections):
        def turn(peer, _):
            bench.warm(peer, bench.large, bench.manifest)
            readers = bench.begin_blast(peer, "-c", connections, "-d", bench.seconds, bench.large)
            meanwhile = bench.blast(peer, "-c", 4, "-d", bench.seconds, bench.manifest)
            result = readers()
            p50, p99, _ = meanwhile["last_ms"]
            a_second = meanwhile["requests"] / meanwhile["seconds"]
            return Turn({"value": p99, "p50_ms": p50, "manifests_s": a_second, "gib_s": result["bytes"] / GIB / result["seconds"]})

        return turn

    def not_in_memory(peer, _):
        bench.settled(peer, [*bench.shelf, bench.manifest])
        forget(peer)
        readers = bench.begin_blast(peer, "-c", 32, "-n", 32, "-d", 60, *bench.shelf)
        meanwhile = bench.blast(peer, "-c", 4, "-d", bench.seconds, bench.manifest)
        result = readers()
        gib_s = result["bytes"] / GIB / result["seconds"]
        return Turn({"value": meanwhile["last_ms"][1], "gib_s": gib_s}, [f"{result['errors']} errors"] if result["errors"] else [])

    def idle(peer, _):
        peer.restart()
        bench.warm(peer, bench.manifest)
        before = peer.anonymous_memory()
        with Peak(peer) as peak:
            result = bench.blast(peer, "-i", "-c", 10_000, "-n", 10_000, "-d", 6, bench.manifest)
        notes = [f"{result['requests']} of 10,000 answered"] if result["requests"] < 10_000 else []
        return Turn({"value": (peak.mib - before) * 1024 / 10_000}, notes)

    return [
        Workload("hit-256m-1", "hit, 256 MiB, 1 connection", "GiB/s", hit(bench.large, 1)),
        Workload("hit-256m-8", "hit, 256 MiB, 8 connections", "GiB/s", hit(bench.large, 8)),
        Workload("hit-256m-64", "hit, 256 MiB, 64 connections", "GiB/s", hit(bench.large, 64)),
        Workload("hit-1m-32", "hit, 1 MiB, 32 connections", "GiB/s", hit(bench.small, 32)),
        Workload("read-256m-8", "hit, 256 MiB, 8 connections that read", "GiB/s", hit_read(bench.large, 8)),
        Workload("read-1m-32", "hit, 1 MiB, 32 connections that read", "GiB/s", hit_read(bench.small, 32)),
        *[
            Workload(f"{kind}-{n}", f"manifest by {kind}, {n} connections", "requests/s", manifests(path, n))
            for kind, path in (("digest", bench.manifest), ("tag", bench.tag))
            for n in (1, 32, 256)
        ],
        *[
            Workload(f"tls-{name}-{short}", f"{what}, TLS, {protocol}", unit, by_tls(path, n, short, figures), by_tls=True)
            for name, what, path, n, unit, figures in (
                ("256m-8", "hit, 256 MiB, 8 connections", bench.large, 8, "GiB/s", throughput),
                ("1m-32", "hit, 1 MiB, 32 connections", bench.small, 32, "GiB/s", throughput),
                ("tag-32", "manifest by tag, 32 connections", bench.tag, 32, "requests/s", requests),
            )
            for short, protocol in (("h1", "HTTP/1.1"), ("h2", "HTTP/2"))
        ],
        Workload("connect", "manifest, a connection each, 32 at once", "requests/s", manifests(bench.manifest, 32, "-1")),
        Workload("range-4k", "4 KiB ranges of 256 MiB, 32 connections", "requests/s", ranges),
        Workload("cold-256m", "cold, 256 MiB, 1 client", "ms", cold(bench.cold, 1), True, True),
        Workload("herd-50", "cold, 64 MiB, 50 clients: the last is done", "ms", cold(bench.herd[:COLD_TURNS], 50), True),
        Workload("herd-500", "cold, 64 MiB, 500 clients: the last is done", "ms", cold(bench.herd[COLD_TURNS:], 500), True),
        Workload("slow-1000", "1,000 slow readers: anonymous memory", "MiB", slow_readers, True),
        Workload("growing-200", "cold, 256 MiB, 1 client beside 200 slow readers", "ms", growing, True),
        *[
            Workload(f"beside-{n}", f"manifest beside {n} hits of 256 MiB: p99", "ms", beside_hits(n), True) for n in (8, 64)
        ],
        Workload("uncached", "32 hits from the disk: p99 of manifests", "ms", not_in_memory, True),
        Workload("idle-10000", "an idle connection of 10,000: anonymous memory", "KiB", idle, True),
    ]


def h2load(peer, bench, path, connections, protocol):
    """A client that decrypts what it receives, by HTTP/1.1 or HTTP/2."""
    log = f"{bench.work}/h2load.log"
    if os.path.exists(log):
        os.remove(log)
    options = ["--h1"] if protocol == "h1" else ["-w", "24", "-W", "24"]
    url = f"https://127.0.0.1:{peer.tls_port}{path}"
    command = ["h2load", *options, "-t", "1", "-c", str(connections), "-D", str(max(1, round(bench.seconds))), "--log-file", log, "-H", ACCEPT, url]
    begun = time.monotonic()
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    seconds = time.monotonic() - begun
    with open(log) as file:
        lines = [line.split() for line in file]
    took = sorted(int(line[2]) / 1000 for line in lines if line[1] == "200") or [0.0]
    received = re.search(r"traffic: \S+ \((\d+)\) total, .* \((\d+)\) data", said)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", said)
    return {
        "requests": len(took),
        "bytes": int(received[2]),
        "seconds": seconds,
        "last_ms": [took[len(took) // 2], took[len(took) * 99 // 100]],
        "errors": int(failed[2]) + int(failed[3]),
        "refused": sum(line[1] != "200" for line in lines),
    }


def wrk(peer, path, connections, seconds):
    """A client that copies what it receives into its own memory, as real ones do."""
    url = f"http://127.0.0.1:{peer.port}{path}"
    command = ["wrk", "-t", "1", "-c", str(connections), "-d", str(max(1, round(seconds))), "--latency", "--timeout", "60", url]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"(\d+) requests in ([\d.]+)(s|m), ([\d.]+)(B|KB|MB|GB|TB) read", said)
    latency = {share: milliseconds(*re.search(rf"{share}%\s+([\d.]+)(us|ms|s|m)", said).groups()) for share in (50, 99)}
    scale = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}[found[5]]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    return {
        "requests": int(found[1]),
        "seconds": float(found[2]) * (60 if found[3] == "m" else 1),
        "bytes": float(found[4]) * scale,
        "errors": sum(map(int, errors.groups())) if errors else 0,
        "refused": int(refused[1]) if refused else 0,
        "last_ms": [latency[50], latency[99], latency[99]],
    }


def milliseconds(value, unit):
    return float(value) * {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}[unit]


def forget(peer):
    """Drops what the peer has cached from the page cache."""
    place = peer.files()
    if not place:
        return
    os.sync()
    for directory, _, names in os.walk(place):
        for name in names:
            if not os.path.isfile(f"{directory}/{name}"):
                continue
            descriptor = os.open(f"{directory}/{name}", os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
