"""Law: what each trainer's own code reads is there, under these names, keys, dtypes and shapes, and nothing else is.

The facts are those of the trainers' sources (see the docstring of each format); tests/exports/test_own_classes.py reads
the same exports with the trainers' own classes, where these are at hand.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import latentmill
from jobs import export as command
from pipeline.control.spread import SpreadRule
from pipeline.errors import ConfigError
from pipeline.export.families import COGVIDEOX, HUNYUAN, LTX_2, WAN_21, WAN_22
from pipeline.export.plan import ExportJob
from pipeline.export.run import ExportSummary, export
from pipeline.export.trainer import Target, trainer_of
from tests.exports.made import FAMILIES, MEAN, ROOM, STD, embedding_of, rows_of, vae_of, write_family, write_text
from tests.small import LATENT

SAME = ((2, 2, 4),)
SIZES = ((2, 2, 4), (2, 4, 2))
LENGTHS = ((2, 2, 4), (3, 2, 4))


def exported(folder: Path, to: Any, shapes: Any = SAME, vae: Any = None, **changes: Any) -> tuple[Path, ExportSummary]:
    """Export an output of the trainer's VAE in `folder`, with text."""
    write_family(folder / "out", vae or vae_of(FAMILIES[to]), shapes, **changes)
    write_text(folder / "out", max_length=ROOM if to == "ltx" else 6, pad_tokens=to == "cogvideo")
    model = "cogvideox1.5-t2v" if to == "cogvideo" else ""
    job = ExportJob(output=str(folder / "out"), to=to, into=str(folder / "to"), text="t5", model=model, any_text=True)
    return folder / "to", export(job, SpreadRule(workers=1))


def names(into: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(into)) for path in into.glob(pattern) if path.is_file())


def stem_of(path: Path | str) -> str:
    return Path(path).name.partition(".")[0].partition("_")[0]


def padded(text: torch.Tensor, room: int, *, left: bool = False) -> torch.Tensor:
    zeros = text.new_zeros((room - len(text), text.shape[1]))
    return torch.cat([zeros, text] if left else [text, zeros])


def test_automodel(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "automodel", SIZES)
    rows = rows_of(tmp_path / "out")
    metadata = json.loads((into / "metadata.json").read_text())
    items = [item for shard in metadata["shards"] for item in json.loads((into / shard).read_text())]
    assert metadata["total_items"] == len(items) == len(rows) == 8
    for item in items:
        row = rows[stem_of(item["cache_file"])]
        assert item["bucket_resolution"] == [row["width"], row["height"]]
        assert item["aspect_ratio"] == row["width"] / row["height"]
        stored = torch.load(item["cache_file"], weights_only=True)
        assert stored.keys() == {"video_latents", "text_embeddings"}
        assert torch.equal(stored["video_latents"], row["latent"][None])
        assert torch.equal(stored["text_embeddings"], padded(embedding_of(row["caption"]), 6)[None])
    assert summary.counts == {"wide/32x16": 4, "tall/16x32": 4}


def test_ltx(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "ltx", SIZES)
    rows = rows_of(tmp_path / "out")
    latents = names(into / ".precomputed/latents", "**/*.pt")
    assert latents == names(into / ".precomputed/conditions", "**/*.pt")
    assert len(latents) == 8
    for name in latents:
        row = rows[stem_of(name)]
        stored = torch.load(into / ".precomputed/latents" / name, weights_only=True)
        assert torch.equal(stored.pop("latents"), row["latent"])
        assert stored == dict(zip(("num_frames", "height", "width"), row["latent"].shape[1:], strict=True), fps=8.0)
        conditions = torch.load(into / ".precomputed/conditions" / name, weights_only=True)
        assert conditions.keys() == {"video_prompt_embeds", "prompt_attention_mask"}
        text = embedding_of(row["caption"], ROOM)
        assert torch.equal(conditions["video_prompt_embeds"], padded(text, ROOM, left=True))
        assert conditions["prompt_attention_mask"].tolist() == [False] * (ROOM - len(text)) + [True] * len(text)
    assert summary.counts == {"128x2x2x4": 4, "128x2x4x2": 4}


