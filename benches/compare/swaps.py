"""What a swap costs where users see it: a way back to a warm version, and a restart."""

import http.client
import json
import socket
import threading
import time

import client
import machine
import peers
import processes
import servers
import upstreams
from errors import Refused
from scenarios import Scenario

ROUTES = 10_000
ROLLBACKS = 20
RESTARTS = 10
CLIENTS = 8
HOST = "web.test"
# What the clients go on asking after an answer of the admin API.
AFTER_SECONDS = 0.2

CONFIG = """
listeners: {{ http: {{ address: '127.0.0.1:{port}' }} }}
admin: {{ socket: {folder}/admin.sock }}
data_dir: {folder}/data
runtime: process
access_log: off
limits: {{ connections_per_client: 0 }}
apps:
  web:
    hosts: [{host}]
    command: ['{binary}', sample-app]
    health: {{ path: /health }}
    deploy: {{ watch: 0s, standby_after: 1h }}
"""


class Admin(http.client.HTTPConnection):
    """The admin API, by its socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self.path))

    def post(self, path, body):
        self.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        told = answer.read().decode(errors="replace")
        if answer.status >= 300:
            raise Refused(f"POST {path}: {answer.status} {told}")
        return json.loads(told)


def measure(folder, binary, _options):
    """What was measured → milliseconds, one for each round."""
    last_wrong, answered = rollbacks(folder / "rollback", binary)
    return {
        f"from the call of a rollback to the last request that the wrong version got ({CLIENTS} clients)": last_wrong,
        "from the call of a rollback to its answer": answered,
        f"from the start of the process to the first request, with {ROUTES:,} host names": restarts(folder, binary),
    }


def rollbacks(folder, binary):
    folder.mkdir()
    port = servers.free_port()
    config = folder / "lockgate.yaml"
    config.write_text(CONFIG.format(port=port, folder=folder, binary=binary.resolve(), host=HOST))
    with processes.started([binary, "serve", "--config", config], machine.PROXY_CORE, folder / "log") as process:
        processes.wait_until(lambda: takes_calls(folder / "admin.sock"), process, folder / "log")
        admin = Admin(folder / "admin.sock")
        one, two = (
            admin.post("/v1/apps/web/deployments?wait=true", {"env": {"VERSION": version}, "force": True})["deployment"]
            for version in ("one", "two")
        )
        try:
            # There and back: without a target the second one would look for what was live before both.
            return zip(*[rollback(admin, port, (one, two)[number % 2]) for number in range(ROLLBACKS)])
        finally:
            admin.post("/v1/apps/web/disable?wait=end", {})


def takes_calls(path):
    """Whether it is through with its start; it serves requests before."""
    admin = Admin(path)
    try:
        admin.request("GET", "/readyz")
        return admin.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        admin.close()


def rollback(admin, port, target):
    asked, over = [], threading.Event()
    clients = [threading.Thread(target=ask, args=(port, asked, over)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        time.sleep(AFTER_SECONDS)
        called = time.monotonic()
        admin.post("/v1/apps/web/rollback?wait=true", {"target": target})
        answered = time.monotonic()
        time.sleep(AFTER_SECONDS)
    finally:
        over.set()
        for client in clients:
            client.join()
    asked.sort()
    wrong, right = asked[0][1], asked[-1][1]
    if wrong == right or len({version for _, version in asked}) != 2:
        raise Refused("the rollback did not lead from one version to the other")
    last = max(begun for begun, version in asked if version == wrong)
    return max(0.0, last - called) * 1000, (answered - called) * 1000


def ask(port, asked, over):
    """Asks on one connection until it is over, and notes when each request began and who answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while not over.is_set():
        begun = time.monotonic()
        connection.request("GET", "/", headers={"Host": HOST})
        answer = connection.getresponse()
        answer.read()
        asked.append((begun, answer.headers["x-version"]))
    connection.close()


def restarts(folder, binary):
    scenario = Scenario("restart", "the first request after a start", 100, hosts=ROUTES)
    with upstreams.serving(scenario, folder, binary) as upstream_port:
        place = folder / "restart"
        place.mkdir()
        port = servers.free_port()
        command = peers.lockgate(scenario, place, port, upstream_port, binary, False)
        return [restart(command, scenario, place, port) for _ in range(RESTARTS)]


def restart(command, scenario, folder, port):
    log = folder / "log"
    began = time.monotonic()
    with processes.started(command, machine.PROXY_CORE, log) as process:
        connection = first_connection(port, scenario, process, log)
        with connection:
            connection.sendall(client.request(scenario, scenario.a_host))
            client.receive(connection, scenario)
        took = time.monotonic() - began
        # As a crash would: the next start finds what this one left.
        process.kill()
        process.wait()
    return took * 1000


def first_connection(port, scenario, process, log):
    found = []

    def connects():
        try:
            found.append(client.connect(port, scenario))
        except ConnectionRefusedError:
            return False
        return True

    processes.wait_until(connects, process, log, pause=0.001)
    return found[0]
