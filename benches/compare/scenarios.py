"""What is asked of the proxies."""

from dataclasses import dataclass

HOSTS = 100_000


@dataclass(frozen=True)
class Scenario:
    name: str
    body_bytes: int
    # Each request on a connection of its own.
    closes: bool = False
    # Host names in the route table, all of them asked for in turn; 0: one route for any name.
    hosts: int = 0
    # What a proxy must be able to hold.
    connections_max: int = 4096

    @property
    def path(self):
        return f"/{self.body_bytes}"

    def host_names(self):
        """Short, because Lockgate reads a configuration of at most 1 MiB."""
        return [f"h{number:05}.t" for number in range(self.hosts)]

    @property
    def a_host(self):
        return self.host_names()[-1] if self.hosts else "compare.test"


SCENARIOS = {
    scenario.name: scenario
    for scenario in [
        Scenario("small", 100),
        Scenario("1k", 1024),
        Scenario("100k", 100 * 1024),
        Scenario("close", 100, closes=True),
        Scenario("hosts", 100, hosts=HOSTS),
    ]
}