def test_the_command_says_what_mixed_shapes_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into, _ = exported(tmp_path, "ltx", SIZES)
    flags = ["--output", str(tmp_path / "out"), "--to", "ltx", "--into", str(into), "--text", "t5", "--workers", "1"]
    flags.append("--any-text")
    assert command.main(flags) == 0
    assert "its batches do not sort by shape: set batch_size 1" in capsys.readouterr().out


@pytest.mark.parametrize("posterior", ["mean", "moments"])
def test_fastvideo(tmp_path: Path, posterior: Any) -> None:
    into, summary = exported(tmp_path, "fastvideo", rule=replace(LATENT, posterior=posterior))
    rows = rows_of(tmp_path / "out")
    moments = latentmill.open(tmp_path / "out")
    mean, std = (torch.tensor([values[i % 4] for i in range(16)]).view(-1, 1, 1, 1) for values in (MEAN, STD))
    files = names(into, "**/*.parquet")  # the trainer walks all of them
    assert len(files) == 2
    found = [row for name in files for row in pq.read_table(into / name).to_pylist()]
    assert [row["id"] for row in found] == list(rows)
    for number, stored in enumerate(found):
        row = rows[stored["id"]]
        want = row["latent"].float() * std + mean  # what the VAE gave
        if posterior == "moments":
            want = moments.posterior("moments")[number]["latent"].float()[:16]
        else:
            scale = torch.tensor(latentmill.open(tmp_path / "out").spec["vae"]["scale"]).view(-1, 1, 1, 1)
            want = row["latent"].float() / scale + mean
        latent = torch.frombuffer(bytearray(stored["vae_latent_bytes"]), dtype=torch.float32)
        assert torch.equal(latent.view(stored["vae_latent_shape"]), want)
        text = torch.frombuffer(bytearray(stored["text_embedding_bytes"]), dtype=torch.float32)
        assert torch.equal(text.view(stored["text_embedding_shape"]), embedding_of(row["caption"]).float())
        facts = {name: stored[name] for name in ("caption", "width", "height", "num_frames", "fps")}
        assert facts == {name: row[name] for name in facts}
        assert (stored["media_type"], stored["duration_sec"]) == ("video", row["num_frames"] / 8)
        assert {stored["vae_latent_dtype"], stored["text_embedding_dtype"]} == {"float32"}
    groups = pq.read_metadata(into / files[0])
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [1] * 4
    assert summary.counts == {"16x2x2x4": 8}


def test_musubi(tmp_path: Path) -> None:
    shapes = (*SIZES, (3, 2, 4))
    into, summary = exported(tmp_path, "musubi", shapes, clips=6)
    rows = rows_of(tmp_path / "out")
    latents = [name for name in names(into, "cache/*.safetensors") if not name.endswith("_te.safetensors")]
    assert len(latents) == len(names(into, "cache/*_wan_te.safetensors")) == 12
    for name in latents:
        row = rows[stem_of(name)]
        frames, height, width = row["latent"].shape[1:]
        size = f"{row['width']:04d}x{row['height']:04d}"
        assert Path(name).name == f"{row['id']}_00000-{row['num_frames']:03d}_{size}_wan.safetensors"
        key, text_key = f"latents_{frames}x{height}x{width}_bfloat16", "varlen_t5_bfloat16"
        assert torch.equal(load_file(into / name)[key], row["latent"])
        with safe_open(into / name, "pt") as file:
            assert (list(file.keys()), file.metadata()) == (
                [key],
                {
                    "architecture": "wan",
                    "width": str(row["width"]),
                    "height": str(row["height"]),
                    "format_version": "1.0.1",
                    "frame_count": str(row["num_frames"]),
                },
            )
        with safe_open(into / f"cache/{row['id']}_wan_te.safetensors", "pt") as file:
            assert torch.equal(file.get_tensor(text_key), embedding_of(row["caption"]))
            about = {"architecture": "wan", "caption1": row["caption"], "format_version": "1.0.1"}
            assert (list(file.keys()), file.metadata()) == ([text_key], about)
    assert summary.counts == {"32x16x5": 4, "16x32x5": 4, "32x16x9": 4}
    settings = tomllib.loads((into / "dataset.toml").read_text())
    assert settings["general"]["resolution"] in ([32, 16], [16, 32])
    assert (settings["general"]["enable_bucket"], settings["general"]["bucket_no_upscale"]) == (True, True)
    assert settings["datasets"][0]["cache_directory"] == str(into / "cache")
    items = [json.loads(line) for line in Path(settings["datasets"][0]["video_jsonl_file"]).read_text().splitlines()]
    assert items == [{"video_path": row["id"], "caption": row["caption"]} for row in rows.values()]


