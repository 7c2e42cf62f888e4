"""Law: the command says what it is, guesses what was meant, and ends with the code that it computed, whatever its
reader and the threads of its libraries do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def latentmill(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "jobs.cli", *arguments)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_version_and_guesses() -> None:
    assert latentmill("--version").stdout.startswith("latentmill ")
    mistyped = latentmill("encdoe")
    assert mistyped.returncode == 2
    assert "did you mean 'encode'?" in mistyped.stderr
    flag = latentmill("status", "--ouptut", "x")
    assert flag.returncode == 2
    assert "--output" in flag.stderr


@pytest.mark.parametrize("arguments", [["encode", "--help"], ["--help"]])
def test_a_reader_that_has_had_enough(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1, 141)


ARROW_AT_THE_END = """
import io, sys
import pyarrow as pa, pyarrow.parquet as pq
from jobs.process import run_command

def main() -> int:
    class Slow(io.BytesIO):  # read by Arrow's threads, which ask for Python's lock when they let go of it
        def read(self, *n):
            return super().read(*n)
    sink = io.BytesIO()
    pq.write_table(pa.table({str(i): list(range(1000)) for i in range(50)}), sink)
    for _ in range(20):
        pq.ParquetFile(Slow(sink.getvalue()), pre_buffer=True).read()
    print("printed")
    return 3

run_command(main)
"""


def test_the_code_is_the_computed_one() -> None:
    done = python("-c", ARROW_AT_THE_END)
    assert (done.returncode, done.stdout) == (3, "printed\n"), done.stderr


def test_a_disk_that_is_full_is_no_success() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "jobs.cli", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
