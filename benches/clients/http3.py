"""HTTP/3 as aioquic speaks it, and HTTP/1.1 by h11, to ask an app without any proxy the same."""

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import re
import socket

import h11
from aioquic.asyncio import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection, Setting
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StopSendingReceived, StreamReset
from aioquic.quic.packet import QuicProtocolVersion
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection as Frames
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Request, TextMessage

PATIENCE = 60
BODY = bytes(at % 251 for at in range(3 * 1024 * 1024))
# More than may be under way before clients have to prove their address, which is 64 for each worker.
HALF_OPEN = 100 * os.cpu_count()


class Failed(Exception):
    """It was not answered as a client may expect."""


@dataclasses.dataclass
class Answer:
    status: int = 0
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytearray = dataclasses.field(default_factory=bytearray)
    trailers: dict = dataclasses.field(default_factory=dict)


def kinds(road, live):
    """What is asked on that road, by name. `live` tells what has to answer, and how often that has changed."""
    async def digest(path="/bytes?n=1000000"):
        answer = await road.ask("GET", path)
        length = answer.headers.get("content-length")
        whole = length in (None, str(len(answer.body)))
        return f"{answer.status} {len(answer.body)} {whole} {hashlib.sha256(answer.body).hexdigest()[:16]}"

    async def echo(has_length):
        answer = await road.ask("POST", "/echo?a=b", BODY, has_length)
        told = json.loads(answer.body)
        return f"{answer.status} {told['method']} {told['path']} {told['length']} {told['digest']}"

    async def head():
        answer = await road.ask("HEAD", "/bytes?n=10")
        return f"{answer.status} {answer.headers.get('content-length')} {len(answer.body)}"

    async def events():
        answer = await road.ask("GET", "/sse?n=3&ms=10")
        return f"{answer.status} {re.findall(rb'id: (.*)', bytes(answer.body))}"

    async def trailers():
        answer = await road.ask("GET", "/trailers")
        # The app itself says what the digest has to be.
        told = json.loads((await road.ask("POST", "/echo", bytes(answer.body))).body)
        return f"{answer.status} {list(answer.trailers)} {answer.trailers.get('x-digest') == told['digest']}"

    async def at_once():
        got = await asyncio.gather(*(digest(f"/bytes?n={at}0000&ms=20") for at in range(30)))
        return hashlib.sha256(repr(got).encode()).hexdigest()[:16]

    async def version():
        before = live()
        answer = await road.ask("GET", "/")
        right = live() != before or before[1] in (None, answer.headers.get("x-deployment"))
        return f"{answer.status} {'of what is live' if right else 'of what was live before'}"

    async def after(change):
        return await change() or await digest("/bytes?n=100000")

    return {
        "download": digest, "chunks": lambda: digest("/bytes?n=100000&chunked=1&ms=100"), "head": head, "events": events,
        "upload": lambda: echo(True), "upload without a length": lambda: echo(False), "trailers": trailers, "at once": at_once,
        "version": version, "websocket": road.websocket,
        "after an update of keys": lambda: after(road.update_keys),
        "after another connection id": lambda: after(road.change_id),
        "on a new connection": lambda: after(road.anew),
        "on a resumed one": lambda: after(road.resume),
        "on one that began with QUIC 2": lambda: after(road.version_2),
        "on one that proved its address": lambda: after(road.retry),
        "on one that HTTP/1.1 told of": lambda: after(lambda: road.told("--http1.1")),
        "on one that HTTP/2 told of": lambda: after(lambda: road.told("--http2")),
    }


async def talk(send, receive, closed):
    """Has a WebSocket echo, by `send` and `receive` for bytes: what came back, whole messages alone."""
    frames, echoed, parts = Frames(ConnectionType.CLIENT), [], []

    async def answer():
        while True:
            for event in frames.events():
                if isinstance(event, Message):
                    parts.append(event.data)
                    if event.message_finished:
                        whole = parts[0][:0].join(parts)
                        parts.clear()
                        return whole
                if isinstance(event, CloseConnection):
                    raise Failed(f"closed by {event.code}")
            frames.receive_data(await receive() or None)

    for message in [TextMessage("hello"), TextMessage("one"), BytesMessage(b"\x00\xff" * 70_000), TextMessage("x" * 200_000)]:
        await send(frames.send(message))
        whole = await answer()
        echoed.append(hashlib.sha256(whole if isinstance(whole, bytes) else whole.encode()).hexdigest()[:8])
    await send(frames.send(CloseConnection(1000)))
    with contextlib.suppress(Failed):
        await answer()
    await closed()
    # The first answer is the version.
    return " ".join(echoed[1:])


