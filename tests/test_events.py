"""Law: with --log-json, each line of stderr is one event; the events of commits add up to what the output holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jobs import status
from pipeline.output.layout import claim_path
from pipeline.plan.frozen import make_plan
from pipeline.runs.claims import Owner
from pipeline.storage import Storage
from tests.test_run import make_tar
from tests.videos import make_video


@pytest.mark.slow
def test_each_line_is_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = make_video(num_frames=60, width=96, height=64)
    for name in "ab":
        make_tar(tmp_path / f"{name}.tar", {"one": sound, "text": b"not a video"})
    source, output = f"{tmp_path}/*.tar", Storage(f"{tmp_path}/out")
    first, second = make_plan(output, (source,), shard_size=64, limit=None, on_changed="refuse").remaining()
    dead = replace(Owner.this_process("before"), started="1")
    output.put(claim_path(first.name), json.dumps(asdict(dead)).encode())

    small = ["--num-frames", "9", "--height", "32", "--width", "48", "--fps", "8", "--clips", "all"]
    options = ["--source", source, "--output", output.uri, "--vae", "tiny", *small]
    command = [sys.executable, "-m", "jobs.encode", *options, "--object-store-gb", "0.1", "--log-json"]
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=300)

    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(event["time"].endswith("+00:00") and event["level"] for event in events)
    of = {kind: [event for event in events if event["event"] == kind] for kind in {e["event"] for e in events}}
    assert [event["shards"] for event in of["pass_begun"]] == [2]
    assert [(event["shard"], event["owner"]) for event in of["claim_taken_over"]] == [(first.name, "before")]
    assert {event["shard"] for event in of["shard_committed"]} == {first.name, second.name}
    assert Counter(event["reason"] for event in of["clip_rejected"]) == {"unreadable": 2}
    assert {event["key"] for event in of["clip_rejected"]} == {"text"}
    assert of["progress"][-1]["shards_done"] == of["progress"][-1]["shards"] == 2
    assert status.main(["--output", output.uri, "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert sum(event["latents"] for event in of["shard_committed"]) == held["latents"]
    assert of["run_ended"][-1]["latents"] == held["latents"]
