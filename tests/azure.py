"""Fixtures: a real Azure Blob server (Azurite) on a private port of 127.0.0.1, and an empty container for each test.

A test that asks for them is skipped where `azurite-blob` is not on the PATH (`npm install -g azurite`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import itertools
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account that Azurite documents for everybody: no secret."""

START_SECONDS = 120
_numbers = itertools.count()


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an Azurite that lives as long as the session."""
    pytest.importorskip("obstore", reason="needs the extra `cloud`")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("needs azurite-blob on the PATH: npm install -g azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    folder: Path = tmp_path_factory.mktemp("azurite")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        _wait_for(port)
        yield port
        server.terminate()


@pytest.fixture
def azure(azure_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty container, and an environment that leads there."""
    container = f"test-{next(_numbers)}"
    _create_container(azure_server, container)
    point_at(azure_server, monkeypatch)
    yield f"az://{container}"
    _forget_clients()


def point_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment lead to the server, or the proxy, at this port."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
    _forget_clients()


def _forget_clients() -> None:
    from latentmill.store import cloud

    cloud.client.cache_clear()  # a process keeps its client, and with it the endpoint that it found first


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"azurite did not listen within {START_SECONDS} s")


def _create_container(port: int, container: str) -> None:
    """obstore creates no containers, so this is one signed request (Shared Key)."""
    date, version = formatdate(usegmt=True), "2021-12-02"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{ACCOUNT}/{container}?restype=container", headers=headers)
    assert connection.getresponse().status == 201
    connection.close()
