"""Laws over S3: the same rows as from a disk, faults pass by, wrong credentials and missing buckets say so at once."""

from __future__ import annotations

import http.client
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import latentmill
from latentmill.store import retry
from latentmill.store.files import Files
from tests.fault_proxy import Fault, FaultProxy, Reset, Status, Truncate
from tests.s3 import S3

pytest_plugins = ["tests.s3"]


@pytest.fixture
def remote(s3: S3, output: Path) -> str:
    for path in output.rglob("*"):
        if path.is_file() and "_staging" not in str(path):
            s3.put(f"v1/{path.relative_to(output)}", path.read_bytes())
    return s3.uri("v1")


def test_s3_and_disk_give_the_same_rows(remote: str, output: Path) -> None:
    ours, want = latentmill.open(remote), latentmill.open(output)
    assert ours.digest == want.digest
    assert all(torch.equal(ours[i]["latent"], want[i]["latent"]) for i in range(0, 24, 5))
    batches = list(ours.loader(batch_size=2, seed=4))
    for one, other in zip(batches, want.loader(batch_size=2, seed=4), strict=True):
        assert one["id"] == other["id"]
        assert torch.equal(one["latent"], other["latent"])


def test_s3_without_a_seal(remote: str, s3: S3, output: Path) -> None:
    s3.client.delete_object(Bucket=s3.bucket, Key="v1/index.parquet")
    for key in s3.paths():
        if key.startswith("v1/index/000001"):
            s3.client.delete_object(Bucket=s3.bucket, Key=key)
    assert latentmill.open(remote).digest == latentmill.open(output).digest


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_make_clients_of_their_own(remote: str, method: str) -> None:
    """The client of this process has been used before, so a fork inherits a live one."""
    latents = latentmill.open(remote)
    latents[0]
    alone = [batch["id"] for batch in latents.loader(batch_size=2)]
    loader = latents.loader(batch_size=2, workers=2, multiprocessing_context=method)
    assert [batch["id"] for batch in loader] == alone


def test_a_second_epoch_comes_from_the_cache(remote: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = latentmill.open(remote, cache_bytes=1 << 20)
    first = {id_: b["latent"][i] for b in latents.loader(batch_size=3) for i, id_ in enumerate(b["id"])}
    monkeypatch.setattr(Files, "read_into", None)
    second = latents.loader(batch_size=3)
    assert all(torch.equal(b["latent"][i], first[id_]) for b in second for i, id_ in enumerate(b["id"]))


@pytest.mark.parametrize("fault", [Status(503, "SlowDown"), Status(500, "InternalError"), Reset(), Truncate(20)])
def test_faults_of_the_wire_pass_by(remote: str, faults: FaultProxy, output: Path, fault: Fault, quick: None) -> None:
    latents = latentmill.open(remote)
    faults.add("GetObject", fault, times=4)
    assert torch.equal(latents[5]["latent"], latentmill.open(output)[5]["latent"])
    assert faults.count("GetObject", path="/data/") == 5


def test_a_store_that_fails_for_good_is_a_storage_error(remote: str, faults: FaultProxy, quick: None) -> None:
    latents = latentmill.open(remote)
    faults.add("GetObject", Status(503, "SlowDown"), times=10_000)
    with pytest.raises(latentmill.StorageError, match="v1/data/"):
        latents[5]
    assert faults.count("GetObject", path="/data/") == 1 + retry.ATTEMPTS


def test_wrong_credentials_are_refused_at_once(remote: str, faults: FaultProxy, monkeypatch: Any) -> None:
    monkeypatch.setattr(retry.time, "sleep", None)
    faults.add("*", Status(403, "InvalidAccessKeyId"), times=10_000)
    with pytest.raises(latentmill.AccessError, match=r"spec\.json: access was refused"):
        latentmill.open(remote)


def test_no_credentials_are_refused_at_once(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.time, "sleep", None)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(latentmill.AccessError, match="credentials"):
        latentmill.open(remote)


def test_one_request_for_one_latent(remote: str, faults: FaultProxy) -> None:
    latents = latentmill.open(remote)
    for position in range(6):
        latents[position]
    assert faults.count("GetObject", path="/data/") == 6
    assert latents.reader._files.remote.ranges


def test_reading_goes_on_when_the_store_closes_idle_connections(remote: str, output: Path, faults: FaultProxy) -> None:
    latents, want = latentmill.open(remote), latentmill.open(output)
    latents[0]
    ranges = latents.reader._files.remote.ranges
    assert ranges
    for connections in ranges._idle.values():
        connections.append((time.monotonic(), http.client.HTTPConnection("127.0.0.1", 1)))
    assert torch.equal(latents[1]["latent"], want[1]["latent"])


def test_a_signed_address_that_ran_out_is_signed_again(remote: str, output: Path, faults: FaultProxy) -> None:
    latents, want = latentmill.open(remote), latentmill.open(output)
    faults.add("GetObject", Status(403, "AccessDenied"), path="/data/")
    assert torch.equal(latents[1]["latent"], want[1]["latent"])
    assert torch.equal(latents[2]["latent"], want[2]["latent"])
    assert faults.count("GetObject", path="/data/") == 3


@pytest.mark.parametrize("options", [{"client_kwargs": {"verify": False}}, {"config_kwargs": {"connect_timeout": 9}}])
def test_what_only_s3fs_can_do_is_left_to_it(remote: str, output: Path, options: dict[str, Any]) -> None:
    latents = latentmill.open(remote, storage_options=options)
    assert torch.equal(latents[1]["latent"], latentmill.open(output)[1]["latent"])
    assert latents.reader._files.remote.ranges is None


def test_a_bucket_that_is_not_there(s3: S3) -> None:
    with pytest.raises(latentmill.OpenError, match="s3://no-such-bucket/v1 is not an output"):
        latentmill.open("s3://no-such-bucket/v1")


def test_options_reach_the_store(remote: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    options = {"key": "test-access-key", "secret": "test-secret-key", "endpoint_url": endpoint}
    assert len(latentmill.open(remote, storage_options=options)) == 24


def test_any_fsspec_store(output: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/reader-test/v1", recursive=True)
    ours, want = latentmill.open("memory://reader-test/v1"), latentmill.open(output)
    assert ours.digest == want.digest
    assert torch.equal(ours[7]["latent"], want[7]["latent"])
    memory.rm("/reader-test", recursive=True)


def test_a_scheme_that_nobody_knows(output: Path) -> None:
    with pytest.raises(latentmill.StorageError, match=r"nosuch://bucket/v1.*[Pp]rotocol"):
        latentmill.open("nosuch://bucket/v1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait no longer than a test should."""
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.001)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
