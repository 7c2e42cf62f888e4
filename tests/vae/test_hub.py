"""A repository id is loaded by the hub's own client, from a server on loopback that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vae
from tests.vae.test_diffusers_parity import saved_by_diffusers

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.slow

REPOSITORY, REVISION = "somebody/video-vae", "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, of the files below `folder`."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = sorted(file.relative_to(self.folder) for file in self.folder.rglob("*") if file.is_file())
        below = f"/{REPOSITORY}/resolve/{REVISION}/"
        facts: Any = None
        if path == f"/api/models/{REPOSITORY}/revision/main":
            siblings = [{"rfilename": str(file)} for file in files]
            facts = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": REVISION, "private": False, "siblings": siblings}
        elif path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
            facts = [
                {"type": "file", "path": str(file), "size": (self.folder / file).stat().st_size, "oid": "0" * 40}
                for file in files
            ]
        if facts is not None:
            self._send(json.dumps(facts).encode(), {"Content-Type": "application/json"})
        elif path.startswith(below) and Path(path.removeprefix(below)) in files:
            data = (self.folder / path.removeprefix(below)).read_bytes()
            self._send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISION})
        else:
            self.send_error(404)

    def _send(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    folder = tmp_path / "repository"
    saved_by_diffusers(folder / "vae", (32, 32, 64, 64))
    (folder / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    (folder / "transformer").mkdir()
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"large, and not ours")
    handler = type("OneHub", (Hub,), {"folder": folder, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load(server: http.server.ThreadingHTTPServer, repository: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its address when it is imported."""
    code = f"import vae; print(vae.load_vae({repository!r}).info.weights_sha256)"
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)


def test_a_repository_is_fetched_and_nothing_but_its_vae(hub: Any, tmp_path: Path) -> None:
    found = load(hub, REPOSITORY, tmp_path / "home")
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == vae.load_vae(str(tmp_path / "repository")).info.weights_sha256
    asked = hub.RequestHandlerClass.asked
    assert any("vae/diffusion_pytorch_model.safetensors" in path for path in asked)
    assert not any("transformer/" in path for path in asked)
    none = load(hub, "somebody/nothing", tmp_path / "home")
    assert none.returncode == 1
    assert "CheckpointError: no path 'somebody/nothing', and no Hugging Face repository with this id" in none.stderr
