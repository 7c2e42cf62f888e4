"""Every wait for a source has an end: servers that give a byte now and then, or nothing; pipes, folders, devices.

A server at fault leaves the shard open, and says nothing of the video; what is no file can never be a video.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from latentmill.store import retry
from pipeline import storage
from pipeline.errors import NotFoundError, StorageError
from pipeline.guard.strikes import Strikes
from pipeline.receipts import ClipsReceipt, FaultReceipt, RejectionReceipt
from pipeline.records import Video
from pipeline.sources.listing import list_source
from pipeline.stages.read_shard import read_shard
from pipeline.storage import read_object
from tests.test_chunks import decoder


class Drip(BaseHTTPRequestHandler):
    """Answers by drops, for ever: the body's for /body, the headers' for /headers, none at all for /silent."""

    stopped = threading.Event()

    def do_GET(self) -> None:
        if "body" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000000000")
            self.end_headers()
        try:
            if "headers" in self.path:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not self.stopped.wait(0.02):
                if "silent" not in self.path:
                    self.wfile.write(b"x")
        except OSError:  # the client has gone
            pass

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def drip(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that drips, and limits that a test can wait for."""
    monkeypatch.setattr(sys.modules["latentmill.store.stream"], "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("latentmill.store.event_loop.FILL_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.storage.web_store.HEADER_SECONDS", 0.3)
    monkeypatch.setattr("pipeline.storage.web_store.READ_SECONDS", 0.3)
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.001)
    Drip.stopped.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        Drip.stopped.set()
        web.shutdown()


@pytest.mark.parametrize("what", ["body", "headers", "silent"])
def test_a_server_that_drips_is_given_up_and_the_shard_stays_open(drip: str, what: str) -> None:
    with pytest.raises(StorageError) as caught:
        read_object(f"{drip}/{what}.mp4")
    assert not isinstance(caught.value, NotFoundError)
    if what == "body":
        assert "slower than 16384 bytes/s" in str(caught.value)


def test_the_decode_stage_reports_it_as_a_fault(drip: str) -> None:
    video = Video(shard="s", video=0, key="a", uri=f"{drip}/body.mp4", payload=None)
    (receipt,) = decoder()(video, Strikes())
    assert isinstance(receipt, FaultReceipt)
    assert "slower than" in receipt.message


@pytest.mark.parametrize("what", ["body", "headers", "silent"])
def test_an_s3_server_that_drips_is_given_up_too(drip: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": drip, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr("latentmill.store.event_loop.CALL_SECONDS", 0.3)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        read_object(f"s3://bucket/{what}.mp4")
    assert not isinstance(caught.value, NotFoundError)
    S3FileSystem.clear_instance_cache()


def test_a_fast_stream_is_not_hurried_by_a_slow_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the waits for the store count, not what is done between two reads."""
    monkeypatch.setattr(sys.modules["latentmill.store.stream"], "PATIENCE_SECONDS", 0.05)
    path = tmp_path / "a"
    path.write_bytes(bytes(2000))
    with storage.stream(str(path)) as body:
        assert len(body.read(1000)) == 1000
        threading.Event().wait(0.2)
        assert len(body.read(1000)) == 1000


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
def test_what_is_no_file_is_refused_by_name_and_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    (tmp_path / "t.jsonl").write_text('{"video": "a.mp4"}\n')
    (shard,) = list_source(str(tmp_path / "t.jsonl"), shard_size=64)
    (video,) = (record for record in read_shard(shard) if isinstance(record, Video))
    clips, rejected = decoder()(video, Strikes())
    assert isinstance(clips, ClipsReceipt)
    assert isinstance(rejected, RejectionReceipt)
    assert clips.count == 1
    assert rejected.rejection.reason == "not_found"
    assert rejected.rejection.message == f"{path} is a {kind}, not a file"
