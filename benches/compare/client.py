"""Requests by HTTP/1.1, sent by ourselves, where load is not the point."""

import functools
import http.client
import socket
import ssl

from errors import Refused


def connect(port, scenario):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    if not scenario.tls:
        return connection
    secured = trust(scenario.certificate).wrap_socket(connection, server_hostname=scenario.a_host)
    if secured.cipher()[0] != scenario.cipher:
        raise Refused(f"{scenario.name} is encrypted by {secured.cipher()[0]}, not by {scenario.cipher}")
    return secured


@functools.cache
def trust(certificate):
    context = ssl.create_default_context(cafile=certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def request(scenario, host):
    ending = "Connection: close\r\n" if scenario.closes else ""
    return f"GET {scenario.path} HTTP/1.1\r\nHost: {host}\r\n{ending}\r\n".encode()


def receive(connection, scenario):
    received = b""
    while (end := received.find(b"\r\n\r\n")) < 0 or len(received) < end + 4 + scenario.body_bytes:
        more = connection.recv(256 * 1024)
        if not more:
            raise Refused(f"an answer of {scenario.name} ended after {len(received)} bytes")
        received += more
    if not received.startswith(b"HTTP/1.1 200 "):
        raise Refused(f"an answer of {scenario.name} was {received[:40]!r}")


def ask_twice(port, scenario):
    """The header fields of the second answer on a connection; refuses what is not answered as it has to be."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.sock = connect(port, scenario)
        for _ in range(2):
            upload = b"x" * scenario.upload_bytes or None
            connection.request(scenario.method, scenario.path, upload, {"Host": scenario.a_host})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or body != scenario.body:
                told = f"{response.status} and {len(body)} bytes: {body[:40]!r}"
                raise Refused(f"{scenario.name} is answered with {told}")
        return response.headers
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{scenario.name} is not answered: {error}") from error
    finally:
        connection.close()
