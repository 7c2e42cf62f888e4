"""An address that a table of strangers names never leads to a connection inside the local network: not by number, by
name, by a redirect, nor by a name that is public at first."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.errors import UnsafeAddressError
from pipeline.guard.strikes import Strikes
from pipeline.receipts import RejectionReceipt
from pipeline.records import Video
from pipeline.storage import read_object, web_store
from tests.test_chunks import decoder

PUBLIC, PRIVATE = "127.0.0.2", "127.0.0.1"
"""Two servers of this machine; of which the first passes for a public one."""


class Web(BaseHTTPRequestHandler):
    """Redirects to where the query says, else answers; every request is noted by the server that got it."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        host = str(self.server.server_address[0])
        self.seen.append(host)
        target = self.path.partition("?to=")[2]
        self.send_response(302 if target else 200)
        self.send_header("Location", target) if target else None
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"data")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of both servers. Names: see `names`."""
    rule = web_store.inside_network
    monkeypatch.setattr(web_store, "inside_network", lambda host: host != PUBLIC and rule(host))
    Web.seen.clear()
    web_store._AsWritten.clear_instance_cache()
    with ThreadingHTTPServer((PUBLIC, 0), Web) as one, ThreadingHTTPServer((PRIVATE, one.server_port), Web) as two:
        for server in (one, two):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield one.server_port
        one.shutdown()
        two.shutdown()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A DNS: the addresses of each name, of which every question takes one off but the last."""
    answers: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def ask(host: Any, *args: Any, **kwargs: Any) -> Any:
        found = answers.get(host)
        if found is None or kwargs.get("flags", 0) & socket.AI_NUMERICHOST:
            return real(host, *args, **kwargs)
        return [info for number in found.pop(0).split() for info in real(number, *args, **kwargs)] if found else []

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return answers


def test_a_public_server_may_be_reached_and_redirect_to_itself(port: int, names: dict[str, list[str]]) -> None:
    names["public.example"] = [PUBLIC, PUBLIC]
    for host in (PUBLIC, "public.example"):
        assert read_object(f"http://{host}:{port}/a.mp4", public_only=True) == b"data"
        assert read_object(f"http://{host}:{port}/a.mp4?to=/b.mp4", public_only=True) == b"data"
    assert set(Web.seen) == {PUBLIC}


@pytest.mark.parametrize(
    "uri",
    [
        "http://{PRIVATE}:{port}/a.mp4",
        "http://[::ffff:{PRIVATE}]:{port}/a.mp4",
        "http://localhost:{port}/a.mp4",
        "http://private.example:{port}/a.mp4",
        "http://both.example:{port}/a.mp4",
        "http://{PUBLIC}:{port}/a.mp4?to=http://{PRIVATE}:{port}/b.mp4",
        "http://{PUBLIC}:{port}/a.mp4?to=http://private.example:{port}/b.mp4",
        "http://{PUBLIC}:{port}/a.mp4?to=http://{PUBLIC}:{port}/b.mp4?to=http://localhost:{port}/c.mp4",
        "http://{PUBLIC}:{port}/a.mp4?to=file:///etc/hostname",
        "http://{PUBLIC}:{port}/a.mp4?to=http://127.1:{port}/b.mp4",
    ],
)
def test_no_connection_is_made_inside_and_it_is_a_rejection(port: int, names: dict[str, list[str]], uri: str) -> None:
    names["private.example"] = [PRIVATE] * 3
    names["both.example"] = [f"{PUBLIC} {PRIVATE}"] * 3
    address = uri.format(PRIVATE=PRIVATE, PUBLIC=PUBLIC, port=port)
    with pytest.raises(UnsafeAddressError):
        read_object(address, public_only=True)
    video = Video(shard="s", video=0, key="a", uri=address, payload=None, public_only=True)
    _, rejected = decoder()(video, Strikes())
    assert isinstance(rejected, RejectionReceipt)
    assert rejected.rejection.reason == "unsafe_uri"
    assert PRIVATE not in Web.seen


def test_a_name_that_answers_differently_later_is_looked_at_again(port: int, names: dict[str, list[str]]) -> None:
    """What is connected to is what was looked at: one question, and no second one in between."""
    names["rebinding.example"] = [PUBLIC, PRIVATE, PRIVATE]
    assert read_object(f"http://rebinding.example:{port}/a.mp4", public_only=True) == b"data"
    web_store._AsWritten.clear_instance_cache()  # and with it the names that the client remembers
    with pytest.raises(UnsafeAddressError):
        read_object(f"http://rebinding.example:{port}/a.mp4", public_only=True)
    assert set(Web.seen) == {PUBLIC}


def test_what_the_user_names_may_be_private(port: int) -> None:
    assert read_object(f"http://{PRIVATE}:{port}/a.mp4") == b"data"
    assert read_object(f"http://{PUBLIC}:{port}/a.mp4?to=http://{PRIVATE}:{port}/b.mp4") == b"data"
