"""The proxies, each set up to do the same.

Each takes any number of requests on a connection, keeps connections to the upstream, adds X-Forwarded-For, -Proto,
-Host and -Port, X-Real-IP, traceparent, X-Request-Id and Via to the request and the last two to the response, streams
bodies both ways, counts what it does, and writes no access log. TLS is 1.3, and the client chooses the cipher.
"""

import dataclasses
from contextlib import ExitStack, contextmanager

import machine
import nginx
import optional
import servers

# To the response, by every peer that reads it and is not told to leave it out.
ADDED = ("x-request-id", "via")

NGINX = """
    upstream origin {{
        server 127.0.0.1:{upstream_port};
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    {names}
    server {{
        listen 127.0.0.1:{port} {listen};
        {server_name}
        {certificate}
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection {connection};
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
            # Always: also to a 101.
            add_header X-Request-Id $request_id always;
            add_header Via "1.1 nginx" always;
            # With the default of 8 x 4 KiB, 100 KB go through a file.
            proxy_buffers 16 16k;
            # With the default of 16 KiB, an upload costs half as much again.
            client_body_buffer_size 128k;
            proxy_request_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
"""

NGINX_NAMES = """
    server_names_hash_max_size 1048576;
    server_names_hash_bucket_size 128;
    server {{ listen 127.0.0.1:{port} backlog=4096 default_server; return 404; }}
"""

NGINX_TLS = """
        ssl_protocols TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
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
    timeout client 1h
    timeout server 1h

frontend clients
    bind 127.0.0.1:{port} backlog 4096 {bind}
    {frontend}

backend origin
    {backend}
    server origin 127.0.0.1:{upstream_port}
"""

HAPROXY_HTTP_FRONTEND = """
    option forwardfor
    unique-id-format %[uuid()]
    unique-id-header X-Request-Id
    http-request set-header X-Forwarded-Proto {scheme}
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
listeners: {{ {listeners} }}
tls: {{ certificates: [{certificates}] }}
admin: {{ socket: {folder}/admin.sock }}
data_dir: {folder}/data
runtime: process
workers: 1
access_log: off
limits: {{ connections_per_client: 0, keep_alive: 1h }}
services:
  origin:
    upstreams: ['http://127.0.0.1:{upstream_port}']
    hosts: [{hosts}]
"""


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
    port = servers.free_port()
    command = (PEERS | PARTS)[name](scenario, folder, port, upstream_port, binary, single_process)
    scenario = as_answered_by(name, scenario)
    adds = tuple(field for field in ADDED if field not in adds_not(name, scenario))
    with servers.running(name, [*around, *command], scenario, folder, port, machine.PROXY_CORE, adds) as peer:
        yield peer


def as_answered_by(name, scenario):
    """Some choose the cipher themselves; that is told with the figures, not refused."""
    chosen = name in optional.PEERS and optional.PEERS[name].cipher
    return dataclasses.replace(scenario, cipher=chosen) if chosen else scenario


def adds_not(name, scenario):
    if name in optional.PEERS:
        # To a 101 not all of them add what they add to other answers.
        return ADDED if scenario.websocket else optional.PEERS[name].adds_not
    return ADDED if name in ("relay", "no-ids") else ()


def able(names, scenario):
    """Those that can serve it: a relay of bytes makes no HTTP/1.1 of HTTP/2, and some of the optional lack more."""
    return [
        name for name in names
        if not (name == "relay" and scenario.http2)
        and not (name in optional.PEERS and scenario.name in optional.PEERS[name].cannot)
    ]


def lockgate(scenario, folder, port, upstream_port, binary, _single_process):
    listeners, certificates = f"http: {{ address: '127.0.0.1:{port}' }}", ""
    if scenario.tls:
        # The listener without TLS is always there.
        listeners = f"http: {{ address: '127.0.0.1:{servers.free_port()}' }}, https: {{ address: '127.0.0.1:{port}' }}"
        certificates = f"{{ cert: {scenario.certificate}, key: {scenario.certificate} }}"
    # Alone in its folder: what else changes there would have it read again.
    config = folder / "config" / "lockgate.yaml"
    config.parent.mkdir()
    config.write_text(LOCKGATE.format(
        folder=folder, upstream_port=upstream_port, listeners=listeners, certificates=certificates,
        hosts=",".join(scenario.host_names() or ["'*'"]),
    ))
    return [binary, "serve", "--config", config]


def nginx_proxy(scenario, folder, port, upstream_port, _binary, single_process):
    names = scenario.host_names()
    # With names the address is given twice, and its options may be only once.
    listen = ("" if names else "backlog=4096 default_server") + (" ssl http2" if scenario.tls else "")
    section = NGINX.format(
        port=port,
        upstream_port=upstream_port,
        listen=listen,
        names=NGINX_NAMES.format(port=port) if names else "",
        server_name=f"server_name {' '.join(names)};" if names else "",
        certificate=NGINX_TLS.format(certificate=scenario.certificate) if scenario.tls else "",
        connection="upgrade; proxy_set_header Upgrade $http_upgrade" if scenario.websocket else '""',
    )
    return nginx.command(scenario, folder, section, single_process)


def haproxy(scenario, folder, port, upstream_port, _binary, _single_process):
    names = scenario.host_names()
    route = "default_backend origin"
    if names:
        table = folder / "hosts.map"
        table.write_text("".join(f"{name} origin\n" for name in names))
        route = f"use_backend %[req.hdr(host),lower,map_str({table},none)]"
    frontend = HAPROXY_HTTP_FRONTEND.format(route=route, scheme="https" if scenario.tls else "http")
    return haproxy_command(
        scenario, folder, port=port, upstream_port=upstream_port, mode="http",
        bind=haproxy_tls(scenario, "h2,http/1.1"), frontend=frontend, backend="http-reuse always",
    )


def relay(scenario, folder, port, upstream_port, _binary, _single_process):
    """Moves bytes and reads none of them: about the least that a proxy can cost."""
    return haproxy_command(
        scenario, folder, port=port, upstream_port=upstream_port, mode="tcp", bind=haproxy_tls(scenario, "http/1.1"),
        frontend="default_backend origin", backend="",
    )


def haproxy_tls(scenario, protocols):
    if not scenario.tls:
        return ""
    return f"ssl crt {scenario.certificate} alpn {protocols} ssl-min-ver TLSv1.3 prefer-client-ciphers"


def haproxy_command(scenario, folder, **parts):
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(folder=folder, connections=scenario.connections_max, **parts))
    return [machine.tool("haproxy"), "-db", "-f", config]


def without(sabotage):
    """Lockgate, with something left out that all builds do."""
    def peer(*place):
        return ["env", f"LOCKGATE_SABOTAGE={sabotage}", *lockgate(*place)]
    return peer


def logging(scenario, folder, port, upstream_port, binary, single_process):
    command = lockgate(scenario, folder, port, upstream_port, binary, single_process)
    config = folder / "config" / "lockgate.yaml"
    config.write_text(config.read_text().replace("access_log: off", f"access_log: {{ file: {folder}/access.log }}"))
    return command


PEERS = {"lockgate": lockgate, "nginx": nginx_proxy, "haproxy": haproxy, "relay": relay} | {
    name: peer.command for name, peer in optional.PEERS.items()
}
# What parts cost, of a build with the feature `fault`.
PARTS = {
    "no-gate": without("no_gate"),
    "no-metrics": without("no_metrics"),
    "no-ids": without("no_ids"),
    "no-forwarded": without("no_forwarded"),
    "access-log": logging,
}
