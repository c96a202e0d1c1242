"""Load by HTTP/1.1."""

import json
from pathlib import Path

import client
import machine
import processes
from errors import Refused

SCRIPT = Path(__file__).with_name("load.lua")

ask = client.ask_twice


def run(port, scenario, connections, seconds):
    """What load.lua tells at the end; refuses if any answer was wrong."""
    # What is late on a busy machine is a latency, not an error.
    command = [machine.tool("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", SCRIPT,
               "-H", f"Host: {scenario.a_host}"]
    if scenario.closes:
        command += ["-H", "Connection: close"]
    scheme = "https" if scenario.tls else "http"
    command += [f"{scheme}://127.0.0.1:{port}{scenario.path}", "--", scenario.hosts, scenario.upload_bytes]
    printed = processes.output(command, machine.LOAD_CORE)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise Refused(f"wrk told nothing:\n{printed}")
    told = json.loads(lines[-1])
    failed = {name: count for name, count in told["errors"].items() if count}
    if failed:
        raise Refused(f"not every answer came, or was 2xx: {failed}")
    if told["bytes"] < told["requests"] * scenario.body_bytes:
        raise Refused(f"{told['bytes']} bytes in {told['requests']} answers")
    return told
