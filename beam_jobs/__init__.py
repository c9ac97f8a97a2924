"""Stage 1: a silo's raw text becomes a snapshot. The only place that imports Apache Beam; importing it starts nothing."""

import logging


def _no_false_alarm(record: logging.LogRecord) -> bool:
    """Beam warns on import that a Google client library is missing, also where nobody asked for Google's services."""
    return "apitools not found" not in str(record.msg)


logging.getLogger().addFilter(_no_false_alarm)
