"""What a web server answers: only "it does not exist" may reject a video; everything else leaves its shard open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.errors import AccessError, LimitExceededError, NotFoundError, StorageError, TransientError
from pipeline.storage import read_object, retry

BODY = b"not a video" * 100


class Answer(BaseHTTPRequestHandler):
    """The path is the status."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
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


def test_no_more_than_the_limit_is_read(server: str) -> None:
    assert read_object(f"{server}/200", max_bytes=len(BODY)) == BODY
    with pytest.raises(LimitExceededError):
        read_object(f"{server}/200", max_bytes=len(BODY) - 1)
