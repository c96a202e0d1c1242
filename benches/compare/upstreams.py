"""What is behind the proxies, on the load's core and by plain HTTP/1.1: nginx, or for WebSockets the sample app."""

from contextlib import contextmanager

import machine
import nginx
import servers
import websocket

FILES = """
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/files; }}
"""

# The upper server reads a body to its end, into memory, before it asks the lower one, which answers how long it was.
UPLOADS = """
    upstream counted {{
        server unix:{folder}/counted;
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        client_body_buffer_size {upload_bytes};
        location / {{
            proxy_pass http://counted;
            proxy_http_version 1.1;
            proxy_method GET;
            proxy_pass_request_headers off;
            proxy_pass_request_body off;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header X-Counted $content_length;
        }}
    }}
    server {{ listen unix:{folder}/counted; location / {{ return 200 $http_x_counted; }} }}
"""


@contextmanager
def serving(scenario, folder, binary):
    """Yields the port."""
    scenario = scenario.of_upstream()
    place = folder / "upstream"
    place.mkdir(parents=True)
    port = servers.free_port()
    command = sample_app(port, binary) if scenario.websocket else of_nginx(scenario, place, port)
    with servers.running("upstream", command, scenario, place, port, machine.LOAD_CORE):
        yield port


def sample_app(port, binary):
    return [binary, "sample-app", "--host", "127.0.0.1", "--port", port, "--version", websocket.VERSION.decode()]


def of_nginx(scenario, folder, port):
    if scenario.upload_bytes:
        section = UPLOADS.format(port=port, folder=folder, upload_bytes=scenario.upload_bytes)
    else:
        section = FILES.format(port=port, folder=folder)
        files = folder / "files"
        files.mkdir()
        (files / scenario.path.lstrip("/")).write_bytes(scenario.body)
    return nginx.command(scenario, folder, section)
