"""A time for people."""

from datetime import UTC, datetime


def moment(at: float | None) -> str:
    """Seconds since the epoch as a time in UTC; `-` for one that is not known or cannot be."""
    try:
        return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return "-"
