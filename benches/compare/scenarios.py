"""What is asked of the proxies."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

HOSTS = 100_000
MIB = 1024 * 1024


@dataclass(frozen=True)
class Scenario:
    name: str
    # What it asks, in a few words.
    about: str
    body_bytes: int
    # Each request on a connection of its own.
    closes: bool = False
    # Host names in the route table, all of them asked for in turn; 0: one route for any name.
    hosts: int = 0
    # Sent with each request, and answered with how many they were.
    upload_bytes: int = 0
    # Clients speak TLS 1.3; the upstream is plain HTTP/1.1 all the same.
    tls: bool = False
    http2: bool = False
    # What OpenSSL's clients prefer and wrk therefore asks for first; a server that chooses another one does not do the
    # same work as the others.
    cipher: str = "TLS_AES_256_GCM_SHA384"
    # Messages to an echo, instead of requests.
    websocket: bool = False
    # What a proxy must be able to hold.
    connections_max: int = 4096
    # Made for each run that has TLS: the chain and its key, in one file.
    certificate: Path = None

    @property
    def path(self):
        if self.websocket:
            return "/ws"
        return "/upload" if self.upload_bytes else f"/{self.body_bytes}"

    @property
    def method(self):
        return "POST" if self.upload_bytes else "GET"

    @property
    def body(self):
        """What has to be answered."""
        return str(self.upload_bytes).encode() if self.upload_bytes else b"x" * self.body_bytes

    @property
    def generator(self):
        """What puts the load on."""
        if self.websocket:
            return "echo"
        return "h2load" if self.http2 else "wrk"

    @property
    def is_counted(self):
        """Whether --instructions can send it: many requests of it, one by one, and under callgrind."""
        return self.generator == "wrk" and not self.upload_bytes

    def of_upstream(self):
        """As the upstream is asked."""
        return dataclasses.replace(self, tls=False, http2=False)

    def host_names(self):
        """Short, because Lockgate reads a configuration of at most 1 MiB."""
        return [f"h{number:05}.t" for number in range(self.hosts)]

    @property
    def a_host(self):
        return self.host_names()[-1] if self.hosts else "compare.test"


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("small", "100 bytes, on kept connections", 100),
        Scenario("1k", "1 KiB", 1024),
        Scenario("100k", "100 KiB", 100 * 1024),
        Scenario("upload", "a POST of 1 MiB, answered when all of it was read", len(str(MIB)), upload_bytes=MIB),
        Scenario("close", "100 bytes, each on a connection of its own", 100, closes=True),
        Scenario("hosts", f"100 bytes, of {HOSTS:,} host names in turn", 100, hosts=HOSTS),
        Scenario("tlsh1", "100 bytes by HTTP/1.1 over TLS 1.3", 100, tls=True),
        Scenario("h2", "the same by HTTP/2, 16 connections with 16 streams each", 100, tls=True, http2=True),
        Scenario("ws", "a WebSocket message of 64 bytes, and its echo", 64, websocket=True),
    ]
}
