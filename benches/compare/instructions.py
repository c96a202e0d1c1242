"""Instructions in user space for each request: the same number on every run, or nearly.

Where perf can count (seldom in a virtual machine) it watches the peer. Elsewhere the peer runs under callgrind, twice
with different numbers of requests: what the difference costs is the requests', and what both cost is the start's.
"""

import re
import select
import signal
import subprocess
import sys

import client
import load
import machine
import peers
import processes
import upstreams
from errors import Refused

FEW = 2_000
# Far more: what a start costs is not always the same.
MANY = 18_000
AT_ONCE = 16


def measure(scenario, folder, binary, options):
    """Peer → instructions for each request."""
    by_perf = machine.perf_counts()
    counts = {}
    for name in options.peers:
        with upstreams.serving(scenario, folder / name / "origin", binary) as upstream_port:
            place = folder / name
            if by_perf:
                counts[name] = of_perf(name, scenario, place, binary, upstream_port)
            else:
                few, many = (
                    of_callgrind(name, scenario, place / str(requests), binary, upstream_port, requests)
                    for requests in (FEW, MANY)
                )
                counts[name] = (many - few) / (MANY - FEW)
        print(f"{scenario.name}: {name} {counts[name]:.0f}", file=sys.stderr, flush=True)
    return counts


def of_perf(name, scenario, folder, binary, upstream_port, event="instructions:u"):
    with peers.one(name, scenario, folder / "peer", binary, upstream_port) as peer:
        load.check(peer)
        send(peer.port, scenario, FEW)
        pids = ",".join(map(str, peer.pids))
        watch = subprocess.Popen(
            [machine.tool("perf"), "stat", "-x,", "-e", event, "-p", pids], stderr=subprocess.PIPE, text=True
        )
        try:
            # It says nothing when it has begun; what it misses is a few of many.
            select.select([], [], [], 0.5)
            send(peer.port, scenario, MANY)
            watch.send_signal(signal.SIGINT)
            told = watch.communicate(timeout=30)[1]
        finally:
            watch.kill()
            watch.wait()
    counted = re.search(r"^([0-9.]+),", told, re.MULTILINE)
    if not counted:
        raise Refused(f"perf counted nothing: {told}")
    return float(counted[1]) / (MANY)


def of_callgrind(name, scenario, folder, binary, upstream_port, requests):
    folder.mkdir(parents=True)
    log = folder / "callgrind.log"
    around = [machine.tool("valgrind"), "--tool=callgrind", f"--log-file={log}",
              f"--callgrind-out-file={folder}/callgrind.out"]
    with peers.one(name, scenario, folder / "peer", binary, upstream_port, around, single_process=True) as peer:
        load.check(peer)
        send(peer.port, scenario, requests)
        processes.stop(peer.process)
    counted = re.search(r"Collected\s*:\s*([0-9]+)", log.read_text())
    if not counted:
        raise Refused(f"callgrind counted nothing:\n{log.read_text()[-2000:]}")
    return int(counted[1])


def send(port, scenario, requests):
    """Sends that many, `AT_ONCE` connections together, and reads every answer whole."""
    names = scenario.host_names() or [scenario.a_host]
    connections = []
    try:
        for start in range(0, requests, AT_ONCE):
            while len(connections) < AT_ONCE:
                connections.append(client.connect(port, scenario))
            for at, connection in enumerate(connections):
                connection.sendall(client.request(scenario, names[(start + at) * 61803 % len(names)]))
            for connection in connections:
                client.receive(connection, scenario)
            if scenario.closes:
                while connections:
                    connections.pop().close()
    finally:
        for connection in connections:
            connection.close()
