"""Load by HTTP/2 over TLS."""

import re
import tempfile
from pathlib import Path

import latencies
import machine
import processes
from errors import Refused

CONNECTIONS = 16
STREAMS = 16
# What it has to have spoken. It prefers another cipher than wrk, and each server lets the client choose.
SPOKEN = ["TLS Protocol: TLSv1.3", "Cipher: TLS_AES_128_GCM_SHA256", "Application protocol: h2"]


def ask(port, scenario):
    """The header fields of an answer; refuses what is not answered as it has to be."""
    printed = h2load(port, scenario, ["-n2", "-c1", "-v"])
    if succeeded(printed) != 2 or data_bytes(printed) != 2 * scenario.body_bytes:
        raise Refused(f"{scenario.name} is not answered:\n{printed}")
    return dict(re.findall(r"^\[stream_id=[0-9]+\] ([^:\s]+): (.*)$", printed, re.MULTILINE))


def run(port, scenario, _connections, seconds):
    """Refuses if any answer was wrong. How many connections there are, the scenario says."""
    with tempfile.TemporaryDirectory(prefix="lockgate-compare-") as folder:
        log = Path(folder) / "log"
        printed = h2load(port, scenario, [f"-D{seconds}", f"-c{CONNECTIONS}", f"-m{STREAMS}", f"--log-file={log}"])
        answers = [line.split("\t") for line in log.read_text().splitlines()]
    requests = succeeded(printed)
    if any(status != "200" for _, status, _ in answers) or len(answers) != requests:
        raise Refused(f"not every answer came, or was 200:\n{printed}")
    if data_bytes(printed) < requests * scenario.body_bytes:
        raise Refused(f"{data_bytes(printed)} bytes in {requests} answers")
    return {
        "requests": requests,
        "duration_us": seconds * 1_000_000,
        **latencies.percentiles([int(took) for _, _, took in answers]),
    }


def h2load(port, scenario, arguments):
    command = [machine.tool("h2load"), "-t1", *arguments, f"--connect-to=127.0.0.1:{port}",
               f"https://{scenario.a_host}{scenario.path}"]
    printed = processes.output(command, machine.LOAD_CORE)
    missing = [spoken for spoken in SPOKEN if spoken not in printed]
    if missing:
        raise Refused(f"h2load did not say {', '.join(missing)}:\n{printed}")
    return printed


def succeeded(printed):
    """How many requests, if none of them did otherwise."""
    counts = re.search(r"([0-9]+) succeeded, 0 failed, 0 errored, 0 timeout", printed)
    return int(counts[1]) if counts else 0


def data_bytes(printed):
    counted = re.search(r"\(([0-9]+)\) data", printed)
    return int(counted[1]) if counted else 0