class Straight:
    """HTTP/1.1 to the app itself, a connection for each request."""

    def __init__(self, port, host):
        self.port, self.host = port, host

    async def ask(self, method, path, body=None, has_length=True):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        wire, answer = h11.Connection(h11.CLIENT), Answer()
        headers = [("Host", self.host), ("Connection", "close, TE"), ("TE", "trailers")]
        if body is not None:
            headers.append(("Content-Length", str(len(body))) if has_length else ("Transfer-Encoding", "chunked"))
        said = [h11.Request(method=method, target=path, headers=headers)]
        said += [h11.Data(data=body)] if body is not None else []
        for event in [*said, h11.EndOfMessage()]:
            writer.write(wire.send(event))
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                answer.status, answer.headers = event.status_code, plain(event.headers)
            elif isinstance(event, h11.Data):
                answer.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                answer.trailers = plain(event.headers)
                writer.close()
                return answer

    async def websocket(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        handshake = WSConnection(ConnectionType.CLIENT)
        writer.write(handshake.send(Request(host=self.host, target="/ws")))
        handshake.receive_data(await reader.readuntil(b"\r\n\r\n"))
        if not any(isinstance(event, AcceptConnection) for event in handshake.events()):
            raise Failed("the app takes no WebSocket")

        async def send(data):
            writer.write(data)

        async def closed():
            writer.close()

        return await talk(send, lambda: reader.read(65536), closed)

    async def close(self):
        pass

    async def nothing(self, *_):
        """Of QUIC alone."""

    update_keys = change_id = anew = resume = version_2 = retry = told = nothing


class Http3:
    """HTTP/3, all on one connection that is kept, as long as nobody asks for another."""

    def __init__(self, port, host, authority, told):
        self.port, self.host, self.authority, self.told_port = port, host, authority, told
        self.tickets, self.kept, self.stack = [], None, contextlib.AsyncExitStack()

    async def connection(self):
        if self.kept is None or self.kept.ended:
            self.kept = await self.open()
        return self.kept

    async def open(self, **settings):
        """Another connection, which is believed by its certificate."""
        configuration = QuicConfiguration(alpn_protocols=H3_ALPN, server_name=self.host, **settings)
        configuration.load_verify_locations(cafile=str(self.authority))
        opening = connect("127.0.0.1", self.port, configuration=configuration, create_protocol=Wire,
                          session_ticket_handler=self.tickets.append)
        return await self.stack.enter_async_context(opening)

    async def close(self):
        await self.stack.aclose()

    async def replaced(self, **settings):
        await self.stack.aclose()
        self.kept = await self.open(**settings)
        return self.kept

    async def ask(self, method, path, body=None, has_length=True):
        wire = await self.connection()
        headers = {":method": method, ":scheme": "https", ":authority": f"{self.host}:{self.port}", ":path": path,
                   "te": "trailers"}
        if body is not None and has_length:
            headers["content-length"] = str(len(body))
        stream = wire.begin(headers, body is None)
        if body is not None:
            stream.send(body, True)
        answer = Answer()
        async for event in stream:
            if isinstance(event, DataReceived):
                answer.body += event.data
            elif answer.status:
                answer.trailers = plain(event.headers)
            else:
                headers = plain(event.headers)
                status = int(headers.pop(":status"))
                if status >= 200:
                    answer.status, answer.headers = status, headers
        return answer

    async def websocket(self):
        wire = await self.connection()
        await wire.settled()
        if not wire.http.received_settings.get(Setting.ENABLE_CONNECT_PROTOCOL):
            raise Failed("there are no WebSockets over HTTP/3")
        stream = wire.begin({":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":path": "/ws",
                             ":authority": f"{self.host}:{self.port}", "sec-websocket-version": "13"}, False)
        status = plain((await anext(stream)).headers)[":status"]
        if status != "200":
            raise Failed(f"no WebSocket: {status}")

        async def send(data):
            stream.send(data, False)

        async def receive():
            event = await anext(stream, None)
            return event and event.data

        async def closed():
            stream.send(b"", True)
            if await receive():
                raise Failed("there was more after the end of the WebSocket")

        return await talk(send, receive, closed)

    async def update_keys(self):
        (await self.connection()).request_key_update()

    async def change_id(self):
        (await self.connection()).change_connection_id()

    async def anew(self):
        await self.replaced()

    async def resume(self):
        """Nothing may be taken early, and the session is gone on with all the same."""
        wire = await self.connection()
        await wire.settled()
        if not self.tickets:
            return "no session was given"
        if any(ticket.max_early_data_size for ticket in self.tickets):
            return "early data would be taken"
        wire = await self.replaced(session_ticket=copy.copy(self.tickets[-1]))
        return None if wire.handshake.session_resumed else "the session was not gone on with"

    async def version_2(self):
        versions = [QuicProtocolVersion.VERSION_2, QuicProtocolVersion.VERSION_1]
        await self.replaced(supported_versions=versions, original_version=QuicProtocolVersion.VERSION_2)

    async def retry(self):
        """Many begin and say nothing more; who comes then is asked to show its address, and served."""
        with contextlib.ExitStack() as stack:
            for _ in range(HALF_OPEN):
                half = QuicConnection(configuration=QuicConfiguration(alpn_protocols=H3_ALPN, server_name=self.host))
                half.connect(("127.0.0.1", self.port), now=0)
                wire = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for data, address in half.datagrams_to_send(now=0):
                    wire.sendto(data, address)
            wire = await self.replaced()
        return None if wire.was_asked_to_prove() else "nobody was asked to prove an address"

    async def told(self, version):
        """Goes where Alt-Svc says."""
        port = await asyncio.to_thread(self.told_port, version)
        if port is None:
            return f"{version} is not told of HTTP/3"
        self.port = port
        await self.replaced()


class Http(H3Connection):
    """aioquic takes the length in an answer to HEAD for that of a body that has to come."""

    heads = frozenset()

    def _check_content_length(self, stream):
        if stream.stream_id not in self.heads:
            super()._check_content_length(stream)


class Wire(QuicConnectionProtocol):
    """One connection: gives each stream what is its own."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.http, self.streams, self.handshake, self.ended = Http(self._quic), {}, None, None

    def begin(self, headers, is_all):
        stream = Stream(self, self._quic.get_next_available_stream_id())
        self.streams[stream.id] = stream
        if headers[":method"] == "HEAD":
            self.http.heads |= {stream.id}
        self.http.send_headers(stream.id, [(name.encode(), value.encode()) for name, value in headers.items()], is_all)
        self.transmit()
        return stream

    def was_asked_to_prove(self):
        return self._quic._retry_count > 0

    async def settled(self):
        """Until the settings have come, and with them what the server says once the handshake is over."""
        while self.http.received_settings is None:
            await self.ping()

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.handshake = event
        if isinstance(event, ConnectionTerminated):
            self.ended = Failed(f"the connection ended: {event.error_code:#x} {event.reason_phrase}")
            for stream in self.streams.values():
                stream.events.put_nowait(self.ended)
        if isinstance(event, StreamReset) and event.stream_id in self.streams:
            self.streams[event.stream_id].events.put_nowait(Failed(f"reset by {event.error_code:#x}"))
        if isinstance(event, StopSendingReceived) and event.stream_id in self.streams:
            self.streams[event.stream_id].stopped = event.error_code
        for told in self.http.handle_event(event):
            if isinstance(told, (DataReceived, HeadersReceived)) and told.stream_id in self.streams:
                self.streams[told.stream_id].events.put_nowait(told)


class Stream:
    """What comes on a stream, in its order, until its end."""

    def __init__(self, wire, id):
        self.wire, self.id, self.events, self.stopped, self.is_over = wire, id, asyncio.Queue(), None, False

    def send(self, data, is_last):
        self.wire.http.send_data(self.id, data, is_last)
        self.wire.transmit()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.is_over:
            raise StopAsyncIteration
        event = await self.events.get()
        if isinstance(event, Failed):
            raise event
        if event.stream_ended:
            self.is_over = True
            del self.wire.streams[self.id]
        return event


def plain(headers):
    return {name.decode().lower(): value.decode() for name, value in headers}


async def tried(ask):
    try:
        return await asyncio.wait_for(ask(), PATIENCE)
    except (Failed, OSError, asyncio.TimeoutError) as error:
        return f"failed: {error!r}"
