"""Events of a run, for programs that watch it: one log record each, with named values.

The logger is silent until `--log-json` gives it a level, so a person's log has none of them.
"""

from __future__ import annotations

import logging

log = logging.getLogger("latentmill.events")
log.setLevel(logging.WARNING)


def event(name: str, /, **values: object) -> None:
    """Log an event.

    Args:
        name: what happened, in the past tense: `pass_begun`, `shard_committed`, `clip_rejected`, `claim_taken_over`,
            `progress`, `run_ended`.
        values: JSON values.
    """
    log.info(name, extra={"event": name, "values": values})
