"""Laws: of two runs one holds a shard; its answer is sticky; a dead run's shards are taken over, a living one's not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.runs import claims
from pipeline.runs.claims import Claims, Owner
from pipeline.storage import Storage


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


HERE = Owner.this_process("here")
FAR = replace(HERE, run="far", machine="another machine")


def test_one_run_holds_a_shard_and_every_attempt_gets_the_same_answer(output: Storage) -> None:
    ours, theirs = Claims(output, HERE), Claims(output, FAR)
    assert [ours.take("s"), theirs.take("s"), ours.take("s")] == [True, False, True]
    ours.release("s")
    assert not output.exists("_claims/s")
    assert theirs.take("s") is False
    theirs.release_all()
    assert theirs.take("s") is True


def test_a_claim_that_nobody_renewed_is_taken_over(output: Storage, tmp_path: Path) -> None:
    assert Claims(output, FAR).take("s")
    fresh = Claims(output, HERE)
    assert not fresh.take("s")
    path = tmp_path / "_claims" / "s"
    old = path.stat().st_mtime - claims.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert not fresh.take("s")  # sticky
    late = Claims(output, HERE)
    assert late.take("s")
    assert b'"here"' in path.read_bytes()


def test_a_claim_from_the_future_is_stale_when_it_was_seen_unchanged_for_as_long(
    output: Storage, tmp_path: Path
) -> None:
    """The clock was set back by a day after the run that held it died."""
    assert Claims(output, FAR).take("s")
    path, now = tmp_path / "_claims" / "s", [0.0]
    ours = Claims(output, HERE, lambda: now[0])
    for ahead in (86_400, 90_000):  # the first is renewed meanwhile: its run lives
        future = path.stat().st_mtime + ahead
        os.utime(path, (future, future))
        assert not ours.take("s")
        now[0] += claims.STALE_SECONDS - 1
        ours.release_all()
        assert not ours.take("s")
        ours.release_all()
    now[0] += 1
    assert ours.take("s")


@pytest.mark.parametrize("claim", [b"", b"\xff\x00", b"null", b"[1]", b'{"run": "x"}', b'{"run": 1, "nothing": 2}'])
def test_a_claim_that_cannot_be_read_is_nobodys_and_goes_stale_by_age(
    output: Storage, tmp_path: Path, claim: bytes
) -> None:
    output.put("_claims/s", claim)
    assert not Claims(output, HERE).take("s")
    path = tmp_path / "_claims" / "s"
    old = path.stat().st_mtime - claims.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert Claims(output, HERE).take("s")


def test_a_shard_that_another_run_has_committed_and_let_go_of_is_not_taken(output: Storage) -> None:
    theirs, ours = Claims(output, FAR), Claims(output, HERE)
    assert theirs.take("s")
    output.put("data/s.parquet", b"theirs")
    theirs.release("s")
    assert not ours.take("s")
    assert not output.exists("_claims/s")


def test_renewing_keeps_a_claim_fresh(output: Storage, tmp_path: Path) -> None:
    holder = Claims(output, FAR)
    assert holder.take("s")
    path = tmp_path / "_claims" / "s"
    old = path.stat().st_mtime - claims.STALE_SECONDS - 1
    os.utime(path, (old, old))
    holder.renew()
    assert not Claims(output, HERE).take("s")


def test_the_claim_of_a_dead_driver_on_this_machine_is_taken_over_at_once(output: Storage) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        living = replace(HERE, run="other", pid=other.pid, started=claims._started(other.pid))
        assert Claims(output, living).take("s")
        assert not Claims(output, HERE).take("s")
        other.communicate(b"\n")
    ours = Claims(output, HERE)
    assert ours.take("s")
    assert ours.taken_over() == [("s", "other")]
    assert ours.taken_over() == []


def test_a_number_that_came_back_is_another_process() -> None:
    assert not HERE.is_dead()
    assert replace(HERE, started="1").is_dead()
    assert not replace(HERE, machine="").is_dead()


def test_after_a_stop_no_shard_is_taken(output: Storage) -> None:
    run = Claims(output, HERE)
    assert run.take("s")
    run.stop()
    assert run.take("s")
    assert not run.take("t")
    assert not output.exists("_claims/t")


def test_what_is_released_while_it_is_renewed_stays_released(tmp_path: Path) -> None:
    """The release ends before the put of the renewal does."""

    class Overtaken(Storage):
        def put(self, path: str, data: bytes | Path) -> None:
            ours.release("s")
            super().put(path, data)

    ours = Claims(Overtaken(str(tmp_path)), HERE)
    assert ours.take("s")
    ours.renew()
    assert not (tmp_path / "_claims" / "s").exists()