@pytest.mark.parametrize(("posterior", "draw"), [("mean", "mean"), ("moments", "sample")])
def test_cogvideo(tmp_path: Path, posterior: Any, draw: Any) -> None:
    into, summary = exported(tmp_path, "cogvideo", rule=replace(LATENT, posterior=posterior))
    latents = latentmill.open(tmp_path / "out").posterior(draw)
    assert summary.counts == {"5x16x32": 8}
    prompts = (into / "prompts.txt").read_text().splitlines()
    videos = (into / "videos.txt").read_text().splitlines()
    assert prompts == [latents[i]["caption"] for i in range(8)]
    assert [stem_of(video) for video in videos] == [latents[i]["id"] for i in range(8)]
    for number, (prompt, video) in enumerate(zip(prompts, videos, strict=True)):
        assert (into / video).is_file()
        path = into / f"cache/video_latent/cogvideox1.5-t2v/5x16x32/{Path(video).stem}.safetensors"
        assert torch.equal(load_file(path)["encoded_video"], latents[number]["latent"])
        name = hashlib.sha256(prompt.encode()).hexdigest()
        text = load_file(into / f"cache/prompt_embeddings/{name}.safetensors")["prompt_embedding"]
        assert torch.equal(text, padded(embedding_of(prompt), 6))


@pytest.mark.parametrize("to", FAMILIES)
@pytest.mark.parametrize("family", [WAN_21, WAN_22, HUNYUAN, LTX_2, COGVIDEOX], ids=lambda family: family.title)
def test_a_trainer_takes_the_latents_of_its_vae_and_no_others(tmp_path: Path, to: str, family: Any) -> None:
    takes = {
        "automodel": {WAN_21, WAN_22},
        "ltx": {LTX_2},
        "fastvideo": {WAN_21, WAN_22, HUNYUAN},
        "musubi": {WAN_21},
        "cogvideo": {COGVIDEOX},
    }
    if family in takes[to]:
        assert exported(tmp_path, to, vae=vae_of(family))[1].is_whole
        return
    with pytest.raises(ConfigError, match=rf"takes latents of .*this output has those of {family.name}, "):
        exported(tmp_path, to, vae=vae_of(family))
    assert not (tmp_path / "to").exists()


WRONG = {
    "channels": {"latent_channels": 12},
    "compression in space": {"space_compression": 16},
    "compression in time": {"time_compression": 8},
    "class": {"name": "AutoencoderKLQwenImage"},
}


@pytest.mark.parametrize("what", WRONG)
def test_one_wrong_fact_of_the_vae_is_enough(tmp_path: Path, what: str) -> None:
    with pytest.raises(ConfigError, match="NeMo Automodel takes latents of Wan"):
        exported(tmp_path, "automodel", vae=vae_of(WAN_21, **WRONG[what]))


