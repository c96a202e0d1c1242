"""Asks a peer, by wrk, and looks at what it cost."""

import http.client
import json
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import machine
import processes
from errors import Refused
from peers import LOAD_CORE

SCRIPT = Path(__file__).with_name("load.lua")
WARM_UP_SECONDS = 1
# To the response, by every peer that reads it.
ADDED = ["x-request-id", "via"]


@dataclass(frozen=True)
class Figures:
    """What one peer did in one round."""
    cpu_us: float
    per_second: float
    p50_ms: float
    p99_ms: float
    resident_mib: float
    # The share of both cores that went to somebody else.
    others: float


def check(peer, scenario):
    """Refuses a peer that does not answer as it has to."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=10)
    try:
        for _ in range(2):
            connection.request("GET", scenario.path, headers={"Host": scenario.a_host})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or len(body) != scenario.body_bytes:
                raise Refused(f"{peer.name} answers {scenario.name} with {response.status} and {len(body)} bytes")
            missing = [name for name in ADDED if peer.name not in ("relay", "upstream") and not response.headers[name]]
            if missing:
                raise Refused(f"{peer.name} does not add {', '.join(missing)}")
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{peer.name} does not answer {scenario.name}: {error}") from error
    finally:
        connection.close()


def warm_up(peer, scenario, connections):
    wrk(peer, scenario, connections, WARM_UP_SECONDS)


def measure(peer, scenario, options):
    before = processes.cpu_seconds(peer.pids), ours(), processes.busy_seconds(), time.monotonic()
    told = wrk(peer, scenario, options.connections, options.seconds)
    after = processes.cpu_seconds(peer.pids), ours(), processes.busy_seconds(), time.monotonic()
    cpu, load, busy, passed = (later - earlier for earlier, later in zip(before, after))
    return Figures(
        cpu_us=cpu * 1e6 / told["requests"],
        per_second=told["requests"] * 1e6 / told["duration_us"],
        p50_ms=told["p50_us"] / 1000,
        p99_ms=told["p99_us"] / 1000,
        resident_mib=processes.resident_mib(peer.pids),
        others=max(0.0, busy - cpu - load) / (2 * passed),
    )


def ours():
    """CPU seconds of this process and of those that it ran and waited for; the upstream is neither."""
    return sum(os.times()[:4])


def wrk(peer, scenario, connections, seconds):
    """Runs wrk and returns what load.lua tells at the end; refuses if any answer was wrong."""
    command = [machine.tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "-s", SCRIPT]
    if scenario.closes:
        command += ["-H", "Connection: close"]
    command += [f"http://127.0.0.1:{peer.port}{scenario.path}", "--", str(scenario.hosts)]
    ran = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {LOAD_CORE}),
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode != 0 or not lines:
        raise Refused(f"wrk failed:\n{ran.stdout}")
    told = json.loads(lines[-1])
    failed = {name: count for name, count in told["errors"].items() if count}
    if failed:
        raise Refused(f"{peer.name}, {scenario.name}: not every answer came, or was 2xx: {failed}")
    if not told["requests"] or told["bytes"] < told["requests"] * scenario.body_bytes:
        raise Refused(f"{peer.name}, {scenario.name}: {told['bytes']} bytes in {told['requests']} answers")
    return told


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def request(scenario, host):
    ending = "Connection: close\r\n" if scenario.closes else ""
    return f"GET {scenario.path} HTTP/1.1\r\nHost: {host}\r\n{ending}\r\n".encode()


def receive(connection, scenario):
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0 or len(received) < end + 4 + scenario.body_bytes:
        more = connection.recv(256 * 1024)
        if not more:
            raise Refused(f"an answer of {scenario.name} ended after {len(received)} bytes")
        received += more
    if not received.startswith(b"HTTP/1.1 200 "):
        raise Refused(f"an answer of {scenario.name} was {received[:40]!r}")
