"""Events of a run, for programs that watch it: one log record each, with named values.

The logger is silent until `encode --log-json` gives it a level, so a person's log has none of them.
"""

from __future__ import annotations

import logging

from pipeline.records import CompleteShard

log = logging.getLogger("latentmill.events")
log.setLevel(logging.WARNING)


def event(name: str, **values: object) -> None:
    """Log an event.

    Args:
        name: what happened, in the past tense: `pass_begun`, `shard_committed`, `clip_rejected`, `claim_taken_over`,
            `progress`, `run_ended`.
        values: JSON values.
    """
    log.info(name, extra={"event": name, "values": values})


def tell_committed(shard: CompleteShard) -> None:
    """Log a committed shard, and each of its rejections."""
    event("shard_committed", shard=shard.name, latents=len(shard.latents), rejections=len(shard.rejections))
    for (video, clip), rejection in shard.rejections.items():
        values = {"reason": rejection.reason, "stage": rejection.stage, "message": rejection.message}
        event("clip_rejected", shard=shard.name, video=video, clip=clip, key=rejection.key, **values)
