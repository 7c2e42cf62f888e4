"""Read a tar in WebDataset form as samples: consecutive members with the same key are one sample.

The key is the name up to the first dot after the last slash. A sample is one video (or image) with an optional `.json`
and `.txt`; other members are ignored. A sample without sidecars has no caption. Rejected, each separately: sidecars
without a video and sidecars that cannot be parsed (`bad_sidecar`), a second video with the same key and a key that
comes again later (`duplicate_key`), a video that is a link or a device or has an unsafe name (`unsafe_member`), and one
that is too large (`limit_exceeded`). If the tar itself is damaged, the rest of it is one rejection, and the open sample
is another, because its next member may have been its caption.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.errors import TarDamagedError
from pipeline.records import Rejection
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
from pipeline.sources.tar import Member, TarReader
from pipeline.storage.addresses import redacted

log = logging.getLogger(__name__)

MAX_SAMPLES = 1_000_000
"""Limit per tar: all keys are kept in memory (100 bytes each), and a tar of ten million is an attack or a mistake."""

MAX_DUPLICATES = 1000
"""Largest number of rejections for further videos with one key, such as frames stored as one sample. The rest is not
counted."""


def read_tar(
    uri: str, *, size: int, etag: str, max_bytes: int, with_hidden: bool = False
) -> Iterator[Sample | Rejection]:
    """Yield the samples of a tar in order, with one in memory at a time, from one GET.

    Args:
        with_hidden: also read what lies in hidden folders, as a plan of an earlier version says.

    Raises:
        StorageError: the object is not the planned one, or not all bytes could be read.
    """
    seen: set[bytes] = set()
    group: _Group | None = None
    hidden = 0
    with io.BufferedReader(storage.stream(uri, size=size, etag=etag), 1 << 20) as file:
        tar = TarReader(file, size)
        try:
            for member in tar:
                key = key_of(member.name)
                if member.kind == "folder" or key is None or (is_hidden(member.name) and not with_hidden):
                    hidden += member.kind != "folder" and is_hidden(member.name)
                    continue
                if group is None or group.key != key:
                    if group is not None:
                        yield from group.close(seen)
                    if len(seen) >= MAX_SAMPLES:
                        yield refuse(
                            "limit_exceeded",
                            f"more than {MAX_SAMPLES} samples: the rest of the tar is skipped",
                            key="",
                            uri=uri,
                        )
                        return
                    group = _Group(key=key, tar_uri=uri, max_bytes=max_bytes)
                group.add(member, tar)
        except TarDamagedError as error:
            at = f"; the sample {group.key[:200]!r} was open" if group else ""
            yield refuse("tar_damaged", f"{error}{at}", key="", uri=uri)
            return
        if group is not None:
            yield from group.close(seen)
    if hidden:
        log.warning("tar=%s: %d hidden members are ignored", redacted(uri), hidden)


def key_of(name: str) -> str | None:
    """Return the WebDataset key: "a/b.c.mp4" -> "a/b". None for names without a dot and for hidden files."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return f"{folder}{slash}{stem}" if dot and stem else None


@dataclass(slots=True)
class _Group:
    """The members of one key so far."""

    key: str
    tar_uri: str
    max_bytes: int
    video: Sample | Rejection | None = None
    video_ext: str = ""
    is_image: bool = False
    duplicates: list[tuple[bool, Rejection]] = field(default_factory=list)
    sidecars: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""

    def add(self, member: Member, tar: TarReader) -> None:
        suffix = suffix_of(member.name)
        if suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
            self._add_video(member, tar, is_image=suffix in IMAGE_SUFFIXES)
        elif suffix in SIDECAR_SUFFIXES:
            self._add_sidecar(member, tar)

    def _add_video(self, member: Member, tar: TarReader, *, is_image: bool) -> None:
        if self.video is not None and is_image >= self.is_image:
            if is_image == self.is_image and len(self.duplicates) < MAX_DUPLICATES:
                message = f"a second video {member.name[-200:]!r} under the key of {self.video.uri[-200:]!r}"
                self.duplicates.append((is_image, self._refuse("duplicate_key", message, member)))
            return
        self.video, self.is_image = self._take(member, tar), is_image
        self.video_ext = member.name[len(self.key) + 1 :]

    def _take(self, member: Member, tar: TarReader) -> Sample | Rejection:
        if member.kind != "file":
            return self._refuse("unsafe_member", "a link, a device, a pipe or a sparse file, not a plain file", member)
        if why := name_refusal(member.name):
            return self._refuse("unsafe_member", why, member)
        if member.size > self.max_bytes:
            return self._refuse("limit_exceeded", f"{member.size} bytes; at most {self.max_bytes} are read", member)
        return Sample(key=self.key, uri=self._uri(member), payload=tar.read(), size=member.size)

    def _add_sidecar(self, member: Member, tar: TarReader) -> None:
        ext = member.name[len(self.key) + 1 :].lower()
        if member.kind != "file" or ext in self.sidecars:
            self.fault = f"{member.name[-200:]!r} is not a plain file or comes twice"
        elif member.size + sum(map(len, self.sidecars.values())) > MAX_SIDECAR_BYTES:
            self.fault = f"{member.name[-200:]!r}: sidecars of more than {MAX_SIDECAR_BYTES} bytes"
        else:
            self.sidecars[ext] = bytes(tar.read())

    def close(self, seen: set[bytes]) -> Iterator[Sample | Rejection]:
        """Yield the sample or the rejections of the group, and add its key to `seen`."""
        if self.video is None and not (self.sidecars.keys() & {"json", "txt"}) and not self.fault:
            return
        digest = hashlib.blake2b(self.key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        if digest in seen:
            message = "the key came before: members of one sample must follow each other"
            yield refuse("duplicate_key", message, key=self.key, uri=self.video.uri if self.video else self.tar_uri)
            return
        seen.add(digest)
        yield self._joined()
        for is_image, rejection in self.duplicates:
            if is_image == self.is_image:
                yield rejection

    def _joined(self) -> Sample | Rejection:
        if self.video is None:
            return refuse("bad_sidecar", "sidecars without a video", key=self.key, uri=self.tar_uri)
        if isinstance(self.video, Rejection):
            return self.video
        if self.fault:
            return refuse("bad_sidecar", self.fault, key=self.key, uri=self.video.uri)
        # "a.cut.mp4" belongs to "a.cut.json", or if there is none, to "a.json".
        own = self.video_ext.lower().rpartition(".")[0]
        text, metadata = (
            self.sidecars.get(f"{own}.{kind}", self.sidecars.get(kind)) if own else self.sidecars.get(kind)
            for kind in ("txt", "json")
        )
        try:
            caption, extra = parse_sidecars(text, metadata)
        except ValueError as error:
            return refuse("bad_sidecar", str(error), key=self.key, uri=self.video.uri)
        video = self.video
        return Sample(
            key=video.key, uri=video.uri, payload=video.payload, size=video.size, caption=caption, extra=extra
        )

    def _refuse(self, reason: str, message: str, member: Member) -> Rejection:
        return refuse(reason, message, key=self.key, uri=self._uri(member))  # type: ignore[arg-type]

    def _uri(self, member: Member) -> str:
        return f"{self.tar_uri}#{member.name}"
