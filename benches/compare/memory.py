"""Resident memory: of a proxy that has nothing to do, and of one that many clients keep connections to."""

import dataclasses
import resource
import sys
import time

import load
import peers
import processes
from errors import Refused
from scenarios import SCENARIOS

KEPT = 10_000
SETTLE_SECONDS = 1


def measure(folder, binary, options):
    """Peer → MiB when idle, and with `KEPT` connections."""
    allow_files(KEPT * 2)
    scenario = dataclasses.replace(SCENARIOS["small"], connections_max=KEPT * 5 // 4)
    measured = {}
    with peers.upstream(scenario, folder) as upstream_port:
        for name in options.peers:
            with peers.one(name, scenario, folder / name, binary, upstream_port) as peer:
                measured[name] = of_one(peer, scenario)
            print(f"{name}: {measured[name][0]:.1f}, {measured[name][1]:.1f} MiB", file=sys.stderr, flush=True)
    return measured


def allow_files(wanted):
    """File descriptors for us and for all that we start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Refused(f"needs {wanted} file descriptors, and may have {hard}: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def of_one(peer, scenario):
    load.check(peer, scenario)
    time.sleep(SETTLE_SECONDS)
    idle = processes.resident_mib(peer.pids)
    connections = []
    try:
        for _ in range(KEPT):
            connection = load.connect(peer.port)
            connections.append(connection)
            connection.sendall(load.request(scenario, scenario.a_host))
            load.receive(connection, scenario)
        time.sleep(SETTLE_SECONDS)
        return idle, processes.resident_mib(peer.pids)
    finally:
        for connection in connections:
            connection.close()
