"""What a web server answers: only "it does not exist" may reject a video; everything else leaves its shard open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec.config
import pytest
from s3fs import S3FileSystem

from latentmill.store import retry
from pipeline.errors import AccessError, LimitExceededError, NotFoundError, StorageError, TransientError
from pipeline.storage import read_object

BODY = b"not a video" * 100


class Answer(BaseHTTPRequestHandler):
    """The path is the status. "/to/REST" leads to REST; every request line is noted as it came."""

    asked: list[str] = []  # noqa: RUF012
    headers_seen: list[Message] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.requestline.split(" ", 1)[1].rpartition(" ")[0])
        self.headers_seen.append(self.headers)
        leads_on = self.path.startswith("/to/")
        self.send_response(302 if leads_on else int(self.path.strip("/").partition("/")[0].partition("?")[0]))
        if leads_on:
            self.send_header("Location", self.path.removeprefix("/to"))
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


ERRORS: dict[int, type[StorageError]] = {404: NotFoundError, 410: NotFoundError, 401: AccessError, 403: AccessError}
ERRORS |= {429: TransientError, 503: TransientError}


@pytest.mark.parametrize(("status", "error"), ERRORS.items())
def test_only_what_is_missing_is_not_found(
    server: str, status: int, error: type[StorageError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.001)
    with pytest.raises(error, match=f"{status}"):
        read_object(f"{server}/{status}")


def test_a_server_that_is_not_there_says_nothing_of_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.001)
    with pytest.raises(TransientError):
        read_object("http://127.0.0.1:9/a.mp4")


SIGNED = [
    "/200/a%2Bb%2fc.mp4?sig=a%2Bb%2Fc/d+e%3D%3D&t=1",
    "/200/vids//d.mp4",
    "/200/%zz;v=1/$&'()*+,;=:@!?x={y}&empty=&flag",
    "/200/x?path=/a/../b/",
    "/200/%E4%20",
]
"""Paths that a client must not write in another way: a signature covers their bytes."""


@pytest.mark.parametrize("path", SIGNED)
@pytest.mark.parametrize("way", ["", "/to"])
def test_an_address_travels_byte_for_byte(server: str, path: str, way: str) -> None:
    path = path.replace("{", "%7B").replace("}", "%7D")
    Answer.asked.clear()
    assert read_object(f"{server}{way}{path}") == BODY
    assert Answer.asked == [way + path, path][not way :]


def test_what_no_url_may_hold_is_quoted(server: str) -> None:
    Answer.asked.clear()
    assert read_object(f"{server}/200/eine Übung.mp4?q=ü") == BODY
    assert Answer.asked == ["/200/eine%20%C3%9Cbung.mp4?q=%C3%BC"]


@pytest.mark.parametrize(
    ("options", "header", "value"),
    [({"anon": True}, "Authorization", None), ({"requester_pays": True}, "x-amz-request-payer", "requester")],
)
def test_s3_is_reached_as_the_docs_say(
    server: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], header: str, value: str | None
) -> None:
    for name, text in {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", text)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    S3FileSystem.clear_instance_cache()
    assert read_object("s3://200/a.mp4") == BODY
    assert Answer.headers_seen[-1].get(header) == value
    S3FileSystem.clear_instance_cache()


def test_a_ring_of_redirects_ends(server: str) -> None:
    with pytest.raises(StorageError, match="more than 10 redirects"):
        read_object(f"{server}{'/to' * 11}/200")


def test_no_more_than_the_limit_is_read(server: str) -> None:
    assert read_object(f"{server}/200", max_bytes=len(BODY)) == BODY
    with pytest.raises(LimitExceededError):
        read_object(f"{server}/200", max_bytes=len(BODY) - 1)
