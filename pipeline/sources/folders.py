"""Turn folders and globs into shards: one per tar, one per row range of a table, one per `shard_size` loose videos.

Everything streams from one sorted listing, so a folder of ten million files needs only the memory of one page. The
sidecars of a video are the `.json` and `.txt` with its name; an image with a video's name is its poster. Other files
and all that is hidden are ignored, and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import ChangedError, NotFoundError
from pipeline.records import Rejection
from pipeline.shards import FileGroup, ListedVideo, Shard, shard_name
from pipeline.sources.samples import (
    IMAGE_SUFFIXES,
    MAX_SIDECAR_BYTES,
    SIDECAR_SUFFIXES,
    VIDEO_SUFFIXES,
    Sample,
    is_hidden,
    name_refusal,
    parse_sidecars,
    refuse,
    suffix_of,
)
from pipeline.storage import Entry, Storage
from pipeline.storage.addresses import scheme_of

TAR_SUFFIXES = frozenset({".tar"})
TABLE_SUFFIXES = frozenset({".parquet", ".jsonl", ".ndjson", ".csv"})
_LOOSE_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES | SIDECAR_SUFFIXES


def tar_shard(uri: str, entry: Entry) -> Shard:
    name = shard_name(uri, PurePosixPath(uri).stem, "")
    return Shard(name=name, kind="webdataset", uri=uri, size=entry.size, etag=entry.etag)


def list_items(
    entries: Iterable[Entry], containers: frozenset[str], ignored: Counter[str]
) -> Iterator[ListedVideo | Entry]:
    """Yield the `containers` (by suffix) of a sorted listing, and its videos with their sidecars, sorted by path.

    Files that may belong together have the same folder and the same name up to the first dot, so they are neighbours in
    a sorted listing. Add to `ignored` what is passed over, by kind.
    """
    group: list[tuple[str, Entry]] = []
    prefix = ""
    for entry in entries:
        suffix = suffix_of(entry.path)
        if is_hidden(entry.path):
            ignored["hidden"] += 1
            continue
        if suffix in containers:
            yield entry
            continue
        if suffix not in _LOOSE_SUFFIXES:
            ignored[suffix or "without a suffix"] += 1
            continue
        folder, slash, base = entry.path.rpartition("/")
        if group and not entry.path.startswith(prefix):
            yield from _pair(group, ignored)
            group.clear()
        if not group:
            prefix = f"{folder}{slash}{base.partition('.')[0]}."
        group.append((suffix, entry))
    yield from _pair(group, ignored)


def files_shard(root: str, group: list[ListedVideo]) -> Shard:
    """Return a shard of the videos of `group`, whose paths are relative to the folder `root`."""
    paths = "\n".join(video.path for video in group)
    return Shard(
        name=shard_name(root, PurePosixPath(root).name, paths),
        kind="files",
        uri=root,
        size=sum(max(0, video.size) for video in group),
        etag="",
        members=FileGroup(tuple(group)),
    )


def read_files(root: str, group: FileGroup, *, max_bytes: int) -> Iterator[Sample | Rejection]:
    """Yield the samples of a group. Sidecars are read now; videos are opened by the decode stage.

    Raises:
        ChangedError: a sidecar has changed since it was planned.
    """
    folder = Storage(root)
    for video in group.videos:
        path = video.path
        uri = folder.address(path)
        if why := name_refusal(path.lstrip("/") if scheme_of(root) else path):  # in a bucket "/a" is a name like any
            shown = path.encode("utf-8", "backslashreplace").decode()
            yield refuse("unsafe_member", why, key=shown, uri=uri.encode("utf-8", "backslashreplace").decode())
            continue
        if video.size > max_bytes:
            yield refuse("limit_exceeded", f"{video.size} bytes; at most {max_bytes} are read", key=path, uri=uri)
            continue
        try:
            text, metadata = (_read_sidecar(folder, video, suffix) for suffix in (".txt", ".json"))
            caption, extra = parse_sidecars(text, metadata)
        except ValueError as error:
            yield refuse("bad_sidecar", str(error), key=path, uri=uri)
            continue
        yield Sample(key=path, uri=uri, size=video.size, etag=video.etag, caption=caption, extra=extra)


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Compile a glob: "*" and "?" match within a name, "[...]" one character, "**/" any number of folders."""
    expression = ""
    position = 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            expression, position = expression + "(?:.*/)?", position + 3
        elif pattern.startswith("**", position):
            expression, position = expression + ".*", position + 2
        elif pattern[position] == "[" and (end := pattern.find("]", position + 2)) > 0:
            inside = pattern[position + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            expression += f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
            position = end + 1
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(pattern[position], re.escape(pattern[position]))
            position += 1
    compiled = re.compile(expression, re.DOTALL)
    return lambda path: compiled.fullmatch(path) is not None


def _pair(group: list[tuple[str, Entry]], ignored: Counter[str]) -> list[ListedVideo]:
    """The videos among entries that may belong together, sorted, each with the sidecars of its own stem."""
    if len(group) == 1:  # a shortcut for the most common case, which saves 2 us of 5
        suffix, only = group[0]
        if suffix in SIDECAR_SUFFIXES:
            ignored[f"{suffix} of no video"] += 1
            return []
        return [ListedVideo(only.path, only.size, only.etag, {})]
    stems: dict[str, list[tuple[str, Entry]]] = {}
    for suffix, entry in group:
        stems.setdefault(entry.path[: -len(suffix)], []).append((suffix, entry))
    found: list[ListedVideo] = []
    for stem, entries in stems.items():
        videos = [entry for suffix, entry in entries if suffix in VIDEO_SUFFIXES]
        posters = [entry for suffix, entry in entries if suffix in IMAGE_SUFFIXES]
        sidecars = {
            suffix: (entry.size, entry.etag)
            for suffix, entry in entries
            if suffix in SIDECAR_SUFFIXES and entry.path == stem + suffix  # lower case, as the reader opens it
        }
        if not videos and not posters:
            ignored.update(f"{suffix} of no video" for suffix, _ in entries)
        for video in videos or posters:
            found.append(ListedVideo(video.path, video.size, video.etag, sidecars))
    return sorted(found, key=lambda video: video.path)


def _read_sidecar(folder: Storage, video: ListedVideo, suffix: str) -> bytes | None:
    if suffix not in video.sidecars:
        return None
    size, etag = video.sidecars[suffix]
    if size > MAX_SIDECAR_BYTES:
        raise ValueError(f"the {suffix} has {size} bytes; at most {MAX_SIDECAR_BYTES} are read")
    uri = folder.address(video.path[: -len(suffix_of(video.path))] + suffix)
    try:
        return storage.read_object(uri, size=size, etag=etag)
    except NotFoundError as error:
        raise ChangedError(f"{uri} was there when the shard was planned, and is gone") from error
