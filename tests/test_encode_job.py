"""The command line: flags become a Job, what is wrong is refused before Ray starts, exit codes mean what they say."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from jobs import encode
from pipeline.control.pools import Cluster, pools
from pipeline.control.summary import Summary
from pipeline.errors import ConfigError
from pipeline.output.spec_file import check, load_spec
from pipeline.plan.frozen import make_plan
from pipeline.runs.summary import CONFIG, LEFT, OK, REJECTED
from pipeline.settings import overlap
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, Workers
from pipeline.settings.resolve import resolve
from pipeline.settings.spec import LatentRule, Spec, diff
from pipeline.storage import Storage
from tests.outputs import make_output
from tests.small import CLIP
from tests.test_run import make_tar
from tests.videos import make_video

BASE = ["--source", "a.tar", "--output", "out", "--vae", "tiny"]


def test_flags_become_a_job() -> None:
    job = encode.parse(
        [*BASE, "--source", "b.tar", "--num-frames", "17", "--context", "exact", "--encoders", "1:2", "--dry-run"]
    )
    assert job.source == ("a.tar", "b.tar")
    assert (job.clip.num_frames, job.latent.context_windows, job.workers.encoders, job.dry_run) == (
        17,
        None,
        "1:2",
        True,
    )


def test_buckets_have_one_spelling() -> None:
    commas = encode.parse([*BASE, "--buckets", "49x480x720,49x720x480"])
    several = encode.parse([*BASE, "--buckets", "49x480x720", "--buckets", "49x720x480"])
    assert commas == several
    assert commas.clip.shapes == ((49, 480, 720), (49, 720, 480))


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as over:
        encode.parse(["--help"])
    assert over.value.code == 0
    listed = set(re.findall(r"--([a-z][a-z-]+)", capsys.readouterr().out))
    groups = {"clip": ClipRule, "latent": LatentRule, "workers": Workers}
    names = {field.name for kind in (Job, *groups.values()) for field in fields(kind)} - groups.keys()
    assert {name.replace("_", "-") for name in names} <= listed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-frames", "48"], "num-frames must be 1 + 4k for tiny, got 48; nearest: 45 or 49"),
        (["--height", "100"], "multiples of 8"),
        (["--height", "99"], "height"),
        (["--vae", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--encoders", "2:1"], "--encoders must be"),
        (["--encoders", "998:999"], "--encoders 998:999 of 1 CPUs each"),
        (["--gpus-per-encoder", "99"], "--encoders auto of --gpus-per-encoder 99 do not fit on the"),
        (["--output", "/proc/foo"], "--output /proc/foo is no folder and cannot be created: No such file"),
        (["--clips", "every"], "--clips every needs --every SECONDS, which no other --clips takes; got --clips every"),
        (["--every", "2"], "got --clips first and --every 2"),
        (["--deinterlace", "sometimes"], "--deinterlace"),
        (["--context", "some"], "--context must be"),
        (["--scale", "1.5,x"], "--scale must be numbers with commas between, got '1.5,x'"),
        (["--scale", "1,2"], "--scale must be one number or 16, one for each channel, got 2"),
        (["--scale", "0"], "--scale must be finite and above 0, got '0'"),
        (["--shift", "inf"], "--shift must be finite, got 'inf'"),
        (["--schedule", "whole", "--num-frames", "513"], "cannot be cut into chunks"),
        (["--fps", "0"], "fps"),
        (["--max-rejected", "2"], "max-rejected must lie in [0, 1]"),
        (["--source", "nothing-here.tar"], "nothing to read"),
    ],
)
def test_what_is_wrong_is_said_before_ray_starts(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = [] if "--source" in flags else ["--source", "a.tar"]
    base += [] if "--output" in flags else ["--output", "out"]
    make_tar(tmp_path / "a.tar", {"a": b"x"})
    try:
        code: object = encode.main(["--vae", "tiny", *base, *flags])
    except SystemExit as refused:  # by the parser, which wraps its lines
        code = refused.code
    assert code == CONFIG
    printed = capsys.readouterr()
    words = re.sub(r"[^\w/:.+=`\[\]-]+", " ", printed.err + printed.out)
    assert re.sub(r"[^\w/:.+=`\[\]-]+", " ", message) in words
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.tar"]


def test_a_changed_source_is_refused_as_a_setting_is_and_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "a.tar", {"a": b"x"})
    make_plan(Storage(f"{tmp_path}/out"), [f"{tmp_path}/a.tar"])
    make_tar(tmp_path / "a.tar", {"a": b"x", "b": b"another one"})
    assert encode.main(["--source", f"{tmp_path}/a.tar", "--output", f"{tmp_path}/out", "--vae", "tiny"]) == CONFIG
    assert "--on-changed keep" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tar(tmp_path / "a.tar", {"a": make_video(num_frames=2)})
    flags = ["--source", f"{tmp_path}/a.tar", "--output", f"{tmp_path}/out", "--vae", "tiny", "--dry-run"]
    assert encode.main(flags) == OK
    assert "1 shards" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_run_with_nothing_left_ends_without_ray(tmp_path: Path) -> None:
    """Its import alone takes a second, and starting it three more."""
    make_tar(tmp_path / "a.tar", {"a": make_video(num_frames=30)})
    make_output(tmp_path / "a.tar", tmp_path / "out", latent=LatentRule())
    flags = ["--source", f"{tmp_path}/a.tar", "--output", f"{tmp_path}/out", "--vae", "tiny"]
    flags += ["--num-frames", "9", "--height", "32", "--width", "48"]
    check = f"import sys; from jobs import encode; print(encode.main({flags}), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def summary(**changes: object) -> Summary:
    base: dict[str, object] = {
        "planned_shards": 2,
        "done_shards": 2,
        "planned": 4,
        "latents": 3,
        "rejected": {"corrupt": 1},
    }
    return Summary(**base | {"latent_bytes": 0} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("end", "max_rejected", "code"),
    [
        (summary(), 0.25, OK),
        (summary(), 0.2, REJECTED),
        (summary(open_shards={"s": "clip 0"}), 1.0, LEFT),
        (summary(open_shards={"s": "clip 0"}, stopped="SIGTERM"), 1.0, 75),
        (summary(open_shards={"s": "clip 0"}, stopped="SIGINT"), 1.0, 130),
        (summary(stopped="SIGTERM"), 1.0, OK),
    ],
)
def test_exit_codes(end: Summary, max_rejected: float, code: int) -> None:
    job = Job(source=("a",), output="out", vae="tiny", max_rejected=max_rejected)
    assert encode.exit_code(end, job) == code


def test_pools_that_would_stand_still_are_refused() -> None:
    two = Cluster(cpus=2.0, gpus=0.0, object_store=1e9)
    assert pools(Workers(), 1000, two).encoders == (1, 1)
    assert pools(Workers(encoders="1:8"), 1000, two).encoders == (1, 1)
    three = replace(two, cpus=3.0)
    spare = replace(three, spare_cpus=1)
    assert pools(Workers(), 1000, three).encoders == (1, 2)
    assert pools(Workers(), 1000, spare).decoders == (3, 3), "two beside the encoder, and one in turn"
    assert pools(Workers(encoders="2"), 1000, spare).decoders == (2, 3), "the encoders take the rest"
    assert pools(Workers(), 1000, replace(three, largest_node=1.0)).encoders == (1, 1), "one of three nodes may be lost"
    with pytest.raises(ConfigError, match="nothing would ever be produced"):
        pools(Workers(encoders="2"), 1000, two)
    with pytest.raises(ConfigError, match="largest chunk is 100 MB"):
        pools(Workers(), 100_000_000, two)
    with pytest.raises(ConfigError, match="do not fit on the 1 GPUs that there are"):
        pools(Workers(encoders="2", gpus_per_encoder=1), 1000, replace(two, gpus=1.0))
    assert pools(Workers(), 1000, replace(two, gpus=2.0)).encoders == (1, 2)


def test_one_source_from_python_may_be_a_string() -> None:
    job = Job(source="/data/x.tar", output="out", vae="tiny", retry_rejected="corrupt, not_found")  # type: ignore[arg-type]
    assert job.source == ("/data/x.tar",)
    assert job.retry_reasons == {"corrupt", "not_found"}


def test_the_spec_holds_the_weights_and_never_their_path() -> None:
    spec, info = resolve(Job(source=("a",), output="out", vae="tiny", clip=CLIP))
    assert spec.vae["weights_sha256"] == info.weights_sha256
    assert spec.vae["name"] == "tiny"


def test_an_output_from_before_a_limit_keeps_its_spec_and_is_resumed_without_it(tmp_path: Path) -> None:
    """A spec.json without `limit_hold` is one without a limit: the same text, and what differs names the flag."""
    spec, _ = resolve(Job(source=("a",), output="out", vae="tiny", clip=replace(CLIP, limit_hold=None)))
    text = spec.to_json()
    assert "limit_hold" not in text
    assert Spec.from_json(text) == spec
    output = Storage(str(tmp_path))
    output.put("spec.json", text.encode())
    assert load_spec(output).clip.limit_hold is None
    check(output, spec)
    limited, _ = resolve(Job(source=("a",), output="out", vae="tiny", clip=CLIP))
    assert Spec.from_json(limited.to_json()) == limited
    assert diff(limited.to_json(), text) == [("clip.limit_hold", 60.0, None)]
    assert encode.parse([*BASE, "--limit-hold", "None"]).clip.limit_hold is None


def test_clips_that_overlap_beyond_memory_are_refused_with_the_numbers() -> None:
    """--every 0.2 at 8 frames a second: 40 different times a second, in 49 frames 245 pictures of 1 MB."""
    clip = ClipRule(clips="every", every=0.2)
    assert overlap.bytes_held(clip) == 245 * 480 * 720 * 3
    assert overlap.bytes_held(ClipRule(clips="all")) == overlap.bytes_held(replace(clip, every=6.125)) == 0
    assert overlap.pictures_held(replace(clip, every=0.125), 49) == 49, "on one grid all clips show the same"
    assert overlap.pictures_held(replace(clip, every=0.013), 49) == math.ceil(49 / 8 * overlap.SOURCE_FPS)
    assert overlap.pictures_held(replace(clip, every=0.1, fps="native"), 49) == 49
    two = Cluster(cpus=2.0, gpus=0.0, object_store=1e9)
    held = overlap.bytes_held(clip)
    with pytest.raises(ConfigError, match=r"up to 254 MB in each of 3 decode tasks, and there are 700 MB"):
        pools(Workers(), 1000, replace(two, memory=700e6), held)
    assert pools(Workers(), 1000, replace(two, memory=800e6), held).decoders[1] == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": b"videos"}, "source must be a text, or several in a tuple, got b'videos'"),
        ({"source": (b"videos",)}, "source must be a text"),
        ({"source": 3}, "source must be a text"),
        ({"output": b"out"}, "output must be a text, got b'out'"),
        ({"vae": None}, "vae must be a text, got None"),
    ],
)
def test_a_job_of_other_types_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Job(**{"source": ("a",), "output": "out", "vae": "tiny"} | change)
