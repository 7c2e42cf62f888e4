"""Faults of the output: a kill just after the PUT of a data file, a full store, a full or sealed disk."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.lab import Lab, LawBrokenError
from tests.chaos.laws import Files, local_paths, reader
from tests.chaos.scenarios import LEFT, OK, Result, resume

BUCKET = "chaos"


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """moto's S3 server behind a proxy that breaks requests."""

    proxy: Any
    client: Any
    """boto3, straight to the server."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def paths(self, prefix: str) -> list[str]:
        """Objects below a prefix, relative to it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", ())]

    def files(self, prefix: str, folder: str) -> Files:
        """What stands in a folder."""
        paths = [path for path in self.paths(prefix) if path.startswith(folder) and path.endswith(".parquet")]
        keys = {path.removeprefix(folder): f"{prefix}/{path}" for path in paths}
        return {name: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for name, key in keys.items()}

    def fill(self, prefix: str, given: Files) -> None:
        """Put what an output holds before the first run."""
        for path, data in given.items():
            self.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=data)


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A store of our own on a private port."""
    from tests.fault_proxy import FaultProxy
    from tests.s3 import ThreadedMotoServer, _one_write_at_a_time, boto3  # moto takes a second to import

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    server._server.app = _one_write_at_a_time(server._server.app)
    port = server.get_host_and_port()[1]
    proxy = FaultProxy(port)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="test-access-key",
        aws_secret_access_key="test-secret-key",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield ObjectStore(proxy, client)
    finally:
        proxy.close()
        server.stop()


def kill_after_put(lab: Lab, result: Result, kills: int) -> None:
    """The driver is killed when a data file has been put, and nobody has been told."""
    from tests.fault_proxy import Hold

    rng, folder = lab.rng("put"), lab.work.folder
    with object_store() as store:
        while result.kills < kills:
            name = lab.output().name
            uri, order = f"s3://{BUCKET}/{name}", {"environment": store.environment, "pause": 0.0}
            store.fill(name, lab.given)
            with reader(lambda name=name: store.files(name, folder), lab.expected, poisoned=False) as wrong:
                hold = Hold()
                path, every = f"/{name}/{lab.work.writes[-1]}", rng.randint(1, len(lab.expected))
                store.proxy.add("PutObject", hold, path=path, every=every)
                run = lab.start(uri, **order)
                if not run.wait(hold.reached.is_set):
                    raise LawBrokenError(f"no data file was put:\n{run.tail()}")
                result.kills += run.signal(signal.SIGKILL)
                hold.release.set()
                run.end()
                store.proxy.clear()
                if not store.files(name, folder):
                    result.broken.append("the data file that was put is not there")
                lab.start(uri, **order).expect(OK)
            result.broken += wrong
            result.add(lab, store.files(name, folder), {}, store.paths(name), run.diary)


def full_store(lab: Lab, result: Result, kills: int) -> None:
    """An object store that refuses every part and data file as full, then has room again."""
    from tests.fault_proxy import Status

    folder = lab.work.folder
    with object_store() as store:
        name = lab.output().name
        store.fill(name, lab.given)
        uri, order = f"s3://{BUCKET}/{name}", {"environment": store.environment, "pause": 0.0}
        with reader(lambda: store.files(name, folder), lab.expected, poisoned=False) as wrong:
            for path in lab.work.writes:
                store.proxy.add("PutObject", Status(507, "XMinioStorageFull"), times=10**9, path=f"/{name}/{path}")
                run = lab.start(uri, **order)
                run.expect(LEFT)
                if path not in run.tail() or "XMinioStorageFull" not in run.tail():
                    result.broken.append(f"does not say that the store is full:\n{run.tail()}")
                store.proxy.clear()
            lab.start(uri, **order).expect(OK)
        result.broken += wrong
        result.add(lab, store.files(name, folder), {}, store.paths(name), run.diary)


@contextlib.contextmanager
def disk(lab: Lab, num_bytes: int) -> Iterator[Path | None]:
    """A file system of so many bytes, or None where this user may not mount one."""
    folder = lab.output()
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def full_disk(lab: Lab, result: Result, kills: int) -> None:
    """A disk that is full half way, then has room again."""
    whole = (path.stat().st_size for path in lab.undisturbed.rglob("*") if path.is_file())
    half = (_on_disk(map(len, lab.given.values())) + _on_disk(whole)) // 2
    with disk(lab, half) as output:
        if output is None:
            result.skipped = "may not mount a small disk"
            return
        lab.fill(output)
        with reader(lambda: lab.files(output), lab.expected, poisoned=False) as wrong:
            run = lab.start(output, pause=0.0)
            run.expect(LEFT)
            if "No space left" not in run.tail(100_000):
                result.broken.append(f"does not say that the disk is full:\n{run.tail()}")
            remount(output, f"size={1 << 28}")
            resume(lab, result, output)
        result.broken += wrong
        result.add(lab, lab.files(output), {}, local_paths(output), run.diary)


def _on_disk(sizes: Iterable[int]) -> int:
    """Bytes that files of these sizes take: whole pages."""
    return sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)


def read_only(lab: Lab, result: Result, kills: int) -> None:
    """An output that cannot be written: a clear error before anything starts."""
    with disk(lab, 1 << 20) as output:
        if output is None:
            result.skipped = "may not mount a disk to seal"
            return
        lab.fill(output)
        remount(output, "ro")
        run = lab.start(output)
        run.expect(LEFT)
        if "Read-only file system" not in run.tail() or "Traceback" in run.tail():
            result.broken.append(f"no clear error:\n{run.tail()}")
        if more := set(local_paths(output)) - lab.given.keys():
            result.broken.append(f"written all the same: {more}")
