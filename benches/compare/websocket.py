"""One WebSocket to the echo of the sample app, opened and used by ourselves (RFC 6455)."""

import base64
import hashlib
import http.client
import os

import client
from errors import Refused

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# The echo's first message tells it.
VERSION = b"compare"


def opened(port, scenario):
    """The connection and the header fields of the handshake's answer; the next message is echoed."""
    connection = client.connect(port, scenario)
    try:
        headers = shake_hands(connection, scenario)
        connection.sendall(frame(b"hello"))
        receive(connection, VERSION)
        return connection, headers
    except BaseException:
        connection.close()
        raise


def shake_hands(connection, scenario):
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET {scenario.path} HTTP/1.1\r\nHost: {scenario.a_host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    # It reads to the end of the head alone: the echo says nothing before it is spoken to.
    with http.client.HTTPResponse(connection) as response:
        response.begin()
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    if response.status != 101 or response.headers["Sec-WebSocket-Accept"] != accept:
        raise Refused(f"the handshake of {scenario.name} is answered with {response.status}")
    return response.headers


def exchange(connection, message):
    connection.sendall(frame(message))
    receive(connection, message)


def receive(connection, message):
    """Reads the one message that has to come now."""
    expected, received = echo(message), b""
    while len(received) < len(expected):
        more = connection.recv(4096)
        if not more:
            raise Refused(f"a WebSocket ended after {len(received)} bytes of a message")
        received += more
    if received != expected:
        raise Refused(f"a message was {received!r}, not {expected!r}")


def frame(message):
    """A text message of at most 125 bytes, as a client sends it."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(message))
    return bytes([0x81, 0x80 | len(message)]) + mask + masked


def echo(message):
    """The same, as a server sends it."""
    return bytes([0x81, len(message)]) + message
