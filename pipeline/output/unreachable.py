"""Reject videos that could not be fetched in several runs. Off by default: then such a shard stays open.

    _staging/<shard>/v000012.faults0003     video 12 could not be fetched in three runs; empty, transient like a part

Only faults of the video's own address count, each once per run. Whether a host answers depends on the network and the
day, so this rejection is exempt from the same-bytes law, and `--retry-rejected unreachable` tries the video again.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from pipeline.errors import StorageError
from pipeline.output.layout import faults_path
from pipeline.receipts import ClipsReceipt, FaultReceipt, Receipt, RejectionReceipt
from pipeline.records import ChunkId
from pipeline.shards import Shard
from pipeline.storage import Storage

log = logging.getLogger(__name__)


class Unreachable:
    """Which videos could not be fetched, and in how many runs."""

    def __init__(self, output: Storage, give_up_after: int) -> None:
        self._output = output
        self._give_up_after = give_up_after
        self._runs: dict[tuple[str, int], int] = {}
        """Number of earlier runs with a fault, by (shard, video)."""
        self._counted: set[tuple[str, int]] = set()
        """The (shard, video) whose fault this run has noted."""

    def recall(self, shard: Shard) -> Shard:
        """Load the notes of earlier runs, and return the shard without the staged parts of the noted videos.

        Such a video is encoded or rejected as a whole.
        """
        staged = shard.staged
        for video, runs in staged.faults:
            if (shard.name, video) not in self._counted:
                self._runs[shard.name, video] = max(runs, self._runs.get((shard.name, video), 0))
        lost = {video for video, _ in staged.faults}
        parts = tuple(part for part in staged.parts if part.video not in lost)
        return replace(shard, staged=replace(staged, parts=parts))

    def judge(self, fault: FaultReceipt) -> tuple[Receipt, ...]:
        """Note a fault, once per run. Return the receipts that reject its video, if it failed in too many runs."""
        key = (fault.shard, fault.video)
        if fault.rejection is None:  # a fault of the shard, not of a video
            return ()
        runs = self._runs.get(key, 0) + 1
        if key not in self._counted:
            self._counted.add(key)
            try:
                self._output.put(faults_path(fault.shard, fault.video, runs), b"")
            except StorageError as error:
                log.warning("shard=%s could not note a fault: %s", fault.shard, error)
        if runs < self._give_up_after:
            return ()
        message = f"{fault.rejection.message} (in each of {runs} runs)"
        rejection = replace(fault.rejection, message=message)
        refused = RejectionReceipt(id=ChunkId(shard=fault.shard, video=fault.video, clip=0), rejection=rejection)
        return ClipsReceipt(shard=fault.shard, video=fault.video, count=1), refused
