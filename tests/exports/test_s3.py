"""Law: an export from S3 to S3 has the bytes of one from a disk to a disk, but for paths of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.control.spread import SpreadRule
from pipeline.export.families import WAN_21
from pipeline.export.import_job import ImportJob
from pipeline.export.import_run import run_import
from pipeline.export.plan import ExportJob
from pipeline.export.run import export
from pipeline.storage import Storage
from tests.exports.made import vae_of, write_family, write_text
from tests.s3 import S3

pytest_plugins = ["tests.s3"]

HERE = SpreadRule(workers=1)


def upload(s3: S3, folder: Path, prefix: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file() and "_staging" not in path.parts:
            s3.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return s3.uri(prefix)


def test_from_s3_to_s3(s3: S3, tmp_path: Path) -> None:
    write_family(tmp_path / "out", vae_of(WAN_21))
    write_text(tmp_path / "out")
    remote = ExportJob(
        output=upload(s3, tmp_path / "out", "v1"), to="automodel", into=s3.uri("cache"), text="t5", any_text=True
    )
    local = ExportJob(output=str(tmp_path / "out"), to="automodel", into=str(tmp_path / "to"), text="t5", any_text=True)
    assert export(remote, HERE).counts == export(local, HERE).counts
    there = [path.removeprefix("cache/") for path in s3.paths() if path.endswith(".meta")]
    assert len(there) == 8
    assert all(s3.get(f"cache/{path}") == (tmp_path / "to" / path).read_bytes() for path in there)
    metadata = json.loads(s3.get("cache/metadata.json"))
    items = [item for shard in metadata["shards"] for item in json.loads(s3.get(f"cache/{shard}"))]
    assert sorted(item["cache_file"] for item in items) == sorted(there)
    assert export(remote, HERE).written == 0


def test_import_from_s3_to_s3(s3: S3, tmp_path: Path) -> None:
    write_family(tmp_path / "out", vae_of(WAN_21))
    export(ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to")), HERE)
    source = upload(s3, tmp_path / "to", "files")
    summary = run_import(ImportJob(origin="pt", source=source, output=s3.uri("back"), fps="8"), HERE)
    assert (summary.done_shards, summary.latents) == (1, 8)
    assert len(list(Storage(s3.uri("back")).list("data/"))) == 1
