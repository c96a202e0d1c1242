"""The proxies, each set up to do the same.

Each takes any number of requests on a connection, keeps connections to the upstream, adds X-Forwarded-For, -Proto,
-Host and -Port, X-Real-IP, traceparent, X-Request-Id and Via to the request and the last two to the response, counts
what it does, and writes no access log.
"""

import http.client
import os
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import machine
import processes

PROXY_CORE = 0
LOAD_CORE = 1

NGINX_COMMON = """
{user}
daemon off;
master_process {master};
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {section}
}}
"""

NGINX_UPSTREAM = """
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/files; }}
"""

NGINX_PROXY = """
    upstream origin {{
        server 127.0.0.1:{upstream_port};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    {names}
    server {{
        listen 127.0.0.1:{port} backlog=4096 {default};
        {server_name}
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header Via "1.1 nginx";
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Request-Id $request_id;
            # Half of it fixed: there is no second random number to be had.
            proxy_set_header traceparent 00-$request_id-00f067aa0ba902b7-00;
            add_header X-Request-Id $request_id;
            add_header Via "1.1 nginx";
            # With the default of 8 x 4 KiB, 100 KB go through a file.
            proxy_buffers 16 16k;
        }}
    }}
"""

NGINX_NAMES = """
    server_names_hash_max_size 1048576;
    server_names_hash_bucket_size 128;
    server {{ listen 127.0.0.1:{port} backlog=4096 default_server; return 404; }}
"""

HAPROXY = """
global
    nbthread 1
    maxconn {connections}
    # As many as there are file descriptors for, if that is less.
    no strict-limits
    stats socket {folder}/haproxy.sock

defaults
    mode {mode}
    maxconn {connections}
    timeout connect 5s
    timeout client 60s
    timeout server 60s

frontend clients
    bind 127.0.0.1:{port} backlog 4096
    {frontend}

backend origin
    {backend}
    server origin 127.0.0.1:{upstream_port}
"""

HAPROXY_HTTP_FRONTEND = """
    option forwardfor
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    http-request set-header X-Real-IP %[src]
    # Half of it fixed, as nginx's.
    http-request set-header traceparent 00-4bf92f3577b34da6a3ce929d0e0e4736-%[rand,hex]%[rand,hex]-00
    http-request set-header Via "1.1 haproxy"
    http-response set-header X-Request-Id %[unique-id]
    http-response set-header Via "1.1 haproxy"
    {route}
"""

LOCKGATE = """
listeners: {{ http: {{ address: '127.0.0.1:{port}' }} }}
admin: {{ socket: {folder}/admin.sock }}
data_dir: {folder}/data
runtime: process
workers: 1
access_log: off
limits: {{ connections_per_client: 0 }}
services:
  origin:
    upstreams: ['http://127.0.0.1:{upstream_port}']
    hosts: [{hosts}]
"""


@dataclass
class Peer:
    name: str
    port: int
    pids: list
    process: object


@contextmanager
def upstream(scenario, folder):
    """Serves the scenario's body on the load's core."""
    place = folder / "upstream"
    files = place / "files"
    files.mkdir(parents=True)
    (files / scenario.path.lstrip("/")).write_bytes(b"x" * scenario.body_bytes)
    port = free_port()
    section = NGINX_UPSTREAM.format(port=port, folder=place)
    with running("upstream", nginx_command(scenario, place, section), scenario, place, port, LOAD_CORE):
        yield port


@contextmanager
def all_of(names, scenario, folder, binary, upstream_port):
    """Starts the peers of that name; idle ones cost the busy one nothing."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(one(name, scenario, folder / name, binary, upstream_port)) for name in names
        }


@contextmanager
def one(name, scenario, folder, binary, upstream_port, around=(), single_process=False):
    """Starts one peer, as an argument of the command `around` if there is one."""
    folder.mkdir(parents=True)
    port = free_port()
    command = PEERS[name](scenario, folder, port, upstream_port, binary, single_process)
    with running(name, [*around, *command], scenario, folder, port, PROXY_CORE) as peer:
        yield peer


@contextmanager
def running(name, command, scenario, folder, port, core):
    log = folder / "log"
    with processes.started(command, core, log) as process:
        processes.wait_until(lambda: answers(scenario, port), process, log)
        yield Peer(name, port, processes.group_of(process), process)


def lockgate(scenario, folder, port, upstream_port, binary, _single_process):
    hosts = ",".join(scenario.host_names() or ["'*'"])
    config = folder / "lockgate.yaml"
    config.write_text(LOCKGATE.format(port=port, folder=folder, upstream_port=upstream_port, hosts=hosts))
    return [binary, "serve", "--config", config]


def nginx(scenario, folder, port, upstream_port, _binary, single_process):
    names = scenario.host_names()
    section = NGINX_PROXY.format(
        port=port,
        upstream_port=upstream_port,
        names=NGINX_NAMES.format(port=port) if names else "",
        default="" if names else "default_server",
        server_name=f"server_name {' '.join(names)};" if names else "",
    )
    # The address is given twice then, and its options may be only once.
    if names:
        section = section.replace(f"listen 127.0.0.1:{port} backlog=4096 ;", f"listen 127.0.0.1:{port};")
    return nginx_command(scenario, folder, section, single_process)


def nginx_command(scenario, folder, section, single_process=False):
    config = folder / "nginx.conf"
    # Started by root it would serve as a user who may not read our files.
    user = "user root;" if os.getuid() == 0 else ""
    master = "off" if single_process else "on"
    config.write_text(NGINX_COMMON.format(
        folder=folder, section=section, master=master, user=user, connections=scenario.connections_max
    ))
    return [machine.tool("nginx"), "-p", folder, "-e", "stderr", "-c", config]


def haproxy(scenario, folder, port, upstream_port, _binary, _single_process):
    names = scenario.host_names()
    route = "default_backend origin"
    if names:
        table = folder / "hosts.map"
        table.write_text("".join(f"{name} origin\n" for name in names))
        route = f"use_backend %[req.hdr(host),lower,map_str({table},none)]"
    return haproxy_command(
        scenario, folder, port=port, upstream_port=upstream_port, mode="http",
        frontend=HAPROXY_HTTP_FRONTEND.format(route=route), backend="http-reuse always",
    )


def relay(scenario, folder, port, upstream_port, _binary, _single_process):
    """Moves bytes and reads none of them: about the least that a proxy can cost."""
    return haproxy_command(
        scenario, folder, port=port, upstream_port=upstream_port, mode="tcp", frontend="default_backend origin", backend="",
    )


def haproxy_command(scenario, folder, **parts):
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(folder=folder, connections=scenario.connections_max, **parts))
    return [machine.tool("haproxy"), "-db", "-f", config]


PEERS = {"lockgate": lockgate, "nginx": nginx, "haproxy": haproxy, "relay": relay}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(scenario, port):
    """Whether it serves: listening is not enough, routes may come later."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", scenario.path, headers={"Host": scenario.a_host})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
