"""Laws: the record of a run tells when, where, by which version and what was asked for; addresses without secrets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pipeline.control.summary import Summary
from pipeline.runs.run_records import RunRecord
from pipeline.settings.job import Job
from pipeline.storage import Storage

SUMMARY = Summary(planned_shards=1, done_shards=1, planned=2, latents=2, rejected={}, latent_bytes=8)


def test_a_run_leaves_a_record_of_what_was_asked_for_and_no_secret(tmp_path: Path) -> None:
    job = Job(
        source=("https://user:secret@host/a.tar?signature=secret", "s3://bucket/b.tar"),
        output=str(tmp_path),
        vae="https://host/vae.safetensors?token=secret",
        limit=3,
    )
    began = datetime.now(UTC)
    RunRecord(job=job, run_id="abc", spec_digest="spec", began=began).put(Storage(job.output), SUMMARY)
    (path,) = (tmp_path / "runs").iterdir()
    text = path.read_text()
    assert "secret" not in text
    facts = json.loads(text)
    assert facts["job"]["source"] == ["https://host/a.tar", "s3://bucket/b.tar"]
    assert facts["job"]["limit"] == 3
    assert facts["job"]["clip"]["num_frames"] == 49
    assert facts["latentmill"] == version("latentmill")
    assert facts["host"]
    assert datetime.fromisoformat(facts["began"]) == began <= datetime.fromisoformat(facts["ended"])
    assert facts["summary"]["latents"] == 2
