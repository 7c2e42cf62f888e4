"""Laws: every kind of run ends with the same exit codes and writes the same events, because one engine drives them; an
output that cannot be written ends any run; a shard that another run holds is waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.process import report_errors
from pipeline.errors import ChangedError, ConfigError, EncoderError, StorageError
from pipeline.runs.claims import NoClaims
from pipeline.runs.passes import LOSSES, MAX_FAILED_WRITES, Passes
from pipeline.runs.progress import Progress
from pipeline.runs.stop import STATUS, Stop
from pipeline.runs.summary import CONFIG, LEFT, OK, REJECTED, Ending, RunSummary
from pipeline.runs.work import Outcome
from pipeline.storage import Storage
from tests.reader.made import write_output
from tests.test_run import make_tar
from tests.text.checkpoints import encoders as encoders
from tests.videos import make_video

Flags = dict[str, list[str]]
ENGINE = {"pass_begun", "shard_committed", "progress", "run_ended"}


def of_encode(folder: Path, _: Any) -> list[str]:
    make_tar(folder / "a.tar", {"one": make_video(num_frames=60, width=96, height=64)})
    small = ["--num-frames", "9", "--height", "32", "--width", "48", "--fps", "8", "--object-store-gb", "0.1"]
    return ["--source", f"{folder}/a.tar", "--output", f"{folder}/out", "--vae", "tiny", *small]


def of_text(folder: Path, encoders: Callable[[str], Path]) -> list[str]:
    write_output(folder / "out", num_shards=1)
    return ["--output", f"{folder}/out", "--encoder", str(encoders("t5")), "--object-store-gb", "0.1"]


def of_export(folder: Path, _: Any) -> list[str]:
    write_output(folder / "out", 1)
    return ["--output", f"{folder}/out", "--to", "pt", "--into", f"{folder}/to", "--workers", "1"]


def of_import(folder: Path, _: Any) -> list[str]:
    (folder / "source").mkdir()
    torch.save(torch.randn(4, 3, 2, 4), folder / "source/a.pt")
    return ["--from", "pt", "--source", f"{folder}/source", "--output", f"{folder}/out", "--fps", "8", "--workers", "1"]


KINDS: dict[str, tuple[Callable[[Path, Any], list[str]], list[str]]] = {
    "encode": (of_encode, ["--seed", "7"]),
    "text": (of_text, ["--max-length", "9"]),
    "export": (of_export, ["--bucket", "2x1x2x3"]),
    "import": (of_import, ["--scale", "0.5"]),
}
"""Of each kind: the flags of a run, and a setting that differs from it."""
ON_RAY = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("encode", "text")]


@pytest.mark.parametrize("kind", [*ON_RAY, "export", "import"])
def test_every_kind_of_run_has_the_same_events_and_codes(
    kind: str, encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    prepare, another_setting = KINDS[kind]
    flags = prepare(tmp_path, encoders)
    code, events = command(kind, flags)
    assert code == OK
    assert {event["event"] for event in events} >= ENGINE
    (committed, *_) = [event for event in events if event["event"] == "shard_committed"]
    assert committed["shard"]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert last["shards_done"] == last["shards"] >= 1
    (ended,) = [event for event in events if event["event"] == "run_ended"]
    assert (ended["open_shards"], ended["stopped"], ended["gave_up"]) == ({}, "", "")

    assert command(kind, [*flags, *another_setting])[0] == CONFIG
    code, events = command(kind, flags)  # nothing is left
    assert code == OK
    assert "shard_committed" not in {event["event"] for event in events}


def command(kind: str, flags: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the events on stderr."""
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}
    run = [sys.executable, "-m", "jobs.cli", kind, *flags, "--log-json"]
    done = subprocess.run(
        run, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("x"), CONFIG), (ChangedError("x"), CONFIG), (StorageError("x"), LEFT), (EncoderError("x"), LEFT)],
)
def test_an_error_is_one_line_and_a_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise error

    assert report_errors("any", fails) == code
    assert capsys.readouterr().err == "latentmill any: x\n"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, OK),
        ({"stopped": "SIGTERM"}, OK),
        ({"open_shards": {"a": "x"}}, LEFT),
        ({"open_shards": {"a": "x"}, "stopped": "SIGTERM"}, STATUS["SIGTERM"]),
        ({"open_shards": {"a": "x"}, "gave_up": "y"}, REJECTED),
    ],
)
def test_the_code_follows_from_what_is_left(changes: dict[str, Any], code: int) -> None:
    assert RunSummary(**changes).exit_code() == code


class Files:
    """A Work: an empty file for each name. `outcomes` says what comes of a name instead, pass by pass."""

    def __init__(self, output: Storage, names: str, outcomes: dict[str, list[Outcome]]) -> None:
        self._output, self._left, self._outcomes = output, list(names), outcomes
        self.progress = Progress(num_shards=len(names))
        self.passes = 0

    def left(self) -> list[str]:
        return self._left

    def look(self) -> None:
        self._left = [name for name in self._left if not self._output.exists(name)]

    def make(self) -> Generator[Outcome, None, None]:
        self.passes += 1
        for name in self._left:
            if planned := self._outcomes.get(name):
                yield planned.pop(0)
            else:
                self._output.create(name, b"")
                yield Outcome(shard=name, state="done", write="file")

    def summary(self, ending: Ending) -> RunSummary:
        return RunSummary(**ending)


def driven(folder: Path, names: str, **outcomes: list[Outcome]) -> tuple[Files, RunSummary]:
    output, stop = Storage(str(folder)), Stop(1)
    work = Files(output, names, outcomes)
    passes = Passes(work, output, lambda _: None, 60.0)
    with passes.recorded(stop):
        passes.drive(NoClaims(), stop)
    return work, passes.ended


def failed(name: str, write: str = "") -> Outcome:
    return Outcome(shard=name, state="open", message="no luck", write=write)


def test_what_failed_is_tried_again_until_a_pass_makes_nothing(tmp_path: Path) -> None:
    work, summary = driven(tmp_path, "abc", b=[failed("b")], c=[failed("c")] * 9)
    assert (work.passes, summary.open_shards) == (3, {"c": "no luck"})


def test_writes_that_fail_in_a_row_end_the_run_and_others_do_not(tmp_path: Path) -> None:
    names = "abcdefgh"
    assert driven(tmp_path / "read", names, **{name: [failed(name)] for name in names[1:]})[1].is_whole
    with pytest.raises(StorageError, match=f"{MAX_FAILED_WRITES} failures in a row.*no luck.*resume") as raised:
        driven(tmp_path / "write", names, **{name: [failed(name, "file")] for name in names[1:]})
    assert raised.value.__notes__[0].startswith("left: b")
    assert (tmp_path / "write/a").exists()


def test_what_is_lost_is_made_again_but_not_for_ever(tmp_path: Path) -> None:
    lost = Outcome(shard="a", state="lost")
    assert driven(tmp_path / "some", "a", a=[lost] * LOSSES)[1].is_whole
    work, summary = driven(tmp_path / "many", "a", a=[lost] * 99)
    assert (work.passes, summary.open_shards) == (LOSSES + 1, {"a": "not begun"})


def test_a_run_that_is_hopeless_ends_and_says_so(tmp_path: Path) -> None:
    work, summary = driven(tmp_path, "ab", a=[Outcome(shard="a", state="hopeless", message="all bad")])
    assert (work.passes, summary.gave_up, summary.exit_code()) == (1, "all bad", REJECTED)
