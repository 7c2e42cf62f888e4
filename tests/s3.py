"""Fixtures: a real S3 protocol server (moto) on a private port, a bucket for each test, a proxy that breaks requests.

A test module asks for them with `pytest_plugins = ["tests.s3"]`. The environment points at the server for as long as
the test runs, so that everything, subprocesses too, finds it the way it finds S3: through the standard chain.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from s3fs import S3FileSystem

from tests.fault_proxy import FaultProxy

# Read when moto is imported: parts of a multipart upload may be small, pages of a listing are short.
os.environ |= {"S3_UPLOAD_PART_MIN_SIZE": "256", "MOTO_S3_DEFAULT_MAX_KEYS": "20"}
from moto.server import ThreadedMotoServer

_numbers = itertools.count()
_last_endpoint: list[str] = []


@dataclass(frozen=True)
class S3:
    """One bucket on the test's server."""

    bucket: str
    port: int
    client: Any
    """boto3, straight to the server: never through a proxy."""

    def uri(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def put(self, path: str, data: bytes) -> str:
        """Put an object; return its URI."""
        self.client.put_object(Bucket=self.bucket, Key=path, Body=data)
        return self.uri(path)

    def get(self, path: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=path)["Body"].read()
        return data

    def paths(self) -> list[str]:
        """The keys of all objects, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a moto server that lives as long as the session."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _one_write_at_a_time(server._server.app)  # type: ignore[attr-defined]
    yield server.get_host_and_port()[1]
    server.stop()


def _one_write_at_a_time(app: Any) -> Any:
    """S3 looks and writes in one step when a PUT has a condition; moto's threads look, and then write."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] not in ("PUT", "POST"):
            return app(environ, start_response)
        with lock:
            return list(app(environ, start_response))

    return serve


@pytest.fixture(scope="session")
def _client(s3_server: int) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{s3_server}",
        aws_access_key_id="test-access-key",
        aws_secret_access_key="test-secret-key",
        region_name="us-east-1",
    )


@pytest.fixture
def s3(s3_server: int, _client: Any, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty bucket, and an environment that leads there and nowhere else."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    _point_at(f"http://127.0.0.1:{s3_server}", monkeypatch)
    bucket = f"test-{next(_numbers)}"
    _client.create_bucket(Bucket=bucket)
    return S3(bucket=bucket, port=s3_server, client=_client)


@pytest.fixture(scope="session")
def _proxy(s3_server: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def faults(s3: S3, _proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy between everything and the server of `s3`; it passes all until it is told otherwise."""
    _point_at(_proxy.url, monkeypatch)
    _proxy.clear()
    yield _proxy
    _proxy.clear()


def _point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    # A process keeps its client, and with it the endpoint that it found first.
    if _last_endpoint != [endpoint]:
        S3FileSystem.clear_instance_cache()
        _last_endpoint[:] = [endpoint]
