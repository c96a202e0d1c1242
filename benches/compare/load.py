"""Puts load on a peer, and looks at what it cost."""

import os
import time
from dataclasses import dataclass

import echo
import h2load
import processes
import wrk
from errors import Refused

# Each can `ask`, for header fields, and `run`, for figures; both refuse what is not answered as it has to be.
GENERATORS = {"wrk": wrk, "h2load": h2load, "echo": echo}
WARM_UP_SECONDS = 1


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


def ask(port, scenario):
    return GENERATORS[scenario.generator].ask(port, scenario)


def check(peer):
    """Refuses a peer that does not answer as it has to."""
    try:
        headers = ask(peer.port, peer.scenario)
    except Refused as refused:
        raise Refused(f"{peer.name}: {refused}") from refused
    missing = [name for name in peer.adds if not headers.get(name)]
    if missing:
        raise Refused(f"{peer.name} does not add {', '.join(missing)}")


def warm_up(peer, options):
    run(peer, options.connections, WARM_UP_SECONDS)


def measure(peer, options):
    before = processes.cpu_seconds(peer.pids), ours(), processes.busy_seconds(), time.monotonic()
    told = run(peer, options.connections, options.seconds)
    if not told["requests"]:
        raise Refused(f"{peer.name}, {peer.scenario.name}: no answer in {options.seconds} s; try more --seconds")
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


def run(peer, connections, seconds):
    try:
        return GENERATORS[peer.scenario.generator].run(peer.port, peer.scenario, connections, seconds)
    except Refused as refused:
        raise Refused(f"{peer.name}, {peer.scenario.name}: {refused}") from refused


def ours():
    """CPU seconds of this process and of those that it ran and waited for; the upstream is neither."""
    return sum(os.times()[:4])
