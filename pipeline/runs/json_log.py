"""The log of a run as JSON: one object a line on stderr, for log collectors."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from pipeline.runs import events


class JsonFormatter(logging.Formatter):
    """Make a record one line: `time` (UTC), `level`, `event`, and the values of the event, or a `message`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": time, "level": record.levelname.lower()}
        line["event"] = getattr(record, "event", "log")
        line |= getattr(record, "values", None) or {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Switch the handlers of the root logger to JSON, and the events on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
    events.log.setLevel(logging.INFO)
