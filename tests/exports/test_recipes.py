"""Law: a trainer gets the text that its models learned from, or the export says why not; and what it advises works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentmill
from jobs import export as command
from jobs import text as text_command
from pipeline.control.spread import SpreadRule
from pipeline.errors import ConfigError
from pipeline.export.families import COGVIDEOX, HUNYUAN, LTX_2, WAN_21, WAN_22, Family
from pipeline.export.plan import ExportJob, plan_export
from pipeline.export.run import export
from pipeline.export.trainer import trainer_of
from tests.exports.made import vae_of, write_family
from tests.exports.made import write_text as write_made_up_text
from tests.text import made
from tests.text.checkpoints import VOCABULARY, tokenizer
from tests.text.checkpoints import encoders as encoders

UMT5 = {"model_type": "umt5", "width": 4096, "layers": 24}
T5 = {"model_type": "t5", "width": 4096, "layers": 24}

TAKES: dict[str, tuple[Family, dict[str, Any]]] = {
    "automodel": (WAN_21, {"encoder": UMT5, "max_length": 226, "clean": "wan"}),
    "automodel of the 5B": (WAN_22, {"encoder": UMT5, "max_length": 512, "clean": "wan"}),
    "musubi": (WAN_21, {"encoder": UMT5, "max_length": 512, "clean": "wan"}),
    "fastvideo": (WAN_21, {"encoder": UMT5, "max_length": 512}),
    "cogvideo": (COGVIDEOX, {"encoder": T5, "max_length": 226, "pad_tokens": True}),
}
"""What each trainer's own code stores: (VAE, fields of the spec of the text)."""

WRONG: dict[str, dict[str, Any]] = {
    "encoder t5gemma, not": {"encoder": {"model_type": "t5gemma"}},
    "width 64, not 4096": {"encoder": {"width": 64}},
    "layers 12, not 24": {"encoder": {"layers": 12}},
    "--layer 22, not last": {"layer": 22},
    "--max-length 77, not": {"max_length": 77},
}

DIRTY = ("red &amp; blue", "plain")


def job(folder: Path, to: str, **changes: Any) -> ExportJob:
    to = to.partition(" ")[0]
    model = "cogvideox1.5-t2v" if to == "cogvideo" else ""
    settings = {"text": "t5", "model": model} | changes
    return ExportJob(output=str(folder / "out"), to=to, into=str(folder / "to"), **settings)  # type: ignore[arg-type]


def prepare(folder: Path, to: str, captions: Any = ("plain", "words"), **changes: Any) -> None:
    family, fields = TAKES[to]
    write_family(folder / "out", vae_of(family), captions=captions)
    encoder = fields["encoder"] | changes.pop("encoder", {})
    write_made_up_text(folder / "out", **fields | changes | {"encoder": encoder})


@pytest.mark.parametrize("to", TAKES)
def test_a_trainer_takes_its_own_text_and_no_other(tmp_path: Path, to: str) -> None:
    prepare(tmp_path / "right", to)
    assert plan_export(job(tmp_path / "right", to)).note == ""
    for number, (says, changes) in enumerate(WRONG.items()):
        folder = tmp_path / str(number)
        prepare(folder, to, **changes)
        with pytest.raises(ConfigError, match=f"{says}.*--any-text exports it all the same"):
            plan_export(job(folder, to))
        assert says in plan_export(job(folder, to, any_text=True)).note
        assert not (folder / "to").exists()


@pytest.mark.parametrize("to", TAKES)
def test_cleaning_counts_where_it_changes_a_caption(tmp_path: Path, to: str) -> None:
    pytest.importorskip("ftfy")
    own = TAKES[to][1].get("clean", "none")
    other = {"none": "wan", "wan": "none"}[own]
    prepare(tmp_path / "same", to, clean=other)
    assert plan_export(job(tmp_path / "same", to)).note == ""
    prepare(tmp_path / "dirty", to, DIRTY, clean=other)
    with pytest.raises(ConfigError, match=f"--clean {other}, not {own}, for captions such as 'red &amp; blue'"):
        plan_export(job(tmp_path / "dirty", to))
    prepare(tmp_path / "own", to, DIRTY)
    assert plan_export(job(tmp_path / "own", to)).note == ""


@pytest.mark.parametrize("to", TAKES)
def test_the_page_says_which_text_each_trainer_takes(to: str) -> None:
    name, (family, _) = to.partition(" ")[0], TAKES[to]
    page = (Path(__file__).parents[2] / "docs/exports.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`") and "4096, 24" in line]
    assert f"`{trainer_of(name).takes[family].flags}`" in row  # type: ignore[arg-type]


@pytest.mark.parametrize(("to", "family"), [("ltx", LTX_2), ("fastvideo", HUNYUAN)])
def test_a_text_that_latentmill_does_not_make_is_refused(tmp_path: Path, to: Any, family: Family) -> None:
    write_family(tmp_path / "out", vae_of(family))
    write_made_up_text(tmp_path / "out", max_length=1024, encoder={"model_type": "gemma3_text", "width": 3840})
    with pytest.raises(ConfigError, match="`latentmill text` makes no such text; --any-text exports it all the same"):
        plan_export(job(tmp_path, to))
    assert plan_export(job(tmp_path, to, any_text=True)).note


