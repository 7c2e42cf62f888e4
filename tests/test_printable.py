"""Law: control characters of a caption, a name or an error are shown escaped; they never reach the terminal."""

from __future__ import annotations

import logging
import sys
import unicodedata
from pathlib import Path

import pytest

from jobs import cat, head, ls, report, stats, status
from jobs.process import log_to_stderr
from pipeline.output.wording import on_one_line, printable
from tests.outputs import make_output, rewrite, shard
from tests.sources import make_tar
from tests.videos import make_video

EVIL = "\x1b[2J\x1b]0;owned\x07 red \x9b31m \r over \u202e text \x08\x7f"


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text if one != "\n")


def test_every_character_that_steers_a_terminal_is_escaped() -> None:
    for code in range(0x110000):
        shown = printable(chr(code))
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp") and code != 10:
            assert shown.startswith("\\")
            assert shown.isascii()
    assert printable("plain, \u00e9\u4e2d\U0001f600\nline") == "plain, \u00e9\u4e2d\U0001f600\nline"
    assert is_harmless(printable(EVIL))
    assert on_one_line("a\nb") == "a\\nb"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    (tmp_path / "one.tar").write_bytes(make_tar([("a.mp4", make_video(num_frames=30)), ("a.txt", b"x")]))
    make_output(tmp_path / "one.tar", tmp_path / "out")
    out = tmp_path / "out"

    def change(rows: list[dict[str, object]], footer: dict[str, object]) -> None:
        for row in rows:
            row["caption"] = f"{EVIL}\nid          forged"
            row["key"] = EVIL

    rewrite(out, shard(out), change)
    return out


def test_no_command_prints_control_characters(
    evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    nowhere = str(tmp_path / f"no{EVIL.replace(chr(0), '')}")
    commands = [
        (head.main, [str(evil)]),
        (head.main, [str(evil), "--json"]),
        (head.main, [nowhere]),
        (ls.main, [str(evil)]),
        (ls.main, [nowhere]),
        (cat.main, [str(evil), EVIL, "--to", str(tmp_path / "x.npy")]),
        (stats.main, ["--output", str(evil)]),
        (status.main, ["--output", str(evil)]),
        (status.main, ["--output", nowhere]),
        (report.main, ["--output", nowhere]),
    ]
    for main, arguments in commands:
        main(arguments)
        printed = capsys.readouterr()
        assert is_harmless(printed.out + printed.err), (main, arguments)
    head.main([str(evil)])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("id ")]) == 1


def test_the_log_shows_them_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        log_to_stderr(logging.INFO)
        root.handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
        logging.getLogger("x").warning("rejected: %s", EVIL)
    finally:
        root.handlers = before
    printed = capsys.readouterr().err
    assert "rejected: \\x1b[2J" in printed
    assert is_harmless(printed)
