"""Laws: the report shows what is committed and nothing runs in it or leaves it; what sources say is shown as text; the
pictures are those of the clip, and where there are none it says why.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentmill
from jobs import report
from jobs.report.facts import without_folders
from jobs.report.samples import COLUMNS, Sample, doubt, fidelity, samples
from latentmill import checksum
from pipeline.decode import DecodeSpec, decode_clip
from pipeline.output.layout import SEAL_PATH, data_path, index_path
from pipeline.output.spec_file import load_spec
from pipeline.plan.frozen import make_plan, read_plan
from pipeline.records import clip_id
from pipeline.storage import Storage
from tests.browser import look
from tests.outputs import CLIPS, make_output
from tests.small import CLIP, LATENT
from tests.sources import make_tar
from tests.videos import cut, make_video

SCRIPT = "<script>alert('caption')</script><img src=http://127.0.0.1:9/leak onerror=alert(1)>"
KEY = "<b onclick=alert(2)>a&b</b>"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars with hostile names and captions; two clips and two rejections in the first one."""
    folder = tmp_path_factory.mktemp("source")
    video = make_video(num_frames=60, width=96, height=64)
    members = [(f"{KEY}.mp4", video), (f"{KEY}.txt", SCRIPT.encode()), ("<i>b</i>.mp4", b"no video")]
    (folder / "one.tar").write_bytes(make_tar(members))
    (folder / "two.tar").write_bytes(make_tar([("d.mp4", video), ("e.mp4", cut(video, 0.3))]))
    return folder


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("made") / "out"
    make_output(source / "*.tar", where, CLIPS)
    return where


def made(out: Path, to: Path, *options: str) -> str:
    assert report.main(["--output", str(out), "--to", str(to), *options]) == 0
    return to.read_text()


def test_it_opens_in_a_browser_and_nothing_leaves_it(out: Path, tmp_path: Path) -> None:
    made(out, tmp_path / "report.html")
    for width, scheme in ((1280, "light"), (390, "dark")):
        seen = look(tmp_path / "report.html", width=width, scheme=scheme)
        assert seen.console == []
        assert seen.requests == [(tmp_path / "report.html").as_uri()]
        assert seen.images >= 12
        assert seen.without_pixels == 0
        assert seen.width == width
        for text in (SCRIPT, KEY, "<i>b</i>", "unreadable", "9 frames of 32x48"):
            assert text in seen.text


def test_what_sources_say_is_escaped(out: Path, tmp_path: Path) -> None:
    html = made(out, tmp_path / "report.html")
    assert "<script" not in html
    assert "<img src=http" not in html
    assert KEY not in html


def test_its_figures_are_those_of_the_output(out: Path, tmp_path: Path) -> None:
    html = made(out, tmp_path / "report.html", "--clips", "0")
    rows = len(latentmill.open(out))
    assert f"<b>{rows}</b>latents" in html
    assert "<b>2</b>rejected" in html
    captions = [row["caption"] for row in latentmill.open(out)]
    assert f"{len(list(filter(None, captions)))} of {rows} rows" in html
    assert "None: <code>--clips 0</code> was given." in html
    assert "which is for demos and tests only" in html
    assert load_spec(Storage(str(out))).digest in html


def test_no_folder_of_this_machine_is_shown_unless_asked_for(out: Path, source: Path, tmp_path: Path) -> None:
    html = made(out, tmp_path / "report.html")
    assert str(out.parent) not in html
    assert str(source) not in html
    assert "<code>.../out</code>" in html
    assert str(source) in made(out, tmp_path / "report.html", "--clips", "1", "--full-paths")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann lee/a.tar#b.mp4 from 1 s", ".../a.tar#b.mp4 from 1 s"),
        ("s3://bucket/d/a.mp4: 404", "s3://bucket/d/a.mp4: 404"),
        ("cannot read '/data/x/a.mp4': gone", "cannot read '.../a.mp4': gone"),
        ("3/4 of a/b/c", "3/4 of a/b/c"),
    ],
)
def test_a_path_is_cut_to_its_last_name(text: str, shown: str) -> None:
    assert without_folders(text, ["/home/ann lee"]) == shown


def test_the_first_frame_of_a_rejected_video_is_shown_where_there_is_one(tmp_path: Path) -> None:
    long, short = (make_video(num_frames=count, width=96, height=64) for count in (60, 3))
    (tmp_path / "a.tar").write_bytes(make_tar([("a.mp4", long), ("b.mp4", short), ("c.mp4", b"no video")]))
    make_output(tmp_path / "*.tar", tmp_path / "out", CLIPS)
    html = made(tmp_path / "out", tmp_path / "report.html")
    examples = html.partition("<h2>Rejections</h2>")[2].partition("<h2>")[0]
    assert examples.count('<div class="example">') == 2
    assert examples.count('<div class="example"><img class="still" src="data:image/webp') == 1, "of b.mp4"


def test_it_asks_whether_the_checkpoint_is_right_when_nothing_comes_back() -> None:
    def clips(*psnr: float | None) -> list[Sample]:
        return [Sample(key="", id="", caption=None, where="", shape="", psnr=value) for value in psnr]

    assert "Is this the right checkpoint" in doubt(clips(6.3, 8.0, 31.0, None))
    assert doubt(clips(24.1, 31.4, 9.0)) == ""
    assert doubt(clips(None)) == ""
    assert fidelity(clips(24.0, 31.0, 9.0)) == [("24.0 dB", "PSNR", "median of 3 sample clips, worst 9.0 dB")]


