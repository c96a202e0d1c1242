"""Load by WebSockets: on each, one message after the other, and every echo compared.

As a program, `echo.py PORT CONNECTIONS SECONDS`, it puts the load on and prints what it saw: one line of JSON.
"""

import json
import selectors
import sys
import time

import latencies
import machine
import processes
import websocket
from errors import Refused
from scenarios import SCENARIOS

PATIENCE_SECONDS = 10
SCENARIO = SCENARIOS["ws"]
# Different ones, so that an old one that comes again is seen.
MESSAGES = [f"{number:0{SCENARIO.body_bytes}}".encode() for number in range(251)]
PAIRS = [(websocket.frame(message), websocket.echo(message)) for message in MESSAGES]


def ask(port, scenario):
    """The header fields of the handshake's answer; refuses what is not echoed."""
    try:
        connection, headers = websocket.opened(port, scenario)
        with connection:
            for message in MESSAGES[:2]:
                websocket.exchange(connection, message)
        return headers
    except OSError as error:
        raise Refused(f"{scenario.name} is not answered: {error}") from error


def run(port, _scenario, connections, seconds):
    return json.loads(processes.output([sys.executable, "-B", __file__, port, connections, seconds], machine.LOAD_CORE))


class Conversation:
    """One WebSocket, with one message under way at any time."""

    def __init__(self, connection, number):
        self.connection = connection
        self.connection.setblocking(False)
        self.at = number % len(PAIRS)
        self.received = b""
        self.sent_ns = None

    def send(self):
        self.at = (self.at + 1) % len(PAIRS)
        self.received = b""
        self.sent_ns = time.perf_counter_ns()
        # The socket has room: nothing else is under way.
        self.connection.sendall(PAIRS[self.at][0])

    def receive(self):
        """The microseconds that the echo took; `None` if there is more to come."""
        more = self.connection.recv(4096)
        if not more:
            raise Refused("a WebSocket ended")
        self.received += more
        expected = PAIRS[self.at][1]
        if self.received == expected:
            return (time.perf_counter_ns() - self.sent_ns) // 1000
        if not expected.startswith(self.received):
            raise Refused(f"the echo of a message is {self.received!r}, not {expected!r}")
        return None


def converse(port, connections, seconds):
    """Keeps all of them busy, and waits for the last echo of each."""
    selector = selectors.DefaultSelector()
    conversations = [Conversation(websocket.opened(port, SCENARIO)[0], number) for number in range(connections)]
    for conversation in conversations:
        selector.register(conversation.connection, selectors.EVENT_READ, conversation)
    began, took = time.monotonic(), []
    for conversation in conversations:
        conversation.send()
    busy = connections
    while busy:
        ready = selector.select(PATIENCE_SECONDS)
        if not ready:
            raise Refused(f"{busy} echoes did not come within {PATIENCE_SECONDS} s")
        is_over = time.monotonic() - began >= seconds
        for key, _ in ready:
            micros = key.data.receive()
            if micros is None:
                continue
            took.append(micros)
            if is_over:
                busy -= 1
            else:
                key.data.send()
    duration_us = int((time.monotonic() - began) * 1e6)
    for conversation in conversations:
        conversation.connection.close()
    return {"requests": len(took), "duration_us": duration_us, **latencies.percentiles(took)}


if __name__ == "__main__":
    try:
        print(json.dumps(converse(*map(int, sys.argv[1:]))))
    except (Refused, OSError) as error:
        sys.exit(f"error: {error}")
