"""python -m jobs.bench text: compare `latentmill text` with a bare loop over the same encoder on the same cores.

    bare loop    as many processes as cores, each with one thread: tokenise a caption, encode it, keep the array
    text         one encoder actor per core: the same, and it reads the captions and writes the files
    resume       100,000 captions, of which one shard is left: until the command knows that

The command is timed from the file that ends its first quarter to its last file, as files end: start-up is left out. The
loop is timed before and after it, because the speed of a shared machine drifts. A ratio of 1 means that reading,
writing and Ray cost nothing. The encoder is a T5 with random weights.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import numpy as np
import tyro

import vae
from pipeline.output import layout, shard_file
from pipeline.output.derived import derive
from pipeline.output.spec_file import write_spec
from pipeline.records import ChunkId, ClipFacts, CompleteShard, Latent, clip_id
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import local_cpus
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage
from pipeline.text import spec as specs
from pipeline.text.captions import read_captions
from pipeline.text.job import TextJob, TextWorkers
from pipeline.text.run import make_plan, run

NAME = "bench"
ROWS = 64
"""Rows of a shard."""
WORDS = 2000
SHAPE = (1, 1, 1, 1)
TARGET = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Args:
    """Options of the benchmark."""

    captions: int = 1024
    """Captions to encode, each of 20 to 120 tokens."""
    width: int = 512
    """Width of the encoder."""
    layers: int = 6
    """Layers of the encoder."""
    rounds: int = 3
    """Number of rounds, each of the command between two bare loops."""
    resumed: int = 100_000
    """Captions of the output in case resume."""
    cases: tuple[Literal["speed", "resume"], ...] = ("speed", "resume")
    """The cases to run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures. Return 1 if the command missed its target."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench text", description=__doc__)
    missed = False
    with tempfile.TemporaryDirectory(prefix="lm") as name:
        folder = Path(name)
        _write_encoder(folder / "encoder", args)
        if "speed" in args.cases:
            missed = _speed(folder, args) < TARGET
        if "resume" in args.cases:
            _resume(folder, args)
    print(f"target {'missed' if missed else 'met'}: {TARGET} of the bare loop")
    return int(missed)


def _speed(folder: Path, args: Args) -> float:
    cores = local_cpus()
    output = write_captions(folder / "output", args.captions)
    texts = [caption.text or "" for shard in _shards(output) for caption in read_captions(output, shard, "caption")]
    ratios, loops, jobs = [], [_bare(folder / "encoder", texts, cores)], []
    for round_ in range(args.rounds):
        jobs.append(_job(folder, f"round{round_}", cores))
        loops.append(_bare(folder / "encoder", texts, cores))
        ratios.append(jobs[-1] / mean(loops[-2:]))
    print(
        f"text: {median(ratios):.2f} of the bare loop ({', '.join(f'{ratio:.2f}' for ratio in ratios)}), "
        f"{len(texts)} captions on {cores} cores: bare loop {median(loops):.1f} captions/s, text {median(jobs):.1f}"
    )
    return median(ratios)


def _job(folder: Path, name: str, cores: int) -> float:
    """Return the captions a second of the command."""
    workers = TextWorkers(encoders=str(cores), object_store_gb=0.3)
    job = TextJob(output=str(folder / "output"), encoder=str(folder / "encoder"), name=name, workers=workers)
    assert not run(job).open_shards
    files = [path for path in (folder / "output" / layout.text_of(name)).glob("*.parquet") if path.stem != "empty"]
    ends = sorted(path.stat().st_mtime_ns for path in files)
    first = len(ends) // 4
    return (len(ends) - 1 - first) * ROWS / (ends[-1] - ends[first]) * 1e9


