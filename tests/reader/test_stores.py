"""Law: what `encode` can write, every command that reads an output can read, on each kind of store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

import latentmill
from jobs import cat, export, head, ls, report, stats, verify
from latentmill.format import STATISTICS
from latentmill.store.files import Files
from pipeline.export import pieces
from tests.outputs import CLIPS, make_output
from tests.sources import make_tar
from tests.text.checkpoints import encoders as encoders
from tests.text.made import write_text
from tests.videos import make_video

pytest_plugins = ["tests.s3", "tests.azure"]

STORES = ["disk", "s3", "azure", "memory"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    video = make_video(num_frames=60, width=96, height=64)
    for name in "ab":
        (folder / f"{name}.tar").write_bytes(make_tar([(f"{name}.mp4", video), (f"{name}.txt", b"a caption")]))
    return folder


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an output that is not there yet."""
    pieces._opened.cache_clear()
    match request.param:
        case "disk":
            yield str(tmp_path / "out")
        case "s3":
            yield request.getfixturevalue("s3").uri("out")
        case "azure":
            yield f"{request.getfixturevalue('azure')}/out"
        case "memory":
            yield f"memory://{tmp_path.name}/out"
            fsspec.filesystem("memory").store.clear()


@pytest.fixture
def no_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages that would read these stores otherwise are not installed."""
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)


def test_every_command_reads_what_encode_wrote(
    place: str,
    source: Path,
    tmp_path: Path,
    encoders: Callable[[str], Path],
    no_other_client: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_output(source / "*.tar", place, CLIPS)
    write_text(place, encoders("t5"))  # reads the captions through the same client
    make_output(source / "*.tar", tmp_path / "same", CLIPS)
    ours, want = latentmill.open(place, text="t5", columns=STATISTICS.names), latentmill.open(tmp_path / "same")
    assert ours.digest == want.digest
    assert ours.statistics
    for batch, other in zip(ours.loader(batch_size=2), want.loader(batch_size=2), strict=True):
        assert torch.equal(batch["latent"], other["latent"])
        assert len(batch["text"]) == 2
    for command in (ls, head):
        assert command.main([place]) == 0
        shown = capsys.readouterr().out
        assert (ours.digest if command is ls else want[0]["id"]) in shown
    assert cat.main([place, "0", "--to", str(tmp_path / "latent.pt")]) == 0
    assert torch.equal(torch.load(tmp_path / "latent.pt")["latent"], want[0]["latent"])
    assert stats.main(["--output", place]) == 0
    assert verify.main(["--output", place]) == 0
    assert report.main(["--output", place, "--to", str(tmp_path / "report.html"), "--clips", "1"]) == 0
    assert want[0]["key"] in (tmp_path / "report.html").read_text()
    to = ["--to", "pt", "--into", str(tmp_path / "exported"), "--text", "t5", "--workers", "1"]
    assert export.main(["--output", place, *to]) == 0
    assert f"of {len(want)}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("place", ["azure"], indirect=True)
def test_workers_of_a_loader_start_in_a_way_that_its_client_survives(place: str, source: Path) -> None:
    """The client of obstore has been used before, and a fork of this process would wait for ever for its threads."""
    make_output(source / "*.tar", place, CLIPS)
    latents = latentmill.open(place)
    alone = [batch["id"] for batch in latents.loader(batch_size=2)]
    assert [batch["id"] for batch in latents.loader(batch_size=2, workers=1)] == alone
    with pytest.raises(latentmill.StorageError, match="does not survive a fork"):
        list(latents.loader(batch_size=2, workers=1, multiprocessing_context="fork"))


def test_ranges_of_every_store_are_those_of_the_file(place: str) -> None:
    from pipeline.storage import Storage

    content = bytes(range(256)) * 20
    Storage(place).put("data/x", content)
    files = Files(place)
    assert list(files.list("data/")) == ["data/x"]
    assert files.list("nothing/") == {}
    assert files.read("data/x") == content
    assert files.read("data/x", 100, 200) == content[100:200]
    assert files.read("data/x", 5000, 9000) == content[5000:]
    first, second = bytearray(10), bytearray(300)
    files.read_into("data/x", 40, [memoryview(first), memoryview(second)])
    assert first + second == content[40:350]
    with pytest.raises(EOFError, match=f"data/x ends at byte {len(content)}, before {len(content) + 5}"):
        files.read_into("data/x", len(content) - 5, [memoryview(first)])
    with files.open("data/x") as file:
        file.seek(-20, 2)
        assert file.read() == content[-20:]
        file.seek(3)
        assert file.read(4) == content[3:7]
    with pytest.raises(latentmill.NotFoundError):
        files.read("data/y")
