"""latentmill status: show the progress and contents of an output, also during a run. Reads no latents."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any

import tyro

from jobs.process import run_command
from pipeline.errors import ConfigError, StorageError
from pipeline.output.captions import Captions
from pipeline.output.layout import list_shards, text_of
from pipeline.output.spec_file import load_spec
from pipeline.output.tally import Tally, tally
from pipeline.output.wording import printable, size
from pipeline.plan.frozen import read_plan
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule
from pipeline.storage import Storage
from pipeline.text.captions import open_shards, text_names
from pipeline.text.spec import load as load_text_spec


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Options of `latentmill status`."""

    output: str
    """Path or URL that `latentmill encode` wrote to."""
    as_json: Annotated[bool, tyro.conf.arg(name="json", aliases=("--as-json",))] = False
    """Print JSON instead of a table."""
    watch: float | None = None
    """Show the status again every so many seconds until every shard is done. With --json, one line each time."""

    def __post_init__(self) -> None:
        if self.watch is not None and self.watch <= 0:
            raise ConfigError(f"--watch must be above 0 seconds, got {self.watch:g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the status. Exit code 0; 2 if there is no output; 1 if storage failed."""
    args = tyro.cli(Status, args=argv, prog="latentmill status", description=__doc__)
    try:
        output = Storage(args.output)
        while _show(args, output)["remaining"] and args.watch:
            time.sleep(args.watch)
    except ConfigError as error:
        print(printable(f"latentmill status: {error}"), file=sys.stderr)
        return 2
    except StorageError as error:
        print(printable(f"latentmill status: {error}"), file=sys.stderr)
        return 1
    return 0


def _show(args: Status, output: Storage) -> dict[str, object]:
    """Print the status once and return it. A terminal is cleared before each further time."""
    facts = status(output) | {"output": args.output}
    if args.watch and not args.as_json:
        clear = "\x1b[2J\x1b[H" if sys.stdout.isatty() else ""
        print(f"{clear}{datetime.now():%H:%M:%S}", flush=True)
    text = json.dumps(facts, indent=None if args.watch else 2) if args.as_json else printable(table(facts))
    print(text, flush=True)
    return facts


def status(output: Storage) -> dict[str, object]:
    """Return shards, clips, rejections by reason, bytes and Spec of an output, as JSON types.

    Raises:
        ConfigError: there is no spec.json.
    """
    spec = load_spec(output)
    plan = read_plan(output)
    counts: Tally = tally(output, sorted(plan.done), plan.superseded(plan.done))
    return {
        "output": output.uri,
        "shards": plan.num_shards,
        "done": plan.num_shards - plan.num_remaining,
        "remaining": plan.num_remaining,
        "clips": counts.planned,
        "latents": counts.latents,
        "latent_bytes": counts.latent_bytes,
        "captions": asdict(counts.captions),
        "rejected": dict(sorted(counts.rejected.items())),
        "staged": sum(len(shard.staged.parts) for shard in plan.remaining()),
        "texts": [text_status(output, name) for name in text_names(output)],
        "spec": json.loads(json.dumps(asdict(spec))),
    }


def text_status(output: Storage, name: str) -> dict[str, object]:
    """Return the shards, bytes and encoder of a text. The empty prompt counts as a shard."""
    spec = load_text_spec(output, name)
    todo, done = open_shards(output, name)
    num_bytes = sum(entry.size for _, entry in list_shards(output, text_of(name)))
    encoder = None if spec is None else f"{spec.encoder['model_type']} {spec.encoder['weights_sha256'][:12]}"
    clean = None if spec is None else spec.clean
    return {"name": name, "done": done, "remaining": len(todo), "bytes": num_bytes, "encoder": encoder, "clean": clean}


def table(facts: dict[str, object]) -> str:
    """Return the facts of `status` as a table of text."""
    rejected: dict[str, int] = facts["rejected"]  # type: ignore[assignment]
    spec: dict[str, dict[str, object]] = facts["spec"]  # type: ignore[assignment]
    texts: list[dict[str, Any]] = facts["texts"]  # type: ignore[assignment]
    vae, clip, latent = spec["vae"], spec["clip"], spec["latent"]
    rows = [
        ("output", facts["output"]),
        ("shards", f"{facts['done']} done, {facts['remaining']} remaining"),
        ("clips", f"{facts['clips']} = {facts['latents']} latents + {sum(rejected.values())} rejected"),
        *((f"  {reason}", n) for reason, n in rejected.items()),
        ("captions", Captions(**facts["captions"]).line()),  # type: ignore[arg-type]
        ("bytes", size(facts["latent_bytes"])),  # type: ignore[arg-type]
        ("staged", f"{facts['staged']} parts of unfinished shards"),
        *(
            (
                f"text {text['name']}",
                f"{text['done']} shards done, {text['remaining']} remaining, {size(text['bytes'])}  {text['encoder']}  "
                f"clean {text['clean']}",
            )
            for text in texts
        ),
        ("vae", f"{vae['name']}  sha256 {str(vae['weights_sha256'])[:12]}"),
        ("clip", _changed(clip, ClipRule())),
        ("latent", _changed(latent, LatentRule())),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _changed(settings: dict[str, object], defaults: ClipRule | LatentRule) -> str:
    """Return the settings that differ from the defaults; spec.json has all of them."""
    usual = json.loads(json.dumps(asdict(defaults)))
    return "  ".join(f"{name} {value}" for name, value in settings.items() if value != usual[name]) or "all defaults"


if __name__ == "__main__":
    run_command(main)