def _bare(encoder: Path, texts: list[str], cores: int) -> float:
    """Return the captions a second of plain loops, one in each of `cores` processes."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(cores + 1)
    loops = [context.Process(target=_loop, args=(encoder, texts[i::cores], ready)) for i in range(cores)]
    for loop in loops:
        loop.start()
    ready.wait()
    started = time.perf_counter()
    for loop in loops:
        loop.join()
    return len(texts) / (time.perf_counter() - started)


def _loop(encoder: Path, texts: list[str], ready: Any) -> None:
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = T5EncoderModel.from_pretrained(encoder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        for i, text in enumerate([*texts[:3], *texts]):
            if i == 3:
                ready.wait()
            tokens = tokenizer(text, return_tensors="pt")
            embedding = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            embedding.last_hidden_state[0].view(torch.uint16).numpy().tobytes()
    os._exit(0)  # the end of the interpreter is not timed


def _resume(folder: Path, args: Args) -> None:
    """Time the plan of an output whose last shard has no text. Its files are copies: a plan reads their names only."""
    output = write_captions(folder / "resumed", ROWS)
    (first,) = _shards(output)
    data = output.read(layout.data_path(first))
    for i in range(1, -(-args.resumed // ROWS)):
        output.put(layout.data_path(f"{i:06d}-{i:012x}"), data)
    job = TextJob(output=str(folder / "resumed"), encoder=str(folder / "encoder"), name=NAME)
    plan = make_plan(job)
    specs.write(output, NAME, plan.spec)
    for shard in plan.todo[:-1]:
        output.put(layout.text_path(NAME, shard), b"")
    started = time.perf_counter()
    left = make_plan(job)
    seconds = time.perf_counter() - started
    assert len(left.todo) == 1
    print(f"resume: {args.resumed} captions in {len(plan.todo)} shards: planned again in {seconds:.2f} s")


def write_captions(where: Path, count: int) -> Storage:
    """Write an output of `count` rows of one value each, with random captions."""
    output, rng = Storage(str(where)), random.Random(0)
    spec = Spec(vae=vae.load_vae("tiny").info.to_json(), clip=ClipRule(), latent=LatentRule())
    write_spec(output, spec)
    for i in range(-(-count // ROWS)):
        name = f"{i:06d}-{i:012x}"
        rows = min(ROWS, count - i * ROWS)
        complete = CompleteShard(name=name, planned=rows, latents={(j, 0): 1 for j in range(rows)}, rejections={})
        sink = io.BytesIO()
        latents = (_latent(name, j, _caption(rng)) for j in range(rows))
        shard_file.write(sink, spec.to_json(), complete, map(shard_file.parquet_row, latents))
        output.put(layout.data_path(name), sink.getvalue())
        derive(output, name)
    return output


def _caption(rng: random.Random) -> str:
    return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(rng.randint(19, 119)))


def _latent(shard: str, number: int, caption: str) -> Latent:
    facts = ClipFacts(
        id=clip_id(shard, number, 0),
        key=f"{shard}/{number}",
        caption=caption,
        uri=f"s3://videos/{shard}.tar#{number}.mp4",
        start="0",
        end="1",
        fps="1",
        num_frames=1,
        height=8,
        width=8,
        timestamps=(0.0,),
        num_repaired=0,
        source={},
        extra={},
    )
    payload = np.ones(SHAPE, "<u2").tobytes()
    id = ChunkId(shard=shard, video=number, clip=0)
    return Latent(id=id, payload=payload, shape=SHAPE, dtype="bfloat16", facts=facts)


def _shards(output: Storage) -> Iterator[str]:
    return (shard for shard, _ in layout.list_shards(output, layout.DATA))


def _write_encoder(where: Path, args: Args) -> None:
    """Save a T5 of random weights, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(where)
    heads = max(args.width // 64, 1)
    sizes = {"d_model": args.width, "d_kv": args.width // heads, "d_ff": 4 * args.width, "num_heads": heads}
    T5EncoderModel(T5Config(vocab_size=len(ids), num_layers=args.layers, **sizes)).save_pretrained(where)
