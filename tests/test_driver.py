"""Laws: what is staged is trusted only while its checksum fits, and what is not is made again, in the same run; an
output that cannot be written ends the run after a stated number of failures, and nothing is lost by that."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.control.clip_work import ClipWork
from pipeline.control.summary import Summary
from pipeline.errors import StorageError
from pipeline.guard.strikes import Strikes
from pipeline.output.commit import Committed, commit
from pipeline.output.layout import part_path
from pipeline.output.parts import read_verdict, stage
from pipeline.plan.frozen import make_plan
from pipeline.receipts import Receipt, RejectionReceipt, UnstoredReceipt
from pipeline.records import Chunk, ChunkId, CompleteShard, Rejection, Video
from pipeline.runs.claims import Claims, Owner
from pipeline.runs.passes import LOSSES, MAX_FAILED_WRITES, Passes
from pipeline.runs.stop import Stop
from pipeline.settings.spec import LatentRule
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decoder
from pipeline.stages.encode_chunk import Encoder
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage
from tests.outputs import CLIPS
from tests.small import HEALTHY, spec
from tests.sources import make_tar
from tests.videos import make_video
from vae.info import VAEInfo

LATENT = LatentRule(dtype="float32")
SPEC = spec(CLIPS, LATENT)
REJECTION = Rejection(reason="decode_crashed", stage="decode", message="m", key="b", uri="u", start="0")


class Run:
    """A job without Ray: the stages one after the other, the real driver over them."""

    def __init__(self, source: Path, output: Path, *, allow_private: bool = False, **settings: Any) -> None:
        self.output = Storage(str(output))
        self.work = ClipWork(self.output, make_plan(self.output, [str(source)]), SPEC, **settings)
        self.run = Passes(self.work, self.output, lambda _: None, 600.0)
        self.encoded = self.passes = self.commits = 0
        self._read = partial(read_shard, allow_private=allow_private)
        self._decoder = Decoder(clip=CLIPS, latent=LATENT, info=VAEInfo(**SPEC.vae), deadline=HEALTHY)
        self._encoder = Encoder("tiny", SPEC)

    def go(self, commit: Callable[[CompleteShard], Committed] | None = None) -> dict[str, str]:
        """To the end; what is left open, with the reasons."""
        return self.ended(commit).open_shards

    def ended(self, commit: Callable[[CompleteShard], Committed] | None = None, grace: float = 1) -> Summary:
        """Go to the end; what the summary says."""
        self.claims = Claims(self.output, Owner.this_process(self.run.run_id))
        self.work.stream, self.work.release = self._stream, self.claims.release
        self.work.commit = lambda _output, _spec, shard: (commit or self.commit)(shard)
        stop = Stop(grace)
        self.run.drive(self.claims, stop)
        self.run.end(stop)
        return self.run.ended

    def commit(self, shard: CompleteShard) -> Committed:
        self.commits += 1
        return commit(self.output, SPEC.to_json(), shard)

    def _stream(self, shards: list[Shard]) -> Iterator[Receipt]:
        self.passes += 1
        for shard in shards:
            for read in self._read(shard):
                for record in self._decoder(read, Strikes()) if isinstance(read, Video) else [read]:
                    self.encoded += isinstance(record, Chunk)
                    yield self._stage(self._encoder(record) if isinstance(record, Chunk) else record)

    def _stage(self, record: object) -> Receipt:
        try:
            return stage(record, self.output)  # type: ignore[arg-type]
        except StorageError as error:
            return UnstoredReceipt(shard=record.shard, message=str(error))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tar of two videos, of two clips and one."""
    path = tmp_path_factory.mktemp("source") / "a.tar"
    long, short = make_video(num_frames=60, width=96, height=64), make_video(num_frames=33, width=96, height=64)
    path.write_bytes(make_tar([("a.mp4", long), ("b.mp4", short)]))
    return path


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    assert Run(source, output).go() == {}
    return output


