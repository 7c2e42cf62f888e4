"""An HTTP proxy in front of an S3 server that breaks what it is told to break.

    proxy = FaultProxy(upstream_port)
    proxy.add("PutObject", Status(503, "SlowDown"), times=2)
    proxy.add("GetObject", Truncate(1000), path="shard-7")

Rules are tried in order and used up; a request that none fits passes unharmed. `proxy.requests` tells what came, with
the fault it met. Operations carry S3's names, so a test says what it means and not how it looks on the wire.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Status:
    """Answer with an error, without asking the server."""

    status: int
    code: str


@dataclass(frozen=True)
class Reset:
    """Reset the connection before the request reaches the server."""


@dataclass(frozen=True)
class DropResponse:
    """Let the server do it, then reset the connection instead of answering."""


@dataclass(frozen=True)
class Truncate:
    """Announce the whole body, and send only so many bytes of it."""

    num_bytes: int


@dataclass(frozen=True)
class StripHeader:
    """Forward without one header: a store that does not know it."""

    name: str


@dataclass(frozen=True)
class Hold:
    """Let the server do it, then keep the answer back until `release` is set: the moment to kill somebody."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


Fault = Status | Reset | DropResponse | Truncate | StripHeader | Hold


@dataclass
class _Rule:
    operation: str
    path: str
    fault: Fault
    times: int
    every: int
    seen: int = 0


class FaultProxy:
    """Listens on a private port of 127.0.0.1 until `close()`."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str, str]] = []
        """(operation, path, name of the fault or "ok"), in order of arrival."""
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, operation: str, fault: Fault, *, times: int = 1, path: str = "", every: int = 1) -> None:
        """Break `times` requests of an operation ("*": any) with `path` in their path: the next, or each `every`-th."""
        with self._lock:
            self._rules.append(_Rule(operation, path, fault, times, every))

    def clear(self) -> None:
        """Forget rules and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def count(self, operation: str, *, path: str = "") -> int:
        return sum(op == operation and path in at for op, at, _ in self.requests)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, operation: str, path: str) -> Fault | None:
        """The fault for a request that has just come in."""
        with self._lock:
            for rule in self._rules:
                if rule.times and rule.operation in ("*", operation) and rule.path in path:
                    rule.seen += 1
                    if rule.seen % rule.every:
                        continue
                    rule.times -= 1
                    self.requests.append((operation, path, type(rule.fault).__name__))
                    return rule.fault
            self.requests.append((operation, path, "ok"))
        return None


def operation_of(method: str, target: str) -> str:
    """S3's name for a request: ("POST", "/bucket/key?uploadId=1") -> "CompleteMultipartUpload"."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    has_key = "/" in parts.path.strip("/")
    if method == "PUT":
        return "UploadPart" if "partNumber" in query else "PutObject" if has_key else "CreateBucket"
    if method == "POST":
        if "delete" in query:
            return "DeleteObjects"
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    if method == "HEAD":
        return "HeadObject" if has_key else "HeadBucket"
    return "GetObject" if has_key else "ListObjectsV2"


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            self.close_connection = True
            body = b"".join(self._body())
            fault = proxy.take(operation_of(self.command, self.path), self.path)
            match fault:
                case Status():
                    self._answer_error(fault)
                    return
                case Reset():
                    self._reset()
                    return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
            if isinstance(fault, StripHeader):
                headers = {name: value for name, value in headers.items() if name.lower() != fault.name.lower()}
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port)
            try:
                upstream.request(self.command, self.path, body or None, headers)
                answer = upstream.getresponse()
                data = answer.read()
            finally:
                upstream.close()
            if isinstance(fault, Hold):
                fault.reached.set()
                fault.release.wait()
            if isinstance(fault, DropResponse):
                self._reset()
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_HEADERS | {"content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("content-length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.send_header("Connection", "close")
            self.end_headers()
            if isinstance(fault, Truncate):
                self.wfile.write(data[: fault.num_bytes])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

        def _body(self) -> Iterator[bytes]:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
                return
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass

        def _answer_error(self, fault: Status) -> None:
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            self.send_response_only(fault.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _reset(self) -> None:
            # A linger time of zero makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    return Handler


_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