def test_scaled_latents_have_the_scaling_of_their_vae(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scale 2 in the Spec, 0\.5, 2, 0\.8, \.\.\. in the VAE's config"):
        exported(tmp_path, "automodel", vae=vae_of(WAN_21, scale=2.0))
    with pytest.raises(ConfigError, match=r"scale 0\.5 in the Spec, 1\.15258426 or 0\.7 in its checkpoints"):
        exported(tmp_path / "cog", "cogvideo", vae=vae_of(COGVIDEOX, scale=0.5))
    assert exported(tmp_path / "raw", "fastvideo", vae=vae_of(WAN_21, scale=2.0))[1].is_whole


@pytest.mark.parametrize(
    ("to", "shapes", "says"),
    [
        ("automodel", LENGTHS, r"one number of latent frames.*16x2x2x4 \(4 rows\), 16x3x2x4 \(4 rows\)"),
        ("fastvideo", SIZES, "one latent shape in a data set.*--bucket: 16x2x2x4"),
        ("fastvideo", LENGTHS, "one latent shape"),
        ("cogvideo", SIZES, "one latent shape"),
        ("musubi", ((2, 3, 4),), "multiples of 16; a latent of 16x2x3x4 has 24x32 pixels"),
    ],
)
def test_mixed_shapes_are_refused_where_the_trainer_cannot_tell_them_apart(
    tmp_path: Path, to: str, shapes: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        exported(tmp_path, to, shapes)
    assert not (tmp_path / "to").exists()


def test_consecutive_frames_have_the_rate_of_their_times(tmp_path: Path) -> None:
    """Outputs of --fps native store no rate; the times of their frames are a quarter of a second apart."""
    into, _ = exported(tmp_path, "ltx", fps="native")
    stored = [pq.read_table(path, columns=["fps"])["fps"] for path in (tmp_path / "out/data").iterdir()]
    assert sum(column.null_count for column in stored) == 8
    stored = [torch.load(path, weights_only=True) for path in (into / ".precomputed/latents").rglob("*.pt")]
    assert [one["fps"] for one in stored] == [4.0] * 8


def test_a_bucket_of_mixed_shapes_is_exported(tmp_path: Path) -> None:
    write_family(tmp_path / "out", vae_of(WAN_21), SIZES)
    write_text(tmp_path / "out")
    job = ExportJob(output=str(tmp_path / "out"), to="fastvideo", into=str(tmp_path / "to"), text="t5", any_text=True)
    summary = export(replace(job, bucket="16x2x4x2"), SpreadRule(workers=1))
    assert summary.counts == {"16x2x4x2": 4}


@pytest.mark.parametrize("to", FAMILIES)
def test_missing_text_is_refused(tmp_path: Path, to: Any) -> None:
    write_family(tmp_path / "out", vae_of(FAMILIES[to]))
    model = "cogvideox1.5-t2v" if to == "cogvideo" else ""
    job = ExportJob(output=str(tmp_path / "out"), to=to, into=str(tmp_path / "to"), model=model, any_text=True)
    with pytest.raises(ConfigError, match="trains on text embeddings, and none are named"):
        export(job, SpreadRule(workers=1))
    with pytest.raises(ConfigError, match="has no text 't5': run `latentmill text"):
        export(replace(job, text="t5"), SpreadRule(workers=1))
    write_text(tmp_path / "out", max_length=128, pad_tokens=to == "cogvideo")
    next((tmp_path / "out/text/t5").glob("0*.parquet")).unlink()
    with pytest.raises(ConfigError, match=r"1 of 3 files are missing, such as text/t5/00000"):
        export(replace(job, text="t5"), SpreadRule(workers=1))
    assert not (tmp_path / "to").exists()


def test_rows_without_an_embedding_are_refused_and_can_be_left_out(tmp_path: Path) -> None:
    from tests.reader.made import write_output

    write_output(tmp_path / "out")  # every third row has no caption
    write_text(tmp_path / "out", drop_empty=True)
    job = ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to"), text="t5")
    with pytest.raises(ConfigError, match="has no embedding for 6 of 24 rows"):
        export(job, SpreadRule(workers=1))
    assert export(replace(job, where="caption != None"), SpreadRule(workers=1)).num_clips == 18


@pytest.mark.parametrize("to", ["pt", "webdataset"])
def test_the_general_formats_take_text_too(tmp_path: Path, to: Any) -> None:
    write_family(tmp_path / "out", vae_of(WAN_21))
    write_text(tmp_path / "out")
    export(ExportJob(output=str(tmp_path / "out"), to=to, into=str(tmp_path / "to"), text="t5"), SpreadRule(workers=1))
    rows = rows_of(tmp_path / "out")
    if to == "pt":
        found = {path.stem: torch.load(path, weights_only=True)["text"] for path in (tmp_path / "to").rglob("*.pt")}
    else:
        import tarfile

        for path in (tmp_path / "to").glob("*.tar"):
            with tarfile.open(path) as tar:
                tar.extractall(tmp_path / "tar", filter="data")
        found = {stem_of(path): torch.load(path) for path in (tmp_path / "tar").glob("*.text.pth")}
    assert found.keys() == rows.keys()
    assert all(torch.equal(text, embedding_of(rows[id]["caption"])) for id, text in found.items())


@pytest.mark.parametrize(
    ("to", "changes", "says"),
    [
        ("automodel", {"pad_tokens": True}, "made without --pad-tokens, and --text 't5' was made with"),
        ("cogvideo", {}, "made with --pad-tokens, and --text 't5' was made without"),
        ("ltx", {"max_length": 100}, "multiple of 128 tokens, and --text 't5' has --max-length 100"),
        (
            "cogvideo",
            {"caption_column": "title", "pad_tokens": True},
            "by the caption, and --text 't5' was made of 'title'",
        ),
    ],
)
def test_text_that_does_not_suit_is_refused(tmp_path: Path, to: Any, changes: Any, says: str) -> None:
    write_family(tmp_path / "out", vae_of(FAMILIES[to]))
    write_text(tmp_path / "out", **changes)
    model = "cogvideox1.5-t2v" if to == "cogvideo" else ""
    job = ExportJob(
        output=str(tmp_path / "out"), to=to, into=str(tmp_path / "to"), text="t5", model=model, any_text=True
    )
    with pytest.raises(ConfigError, match=says):
        export(job, SpreadRule(workers=1))


def test_a_model_is_named_where_paths_have_one_and_nowhere_else(tmp_path: Path) -> None:
    write_family(tmp_path / "out", vae_of(COGVIDEOX))
    write_text(tmp_path / "out", pad_tokens=True)
    job = ExportJob(output=str(tmp_path / "out"), to="cogvideo", into=str(tmp_path / "to"), text="t5")
    with pytest.raises(ConfigError, match="give its --model_name with --model"):
        export(job, SpreadRule(workers=1))
    with pytest.raises(ConfigError, match="--model is for cogvideo, got 'x' for torch files"):
        export(replace(job, to="pt", model="x"), SpreadRule(workers=1))
    for name in ("..", ".", "a/b", "/a", "a b"):
        with pytest.raises(ConfigError, match="--model must be the name of one folder"):
            export(replace(job, model=name), SpreadRule(workers=1))


def test_a_text_in_another_encoding_is_another_export(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "automodel")
    assert summary.num_clips == 8
    write_text(tmp_path / "out", name="other", dtype="float32")
    job = ExportJob(output=str(tmp_path / "out"), to="automodel", into=str(into), text="other", any_text=True)
    with pytest.raises(ConfigError, match="text: other in this run, t5 there"):
        export(job, SpreadRule(workers=1))


def test_the_page_says_which_vae_each_trainer_takes() -> None:
    page = (Path(__file__).parents[2] / "docs/exports.md").read_text()
    takes = {cells[1].split("`")[1]: cells[-2].strip() for cells in (row.split("|") for row in page.splitlines())
             if len(cells) == 7 and cells[1].startswith(" `")}  # fmt: skip
    assert takes.pop("--to")
    assert takes.keys() == set(get_args(Target))
    for name, said in takes.items():
        families = {WAN_21: "Wan 2.1", WAN_22: "5B", HUNYUAN: "HunyuanVideo", LTX_2: "LTX-2", COGVIDEOX: "CogVideoX"}
        assert {family for family, title in families.items() if title in said} == set(trainer_of(name).takes)
        assert (said == "any") == (not trainer_of(name).takes)