def never(_: CompleteShard) -> Committed:
    raise StorageError("no room")


@pytest.fixture
def staged(source: Path, tmp_path: Path) -> tuple[str, Path]:
    """Everything is staged and nothing committed, as after a kill."""
    run = Run(source, tmp_path)
    (name,) = run.go(never)
    assert run.encoded == 3
    return name, tmp_path


def data(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "data").iterdir()}


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_part_is_encoded_again_in_the_same_run(
    source: Path, undisturbed: Path, staged: tuple[str, Path], seed: int
) -> None:
    name, output = staged
    path = output / part_path(ChunkId(shard=name, video=0, clip=1))
    flip(path, random.Random(seed).randrange(8 * path.stat().st_size))
    run = Run(source, output)
    assert run.go() == {}
    assert (run.passes, run.commits, run.encoded) == (2, 2, 1)
    assert data(output) == data(undisturbed)
    assert not list(Storage(str(output)).list("_staging/"))


def test_a_part_of_another_clip_is_not_taken(source: Path, undisturbed: Path, staged: tuple[str, Path]) -> None:
    name, output = staged
    ours, other = (part_path(ChunkId(shard=name, video=0, clip=clip)) for clip in (0, 1))
    (output / ours).replace(output / other)
    run = Run(source, output)
    assert run.go() == {}
    assert run.encoded == 2
    assert data(output) == data(undisturbed)


def test_a_flipped_verdict_is_not_believed(source: Path, undisturbed: Path, staged: tuple[str, Path]) -> None:
    name, output = staged
    verdict = RejectionReceipt(id=ChunkId(shard=name, video=1, clip=0), rejection=REJECTION, verdict=True)
    stage(verdict, Storage(str(output)))
    (output / part_path(ChunkId(shard=name, video=1, clip=0))).unlink()
    assert read_verdict(Storage(str(output)), name, 1, 0) == REJECTION
    (path,) = output.glob("_staging/*/*.verdict.json")
    flip(path, 8 * (path.read_bytes().index(b'"m"') + 1))  # another message
    run = Run(source, output)
    assert run.go() == {}
    assert run.encoded == 1
    assert data(output) == data(undisturbed)


def test_parts_that_are_lost_again_and_again_end_the_run(source: Path, tmp_path: Path) -> None:
    run = Run(source, tmp_path)

    def commit(shard: CompleteShard) -> Committed:
        for path in tmp_path.glob("_staging/*/*.part"):
            flip(path, 0)
        return run.commit(shard)

    assert len(run.go(commit)) == 1
    assert run.passes == LOSSES + 1


@pytest.mark.parametrize("error", [StorageError("no room"), KeyError("a bug")])
def test_a_commit_that_fails_whatever_it_raises_leaves_its_shard_open(
    source: Path, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def commit(shard: CompleteShard) -> Committed:
        raise error

    run = Run(source, tmp_path)
    assert len(run.go(commit)) == run.passes == 1
    (line,) = [record.getMessage() for record in caplog.records if "commit failed" in record.getMessage()]
    assert type(error).__name__ in line
    assert "\n" not in line


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    """The folders of the shards' parts are files, so no part can be put."""
    source = tmp_path / "a.tar"
    source.write_bytes(make_tar([("a.mp4", make_video(num_frames=240, width=96, height=64))]))
    run = Run(source, tmp_path / "out")
    (shard,) = run.work.left()
    blocked = tmp_path / "out" / "_staging" / shard
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.touch()
    with pytest.raises(StorageError, match=f"{MAX_FAILED_WRITES} failures in a row.*File exists.*resume") as raised:
        run.go()
    assert "\n" not in str(raised.value)
    assert run.encoded == MAX_FAILED_WRITES
    assert not list(run.output.list("_claims/"))
    blocked.unlink()
    assert Run(source, tmp_path / "out").go() == {}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