@pytest.fixture(scope="module")
def wan_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UMT5 as wide and as deep as Wan's, and as thin as can be: a million random weights."""
    transformers = pytest.importorskip("transformers")
    where = tmp_path_factory.mktemp("wan")
    config = transformers.UMT5Config(vocab_size=VOCABULARY, d_model=4096, d_kv=1, d_ff=1, num_layers=24, num_heads=1)
    transformers.UMT5EncoderModel(config).save_pretrained(where)
    return tokenizer(where)


@pytest.mark.parametrize("to", ["automodel", "musubi", "fastvideo"])
def test_the_advised_text_is_taken(tmp_path: Path, wan_encoder: Path, to: str) -> None:
    pytest.importorskip("ftfy")
    write_family(tmp_path / "out", vae_of(WAN_21), captions=DIRTY)
    made.write_text(tmp_path / "out", wan_encoder, max_length=32)
    with pytest.raises(ConfigError, match="`latentmill text") as refused:
        plan_export(job(tmp_path, to))
    advised = re.search(r"`latentmill text (.*?)`", str(refused.value))[1]  # type: ignore[index]
    flags = advised.replace("NAME", "better").replace("FOLDER", str(wan_encoder)).split()
    assert text_command.main([*flags, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    options = {"max_length": int(flags[flags.index("--max-length") + 1])}
    clean = {"clean": flags[flags.index("--clean") + 1]} if "--clean" in flags else {}
    made.write_text(tmp_path / "out", wan_encoder, name="better", **options, **clean)
    assert export(job(tmp_path, to, text="better"), SpreadRule(workers=1)).is_whole


def test_the_command_says_what_any_text_let_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "automodel", encoder={"width": 64})
    flags = ["--output", str(tmp_path / "out"), "--to", "automodel", "--into", str(tmp_path / "to"), "--text", "t5"]
    assert command.main([*flags, "--workers", "1"]) == 2
    assert "width 64, not 4096" in capsys.readouterr().err
    assert command.main([*flags, "--workers", "1", "--any-text"]) == 0
    assert "--any-text: NeMo Automodel takes the text of UMT5-XXL" in capsys.readouterr().out


BLANK = ("a cat", None, "", " \t", 'the "dog"', "\u3000")


def advised_where(message: str) -> str:
    """The argument of --where in a message, as a shell reads it."""
    return shlex.split(message.partition("--where ")[2].replace(", or export", " "))[0]


@pytest.mark.parametrize(
    ("blank", "where"), [((None,), None), (("",), None), (BLANK, "height >= 16 or caption == '$x'")]
)
@pytest.mark.parametrize("kind", ["cogvideo", "dropped", "strict"])
def test_the_advised_where_leaves_out_rows_without_a_caption(
    tmp_path: Path, kind: str, blank: Any, where: str | None
) -> None:
    captions = ("a cat", *blank, "a dog")
    to = "cogvideo" if kind == "cogvideo" else "pt"
    prepare(tmp_path, "cogvideo", captions, drop_empty=kind == "dropped")
    asked = job(tmp_path, to, where=where, strict=kind == "strict", model="m" if to == "cogvideo" else "")
    with pytest.raises(ConfigError, match="--where") as refused:
        plan_export(asked)
    rest = plan_export(job(tmp_path, to, where=advised_where(str(refused.value)), model=asked.model))
    kept = [rest.latents[i]["caption"] for i in range(len(rest.latents))]
    every = latentmill.open(tmp_path / "out")
    assert kept == [row["caption"] for row in (every[i] for i in range(len(every))) if (row["caption"] or "").strip()]
    assert kept
    assert rest.captions.empty == 0


def test_the_advised_command_makes_a_text_whole(encoders: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    write_family(tmp_path / "out", vae_of(WAN_21))
    settings = {"max_length": 33, "drop_empty": True, "layer": "-2", "batch_size": 2, "clean": "wan"}
    made.write_text(tmp_path / "out", encoders("t5"), ["empty"], **settings, dtype="float32", pad_tokens=True)
    with pytest.raises(latentmill.OpenError, match="is not complete") as refused:
        latentmill.open(tmp_path / "out", text="t5")
    advised = re.search(r"`latentmill text (.*)`", str(refused.value))[1]  # type: ignore[index]
    flags = shlex.split(advised.replace("FOLDER", str(encoders("t5"))))
    assert text_command.main([*flags, "--dry-run"]) == 0


def test_many_empty_captions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "fastvideo", ("a cat", ""))
    flags = ["--output", str(tmp_path / "out"), "--to", "fastvideo", "--into", str(tmp_path / "to"), "--text", "t5"]
    assert command.main([*flags, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "captions  4 of 8 rows" in printed
    assert "warning   4 of 8 captions (50%) are empty" in printed
    assert command.main([*flags, "--workers", "1", "--strict"]) == 2
    assert "--strict: 4 of 8 captions" in capsys.readouterr().err
