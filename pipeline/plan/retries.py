"""Retries: rejected clips of committed shards, planned again as new shards of kind "retry".

A committed file is never rewritten. Its rejections stay in its footer, and each retried clip becomes a latent or a
Rejection in the data file of the retry; that Rejection may be retried in turn. shards.Retry lists the clips. To read a
retry, its original shard is read; only the chosen videos continue, with ordinals 0, 1, 2, ... The original shard may be
a retry itself.

Each rejection is planned once: a rejection in one retry is not put into another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.output import layout
from pipeline.output.derived import restored
from pipeline.output.tally import Target, target
from pipeline.plan.plan_file import PlanFile
from pipeline.records import Rejection
from pipeline.shards import PlanPlace, Retry, Shard, shard_name
from pipeline.sources.samples import Sample, refuse
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel

_REST = frozenset({"tar_damaged", "limit_exceeded"})
"""Reasons for which the rest of a tar is rejected, without a key."""


def retry_shards(
    output: Storage, files: Sequence[PlanFile], done: set[str], reasons: frozenset[str]
) -> Iterator[Shard]:
    """Yield one new shard for each committed shard that has rejections of these reasons and in no retry yet.

    Rejections in the data file of a retry are planned only if no retry is open. So a run that continues the retries of
    an earlier run tries each clip once, as the earlier run would have done.
    """
    tried = tried_again(files)
    rejected = done & {shard for shard, _ in layout.list_shards(output, layout.REJECTED, layout.JSONL)}
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


def only_chosen(samples: Iterator[Sample | Rejection], retry: Retry) -> Iterator[Sample | Rejection]:
    """Yield the samples that a retry chose, each with its chosen clips only. Stop reading after the last one."""
    videos, rest = dict(retry.videos), retry.rest
    for ordinal, sample in enumerate(samples):
        if ordinal in videos or (rest is not None and ordinal >= rest):
            yield _narrowed(sample, videos.pop(ordinal, None))
        if not videos and rest is None:
            return
    for ordinal in videos:
        yield refuse("not_found", f"the source has no video {ordinal} any more", key="", uri=retry.of.uri)


def _narrowed(sample: Sample | Rejection, clips: tuple[int, ...] | None) -> Sample | Rejection:
    if isinstance(sample, Rejection) or clips is None:
        return sample
    return replace(sample, only=clips)


def tried_again(files: Sequence[PlanFile], done: set[str] | None = None) -> defaultdict[str, set[Target]]:
    """Return which rejections are in a retry already (among the done ones, if given), by original shard."""
    tried: defaultdict[str, set[Target]] = defaultdict(set)
    for file in files:
        for name, retry in file.retries():
            if done is not None and name not in done:
                continue
            known = tried[retry.of.name]
            for video, clips in retry.videos:
                known.update((video, clip) for clip in ([None] if clips is None else clips))
            if retry.rest is not None:
                known.add((retry.rest, None))
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
    before = shard
    if isinstance(place := shard.members, PlanPlace):  # by the name of the plan file alone: an output may be moved
        before = replace(shard, members=replace(place, plan=place.plan.rpartition("/")[2]))
    chosen = tuple((video, None if clips is None else tuple(clips)) for video, clips in videos.items())
    retry = Retry(of=before, videos=chosen, rest=rest)
    return Shard(
        name=shard_name(shard.name, f"retry-{shard.name.removeprefix('retry-')}", retry.chosen_text()),
        kind="retry",
        uri=shard.uri,
        size=shard.size,
        etag=shard.etag,
        members=retry,
    )
