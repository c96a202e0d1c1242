"""Resident memory: of a proxy that has nothing to do, and of one that many clients keep connections to."""

import dataclasses
import resource
import select
import sys
import time
from contextlib import ExitStack

import certificate
import client
import load
import peers
import processes
import upstreams
import websocket
from errors import Refused
from scenarios import SCENARIOS

KINDS = {"connections": SCENARIOS["small"], "TLS connections": SCENARIOS["tlsh1"], "WebSockets": SCENARIOS["ws"]}
# Lockgate gives up what a connection without requests needs for one, and its allocator what that leaves, within six.
SETTLE_SECONDS = 8


def measure(folder, binary, options):
    """Kind and peer → MiB when idle, and with `options.kept` connections."""
    kinds = {kind: scenario for kind, scenario in KINDS.items() if options.websockets or not scenario.websocket}
    # A proxy has two for each WebSocket, and some of its own.
    allow_files(options.kept * (2 if options.websockets else 1) + 200)
    measured = {}
    for kind, scenario in kinds.items():
        place = folder / scenario.name
        place.mkdir()
        roomy = dataclasses.replace(scenario, connections_max=options.kept * 5 // 4)
        scenario = certificate.given_to(roomy, folder)
        with upstreams.serving(scenario, place, binary) as upstream_port:
            for name in peers.able(options.peers, scenario):
                with peers.one(name, scenario, place / name, binary, upstream_port) as peer:
                    idle, kept = measured[kind, name] = of_one(peer, options.kept)
                print(f"{kind}: {name} {idle:.1f}, {kept:.1f} MiB", file=sys.stderr, flush=True)
    return measured


def allow_files(wanted):
    """File descriptors for us and for all that we start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Refused(f"needs {wanted} file descriptors, and may have {hard}: raise `ulimit -Hn` or lower --kept")
    # Twice that, where it may be had: a proxy may use no more than a part of them for clients.
    soft = wanted * 2 if hard == resource.RLIM_INFINITY else min(wanted * 2, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def of_one(peer, kept):
    load.check(peer)
    time.sleep(SETTLE_SECONDS)
    idle = processes.resident_mib(peer.pids)
    with ExitStack() as stack:
        connections = [stack.enter_context(used_once(peer.port, peer.scenario)) for _ in range(kept)]
        time.sleep(SETTLE_SECONDS)
        resident = processes.resident_mib(peer.pids)
        refuse_ended(peer, connections)
    return idle, resident


def used_once(port, scenario):
    if scenario.websocket:
        connection, _ = websocket.opened(port, scenario)
        websocket.exchange(connection, b"x" * scenario.body_bytes)
        return connection
    connection = client.connect(port, scenario)
    connection.sendall(client.request(scenario, scenario.a_host))
    client.receive(connection, scenario)
    return connection


def refuse_ended(peer, connections):
    """Nothing is to come on any of them but an end."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ended = len(poll.poll(0))
    if ended:
        raise Refused(f"{peer.name} did not keep {ended} of {len(connections)} connections")
