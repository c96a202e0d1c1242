"""A server of any kind, once it answers."""

import socket
from contextlib import contextmanager
from dataclasses import dataclass

import load
import processes


@dataclass
class Server:
    name: str
    port: int
    pids: list
    process: object
    # As it is asked.
    scenario: object
    # Header fields that its answers must have.
    adds: tuple


@contextmanager
def running(name, command, scenario, folder, port, core, adds=()):
    log = folder / "log"
    with processes.started(command, core, log) as process:
        # Listening is not enough, routes may come later.
        processes.wait_until(lambda: load.ask(port, scenario), process, log)
        yield Server(name, port, processes.group_of(process), process, scenario, adds)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
