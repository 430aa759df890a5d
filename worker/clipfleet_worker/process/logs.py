"""Log lines of a worker: time, level, message, and the fields of its context."""

from __future__ import annotations

import logging
import sys

from clipfleet.terminal.console import printable

_FIELDS = ("action", "job_id", "chunk_id", "model")
_OURS = ("clipfleet", "clipfleet_worker", "celery")
_NOISY = ("celery.worker.strategy", "celery.app.trace")


class FieldFormatter(logging.Formatter):
    """Appends `name=value` for each of our fields that a record has."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format one printable line: messages quote untrusted URLs, paths and names."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = " ".join(
            f"{name}={printable(str(getattr(record, name)))}" for name in _FIELDS if hasattr(record, name)
        )
        return f"{line} [{fields}]" if fields else line


def log_to_stderr(process: str | None = None) -> None:
    """Write the logs of this process to stderr, one line per record.

    Args:
        process: name in every line, if several processes share stderr.
    """
    handler = logging.StreamHandler(sys.stderr)
    who = f"{process} " if process else ""
    handler.setFormatter(FieldFormatter(f"%(asctime)s {who}%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries, such as open_clip, log too much
    for ours in _OURS:
        logging.getLogger(ours).setLevel(logging.INFO)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # damaged files: their rows report it
