"""Laws: Prometheus reads from Ray's port what the run counted; the dashboard asks only for what is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "examples/grafana/latentmill.json"

RUN = """
import sys, urllib.request
import ray
from pipeline.run import run
from pipeline.settings.job import Job
from tests.small import CLIP

ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
summary = run(Job(source=(f"{sys.argv[1]}/*.tar",), output=f"{sys.argv[1]}/out", vae="tiny", clip=CLIP))
assert (summary.latents, summary.rejected) == (1, {"unreadable": 1})
(node,) = ray.nodes()
url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
for _ in range(600):  # Ray hands metrics on every few seconds
    served = urllib.request.urlopen(url).read().decode()
    if "latentmill_rejected" in served and "ray_data_num_external_inqueue_blocks" in served:
        break
    ray.get(ray.remote(num_cpus=0)(lambda: __import__("time").sleep(0.1)).remote())
print(served)
ray.shutdown()
"""


def asked() -> set[str]:
    """The names of metrics in the dashboard's queries."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    return set(re.findall(r"\bray_\w+", queries))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Every sample of a small run, by its name and the one label that is ours."""
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray serves metrics with the extra `cluster` only")
    from tests.test_run import make_tar
    from tests.videos import make_video

    folder = tmp_path_factory.mktemp("metrics")
    make_tar(folder / "a.tar", {"one": make_video(num_frames=60, width=96, height=64), "text": b"not a video"})
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}
    command = [sys.executable, "-c", RUN, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(ray_\w+)(\{.*\})? ([-+.\de]+)$", done.stdout, re.MULTILINE)
    return {_key(name, labels): float(value) for name, labels, value in lines}


def _key(name: str, labels: str) -> str:
    ours = re.search(r'[{,](reason|stage|state)="(\w+)"', labels) if "latentmill" in name else None
    return f"{name} {ours[2]}" if ours else name


@pytest.mark.slow
def test_prometheus_reads_what_the_run_counted(served: dict[str, float]) -> None:
    assert served["ray_latentmill_clips_total"] == 1
    assert served["ray_latentmill_rejected_total unreadable"] == 1
    assert served["ray_latentmill_shards done"] == 1
    assert served["ray_latentmill_shards open"] == served["ray_latentmill_shards waiting"] == 0
    assert all(
        served[f"ray_latentmill_busy_seconds_total {stage}"] > 0 for stage in ("read", "decode", "encode", "stage")
    )
    assert served["ray_latentmill_latent_bytes_total"] == 16 * 3 * 4 * 6 * 2
    assert served["ray_latentmill_read_bytes_total"] > 1000
    assert 0 <= served["ray_latentmill_encoder_idle_share"] <= 1


@pytest.mark.slow
def test_the_dashboard_asks_for_what_is_there(served: dict[str, float]) -> None:
    assert asked() <= {key.split()[0] for key in served}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Each panel has a place of its own in the grid of 24 columns, a data source to choose, and a query."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= dashboard.keys()
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert panel["targets"]
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"source"}