@pytest.mark.parametrize("posterior", ["mean", "sample", "moments"])
def test_the_source_of_a_sample_is_the_clip_as_the_encoder_saw_it(source: Path, tmp_path: Path, posterior: str) -> None:
    make_output(source / "*.tar", tmp_path / "out", CLIPS, replace(LATENT, posterior=posterior))  # type: ignore[arg-type]
    output = Storage(str(tmp_path / "out"))
    spec, dataset = load_spec(output), latentmill.open(tmp_path / "out", columns=COLUMNS)
    seen = []

    def decode(latent: object) -> np.ndarray:
        """The clip itself, one level brighter: a known error."""
        seen.append(latent)
        start = dataset.facts([len(seen)])["start_sec"][0]
        wanted = DecodeSpec(num_frames=9, fps=CLIP.rate, height=32, width=48, start=start)
        frames = decode_clip(make_video(num_frames=60, width=96, height=64), wanted).frames
        return np.where(frames < 255, frames + 1, frames).astype(np.uint8)

    (found,) = samples(output, read_plan(output), spec, dataset, [1], decode)
    assert found.why == ""
    assert len(found.pictures) == 3
    assert found.psnr == pytest.approx(48.13, abs=0.3)  # 20 log10(255), and a little more for what was 255
    assert found.ssim is not None
    assert 0.98 < found.ssim < 1


def test_latents_of_tiny_come_back_as_pictures(out: Path, tmp_path: Path) -> None:
    html = made(out, tmp_path / "report.html")
    for kind in ("source", "decoded", "difference"):
        assert html.count(f'alt="{kind}, frame 8"') == len(latentmill.open(out))
    assert "Latents are not decoded" not in html
    assert "PSNR " in html


def test_it_shows_what_is_committed_while_a_run_goes_on(source: Path, tmp_path: Path) -> None:
    make_output(source / "*.tar", tmp_path / "out", CLIPS, limit=1)
    assert "1 shards are not done yet" in made(tmp_path / "out", tmp_path / "report.html")


def test_it_says_why_there_are_no_pictures(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    make_output(copy / "*.tar", tmp_path / "out", CLIPS)
    assert "Latents are not decoded: --no-decode was given" in made(
        tmp_path / "out", tmp_path / "report.html", "--no-decode"
    )
    (copy / "two.tar").unlink()
    html = made(tmp_path / "out", tmp_path / "report.html")
    assert "No pictures: " in html
    assert "two.tar" in html
    spec = json.loads((tmp_path / "out/spec.json").read_text())
    spec["vae"]["name"] = "AutoencoderKLCogVideoX"
    (tmp_path / "out/spec.json").write_text(json.dumps(spec))
    shutil.rmtree(tmp_path / "out/runs")
    assert "no run recorded its checkpoint, and --vae did not name that of AutoencoderKLCogVideoX" in made(
        tmp_path / "out", tmp_path / "report.html"
    )


def test_an_output_of_version_1_has_a_report_without_statistics(source: Path, tmp_path: Path) -> None:
    make_output(source / "*.tar", tmp_path / "out", CLIPS, version=1)
    assert "format version 1, which stores no statistics" in made(tmp_path / "out", tmp_path / "report.html")


def test_bad_input_is_one_line(
    source: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*options: str) -> str:
        assert report.main(options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    for options, message in (
        (["--clips", "-1"], "--clips must be at least 0, got -1"),
        (["--to", str(tmp_path / "no/report.html")], "there is no folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            report.main(["--output", str(out), *options])
        assert message in capsys.readouterr().err
    assert "holds no spec.json" in said("--output", str(tmp_path))
    make_output(source / "*.tar", tmp_path / "empty", CLIPS, limit=0)
    make_plan(Storage(str(tmp_path / "empty")), [str(source / "*.tar")])
    assert "committed" in said("--output", str(tmp_path / "empty"))
    monkeypatch.setattr(report, "NEEDED", ("no_such_module",))
    assert "pip install jinja2 matplotlib scikit-image" in said("--output", str(out))


@pytest.mark.slow
def test_the_report_of_100_000_clips_stays_small(tmp_path: Path) -> None:
    """1,563 shards of a table: the first one is encoded, the others have its rows under names of their own."""
    (tmp_path / "v.mp4").write_bytes(make_video(num_frames=40, width=96, height=64))
    (tmp_path / "t.csv").write_text("video,caption\n" + "".join(f"v.mp4,caption {i}\n" for i in range(1563 * 64)))
    output = make_output(tmp_path / "t.csv", tmp_path / "out", CLIP, limit=1)
    first, *others = [shard.name for shard in read_plan(output)]
    index = pq.read_table(tmp_path / "out" / index_path(first))
    for name in others:
        names, ids = [data_path(name)] * len(index), [clip_id(name, i, 0) for i in range(len(index))]
        shutil.copy(tmp_path / "out" / data_path(first), tmp_path / "out" / data_path(name))
        columns = {"id": ids, "file": names}
        table = pa.table([columns.get(name, index[name]) for name in index.column_names], index.schema)
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(checksum.MARK)
        checksum.stamp(buffer)
        output.put(index_path(name), buffer.getvalue())
    (tmp_path / "out" / SEAL_PATH).unlink()
    began = time.monotonic()
    html = made(tmp_path / "out", tmp_path / "report.html")
    print(f"{time.monotonic() - began:.1f} s, {len(html.encode()) / 1e6:.2f} MB")
    assert "<b>100,032</b>latents" in html
    assert html.count('alt="source') == 3 * (12 + 5)  # frames of the samples, and of the clips that are furthest out
    assert len(html.encode()) < 5e6
