"""Every bench runs, and its options are those that it tells."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

import jobs.bench

SMALLEST = {
    "stream": ["--clips", "8", "--rounds", "1", "--cases", "encode-bound", "memory"],
    "encoder": ["--shape", "1", "32", "32", "--dtype", "float32", "--rounds", "1"],
    "chunking": ["--size", "16"],
    "decode": ["--seconds", "1", "--rounds", "1", "--cases", "720p"],
    "plan": ["--shards", "8"],
    "driver": [
        *("--open-clips", "1000", "--shards", "20", "--open-shards", "5", "--commits", "2", "--in-flight", "2"),
        *("--seal-shards", "4", "--request-ms", "1"),
    ],
    "simulate": ["--encoders", "2", "4", "--seconds", "10"],
    "forecast": ["--clips", "16", "--measured", "4", "--rounds", "1", "--loads", "encode-bound"],
    "text": ["--captions", "600", "--width", "64", "--layers", "1", "--rounds", "1", "--resumed", "200"],
    "export": ["--clips", "6", "--rounds", "1"],
    "reader": ["--clips", "12", "--rows", "2000", "--rounds", "1"],
    "gpu": ["--tiny"],
}
FIGURES = {
    "stream": r"encode-bound  +\d+\.\d\d  of plain loop(.|\n)*memory +peak [1-9]\d* MiB",
    "encoder": r"float32 1x32x32, 1 threads: \d+\.\d\dx diffusers(.|\n)*our time: ",
    "chunking": r"\| alike \| noise \|( [\d.e-]+ \|){8}",
    "decode": r"latentmill +[\d.]+ +1\.00",
    "plan": r"seal: 800 rows of 8 shards",
    "driver": r"open: 1,000 clips(.|\n)*: 0, 0\npassing: 2,000 clips(.|\n)*rows: (.|\n)*commit: 2(.|\n)*seal: 400 rows",
    "simulate": r"limit\n +2 +\d+ +\d\.\d\d(.|\n)*\n +4 +\d+ +\d\.\d\d",
    "forecast": r"encode-bound +\d+\.\d\d .*planned \d+\.\d\d clips/s, run \d+\.\d\d clips/s",
    "text": r"text: \d+\.\d\d of the bare loop(.|\n)*resume: 200 captions in 5 shards",
    "export": r"pt: 6 clips(.|\n)*export +\d+ MB/s +\d+\.\d\d of copy(.|\n)*webdataset: 6 clips",
    "reader": r"local: 12(.|\n)*latentmill +[\d.]+ ms/clip(.|\n)*s3: (.|\n)*resume(.|\n)*memory of its own",
    "gpu": r"copy of (.|\n)*level 0(.|\n)*device idle(.|\n)*production(.|\n)*equal bytes(.|\n)*this bench",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", jobs.bench.BENCHES)
def test_runs_at_its_smallest(name: str) -> None:
    if name == "encoder" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    command = [sys.executable, "-m", "jobs.bench", name, *SMALLEST[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.search(FIGURES[name], done.stdout), done.stderr


@pytest.mark.slow
def test_the_encoder_of_wan() -> None:
    pytest.importorskip("diffusers")
    command = [sys.executable, "-m", "jobs.bench", "encoder", "--vae", "wan", *SMALLEST["encoder"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.search(r"float32 1x32x32(.|\n)*by CPU time(.|\n)*peak memory(.|\n)*% in convolutions", done.stdout), (
        done.stderr
    )


@pytest.mark.parametrize("name", jobs.bench.BENCHES)
def test_tells_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        jobs.bench.main([name, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert f"python -m jobs.bench {name}" in shown
    assert all(option in shown for option in SMALLEST[name] if option.startswith("--"))


@pytest.mark.parametrize("argv", [[], ["--help"], ["nothing"], ["all", "--rounds", "1"]])
def test_without_a_bench_it_lists_them(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.bench.main(argv) == (0 if argv in ([], ["--help"]) else 2)
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in (*jobs.bench.BENCHES, "all"))
