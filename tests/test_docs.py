"""Law: what the pages say is what the code does: the columns of an output, the reasons of rejections, the lines that
readers are given, the files that are named.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli import COMMANDS
from latentmill.format import FOOTER_SHARD, FOOTER_SPEC, SCHEMA, TEXT_SCHEMA
from pipeline.records import REASONS
from pipeline.storage import Storage
from pipeline.text.captions import read_captions
from tests.reader.made import shard_names, write_output
from tests.text.checkpoints import checkpoint
from tests.text.made import write_text

pytest_plugins = ["tests.made_outputs"]

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/output.md").read_text()
PAPERS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

MOST_WORDS = 1200
MOST_COLUMNS = 120


def rows(heading: str) -> list[list[str]]:
    """The cells of the table rows that follow a heading, without the header's."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*$", section, re.M)]


def type_of(field: pa.Field) -> str:
    if pa.types.is_list(field.type):
        return f"list of {type_of(field.type.value_field)}"
    return {"double": "float64", "float": "float32"}.get(str(field.type), str(field.type))


def test_what_a_message_asks_to_install_exists_and_is_what_its_extra_brings() -> None:
    """latentmill itself is on no index: a message names the packages that are missing, a page the checkout."""
    code = [path for folder in ("jobs", "latentmill", "pipeline", "vae") for path in ROOT.glob(f"{folder}/**/*.py")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {re.split("[>=;<]", line)[0] for lines in project["optional-dependencies"].values() for line in lines}
    messages = re.findall(r"pip install ([a-z0-9 -]+)", "".join(path.read_text() for path in code))
    assert len(messages) >= 6
    assert {name for names in messages for name in names.split()} <= brought | {"huggingface-hub"}  # of diffusers
    for path in [*code, *PAPERS, *ROOT.glob("examples/**/*")]:
        assert not path.is_file() or "latentmill[" not in path.read_text(), path


def test_the_table_of_columns_is_the_schema() -> None:
    table = rows("A row")[: len(SCHEMA)]
    assert [(name.strip("`"), type_, null == "never") for name, type_, _, null in table] == [
        (field.name, type_of(field), not field.nullable) for field in SCHEMA
    ]
    assert {cells[0].strip("`") for cells in rows("The footer of a data file")} == {FOOTER_SPEC, FOOTER_SHARD}


def test_the_table_of_the_index_is_what_the_index_has_beyond_the_rows(made: Path) -> None:
    index = pq.read_schema(next((made / "index").iterdir()))
    further = [(field.name, type_of(field)) for field in index if field.name not in SCHEMA.names]
    assert [(name.strip("`"), type_) for name, type_, _ in rows("A row")[len(SCHEMA) :]] == further
    assert [name for name in index.names if name in SCHEMA.names] == [name for name in SCHEMA.names if name != "latent"]


def test_the_table_of_a_text_is_its_schema() -> None:
    page = (ROOT / "docs/text.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| ([^|]+) \|[^|]+\| ([^|]+) \|$", page, re.M)
    assert [(name, type_, null == "never") for name, type_, null in table] == [
        (field.name, type_of(field), not field.nullable) for field in TEXT_SCHEMA
    ]


def test_the_lines_for_readers_of_a_text_run_and_give_the_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_output(tmp_path, num_shards=1)
    encoder = write_text(tmp_path, checkpoint(tmp_path / "encoder"))
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/text.md").read_text(), re.S)[1]
    names: dict[str, object] = {}
    exec(code.replace("OUTPUT/text/NAME/SHARD", f"{tmp_path}/text/t5/{shard_names(1)[0]}"), names)
    rows = names["table"].to_pylist()  # type: ignore[attr-defined]
    captions = [caption.text or "" for caption in read_captions(Storage(str(tmp_path)), shard_names(1)[0], "caption")]
    for row, caption in zip(rows, captions, strict=True):
        found = names["embedding"](row)  # type: ignore[operator]
        assert found.numpy().tobytes() == encoder([caption])[caption].payload


def test_the_lines_for_readers_run_and_give_the_latents(made: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    reads, datasets = code[0].split("import datasets")
    assert "load_dataset" in datasets  # not a dependency
    names: dict[str, object] = {}
    exec(reads.replace("OUTPUT", str(made)) + code[1], names)
    table = names["table"]
    assert isinstance(table, pa.Table)
    assert table.num_rows == 4
    for row in table.to_pylist():
        if row["latent"] is None:
            array = np.load(made / row["npy_file"])[row["npy_row"]].copy()
            latent = torch.from_numpy(array).view(torch.bfloat16)
        else:
            latent = names["latent"](row)  # type: ignore[operator]
        assert (list(latent.shape), latent.dtype) == (row["latent_shape"], torch.bfloat16)
        assert latent.isfinite().all()


def test_the_table_of_rejections_has_every_reason() -> None:
    page = (ROOT / "docs/rejections.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", page, re.M)) == sorted(REASONS)


def test_the_readme_is_short_and_names_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= MOST_WORDS
    assert [line for line in readme.splitlines() if len(line) > MOST_COLUMNS] == []
    assert set(re.findall(r"^\$? ?latentmill (\w+)", readme, re.M)) <= set(COMMANDS)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_what_a_paper_links_to_or_names_is_there(paper: Path) -> None:
    text = paper.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:tests|pipeline|vae|jobs|docs|examples|latentmill)/[\w./]+\.(?:py|md))", text)
    assert [link for link in links if link and not (paper.parent / link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_the_tests_that_a_paper_names_exist(paper: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", paper.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
