"""Law: an output that began before rounded times were recovered goes on, verifies and is re-encoded with its rule."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.verify import main as verify
from pipeline.errors import ConfigError
from pipeline.output.spec_file import check, load_spec
from pipeline.settings.job import Job
from pipeline.settings.spec import Spec, diff
from pipeline.stages import tables
from pipeline.storage import Storage
from tests.outputs import make_output
from tests.small import CLIP, spec
from tests.sources import make_tar
from tests.videos import make_video
from vae.info import VAEInfo

RULE = replace(CLIP, fps="24")
BEFORE = replace(RULE, times="as_stored")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tar with a Matroska of 24 frames a second."""
    video = make_video(fps=24, time_base=Fraction(1, 24), container="matroska", num_frames=24, width=96, height=64)
    (path := tmp_path / "one.tar").write_bytes(make_tar([("a.mkv", video)]))
    return path


def times(out: Path) -> list[float]:
    (data,) = (out / "data").glob("*.parquet")
    (seconds,) = pq.read_table(data, columns=["timestamps_sec"])["timestamps_sec"].to_pylist()
    return [round(1000 * one, 6) for one in seconds]


def test_an_output_of_before_goes_on_verifies_and_is_encoded_again_with_its_rule(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    Storage(str(out)).put("spec.json", text := spec(BEFORE).to_json().encode())
    assert b'"times"' not in text
    make_output(source, out, RULE)
    assert (out / "spec.json").read_bytes() == text
    assert times(out) == [0, 0, 83, 125, 125, 208, 250, 250, 333]
    assert verify(["--output", str(out), "--reencode", "9"]) == 0
    assert "equal bytes" in capsys.readouterr().out


def test_a_new_output_states_the_new_rule(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_output(source, out, RULE)
    assert json.loads((out / "spec.json").read_bytes())["clip"]["times"] == "exact"
    assert times(out) == [round(1000 * n / 24, 6) for n in range(9)]
    assert verify(["--output", str(out), "--reencode", "9"]) == 0
    with pytest.raises(ConfigError, match=r"clip\.times: as_stored in this run, exact there"):
        check(Storage(str(out)), spec(BEFORE))


def test_a_run_decodes_with_the_rule_of_its_output(tmp_path: Path) -> None:
    output = Storage(str(tmp_path))
    output.put("spec.json", spec(BEFORE).to_json().encode())
    found = check(output, spec(RULE))
    assert found == load_spec(output) == Spec.from_json(spec(BEFORE).to_json())
    assert not diff(found.to_json(), spec(BEFORE).to_json())
    job = Job(source=("a",), output=str(tmp_path), vae="tiny", clip=RULE)
    stages = tables.stages_of(job, found, VAEInfo(**found.vae), read=None, decode=None, encode=tables.load_encoder)  # type: ignore[arg-type]
    assert stages.decode.clip.times == "as_stored"
