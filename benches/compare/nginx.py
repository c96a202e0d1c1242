"""What nginx needs to run, as a proxy and as an upstream."""

import os

import machine

CONFIG = """
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
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {section}
}}
"""


def command(scenario, folder, section, single_process=False):
    config = folder / "nginx.conf"
    # Started by root it would serve as a user who may not read our files.
    user = "user root;" if os.getuid() == 0 else ""
    master = "off" if single_process else "on"
    # A WebSocket has one to the upstream as well, and both count here.
    connections = scenario.connections_max * (2 if scenario.websocket else 1)
    config.write_text(CONFIG.format(folder=folder, section=section, master=master, user=user, connections=connections))
    return [machine.tool("nginx"), "-p", folder, "-e", "stderr", "-c", config]
