"""Second chances: rejected clips of committed shards, planned again as shards of their own, of kind "retry".

A committed file is never rewritten: its rejections stay in its footer, and what is tried again ends in the data file of
the retry, as a latent or as a Rejection once more, which may be tried again in turn. A retry's members are

    {"of": the shard before, "videos": [[ordinal, [clip index, ...] or null], ...], "rest": ordinal or null}

`videos` in source order; null: the video was refused as a whole, so all its clips are tried. `rest`: every video from
this ordinal on, where the rest of a tar was refused. Reading a retry is reading the shard before, of which the chosen
videos travel on with ordinals 0, 1, 2, ...; the shard before may be a retry itself, and then narrows it further.

Each rejection is planned once: what stands in a retry already is not taken into another.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.output.derived import restored
from pipeline.output.tally import Target, target
from pipeline.plan.plan_file import PlanFile, load_members
from pipeline.records import Rejection, Shard, canonical_json, shard_name
from pipeline.sources.samples import Sample, refuse
from pipeline.storage import Storage
from pipeline.storage.addresses import folder_of
from pipeline.storage.parallel import in_parallel

_REST = frozenset({"tar_damaged", "limit_exceeded"})
"""Why the rest of a tar is refused, then without a key."""


def retry_shards(
    output: Storage, files: Sequence[PlanFile], done: set[str], reasons: frozenset[str]
) -> Iterator[Shard]:
    """One new shard for each committed shard with rejections of these reasons that are in no retry yet.

    Rejections by a retry come up only when no retry is open: a run that takes up another one's retries tries each clip
    once, as that one would have done.
    """
    tried = tried_again(files)
    paths = (entry.path for entry in output.list("rejected/"))
    rejected = done & {path.removeprefix("rejected/").removesuffix(".jsonl") for path in paths}
    is_retrying = any(shard.kind == "retry" and shard.name not in done for file in files for shard in file.shards())
    committed = (
        shard
        for file in files
        for shard in file.shards()
        if shard.name in rejected and not (shard.kind == "retry" and is_retrying)
    )
    for shard, rejections in in_parallel(lambda shard: (shard, restored(output, shard.name)[1]), committed):
        wanted = {target(rejection): rejection for rejection in rejections if rejection["reason"] in reasons}
        for seen in tried[shard.name] & wanted.keys():
            del wanted[seen]
        if wanted:
            yield _retry_of(shard, wanted)


def load_retry(shard: Shard) -> tuple[Shard, dict[str, Any]]:
    """The shard before, and the members of a retry (see the module), out of the plan."""
    members = load_members(shard)
    before = Shard(**members["of"])
    if before.members:  # its place in the plan, which lies where our own place says
        place = json.loads(before.members)
        folder = folder_of(json.loads(shard.members)["plan"])
        before = replace(before, members=json.dumps({**place, "plan": f"{folder}/{place['plan']}"}))
    return before, members


def only_chosen(samples: Iterator[Sample | Rejection], members: dict[str, Any]) -> Iterator[Sample | Rejection]:
    """The samples that a retry chose, each narrowed to the chosen clips. Reads no further than the last of them."""
    videos, rest = dict(members["videos"]), members["rest"]
    for ordinal, sample in enumerate(samples):
        if ordinal in videos or (rest is not None and ordinal >= rest):
            yield _narrowed(sample, videos.pop(ordinal, None))
        if not videos and rest is None:
            return
    for ordinal in videos:
        yield refuse("not_found", f"the source has no video {ordinal} any more", key="", uri=members["of"]["uri"])


def _narrowed(sample: Sample | Rejection, clips: list[int] | None) -> Sample | Rejection:
    if isinstance(sample, Rejection) or clips is None:
        return sample
    return replace(sample, only=tuple(clips))


def tried_again(files: Sequence[PlanFile], done: set[str] | None = None) -> defaultdict[str, set[Target]]:
    """What is in a retry already (of these that are done), by the name of the shard before."""
    tried: defaultdict[str, set[Target]] = defaultdict(set)
    for file in files:
        for name, members in file.retries():
            if done is not None and name not in done:
                continue
            known = tried[members["of"]["name"]]
            for video, clips in members["videos"]:
                known.update((video, clip) for clip in ([None] if clips is None else clips))
            if members["rest"] is not None:
                known.add((members["rest"], None))
    return tried


def _is_rest(rejection: dict[str, Any]) -> bool:
    return rejection["stage"] == "read" and rejection["reason"] in _REST and not rejection["key"]


def _retry_of(shard: Shard, wanted: dict[Target, dict[str, Any]]) -> Shard:
    videos: dict[int, list[int] | None] = {}
    rest = None
    for (video, clip), rejection in sorted(wanted.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        if _is_rest(rejection):
            rest = video
        elif clip is None:
            videos[video] = None
        else:
            videos.setdefault(video, []).append(clip)  # type: ignore[union-attr]
    before = shard.to_row()
    if shard.members:  # by the name of the plan file alone: an output may be moved
        place = json.loads(shard.members)
        before["members"] = canonical_json({**place, "plan": place["plan"].rpartition("/")[2]})
    chosen = {"videos": list(videos.items()), "rest": rest}
    return Shard(
        name=shard_name(shard.name, f"retry-{shard.name.removeprefix('retry-')}", canonical_json(chosen)),
        kind="retry",
        uri=shard.uri,
        size=shard.size,
        etag=shard.etag,
        members=canonical_json({"of": before, **chosen}),
    )
