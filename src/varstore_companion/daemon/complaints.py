"""Warnings about one socket's peers, thinned out: a peer that misbehaves chooses how often."""

import logging

import trio

QUIET_SECONDS = 60.0
"""After this long without a complaint the next one is the first again."""


class Complaints:
    """Logs the 1st, 2nd, 4th, 8th… complaint in a row, each with `who` in front and how many there were."""

    __slots__ = ("_count", "_last", "_log", "who")

    def __init__(self, who: str, log: logging.Logger) -> None:
        self.who = who
        self._log = log
        self._count = 0
        self._last = float("-inf")

    def add(self, text: str) -> None:
        """Say `text`, unless it is the turn of only counting it."""
        now = trio.current_time()
        if now - self._last > QUIET_SECONDS:
            self._count = 0
        self._last = now
        self._count += 1
        if self._count.bit_count() == 1:
            self._log.warning("%s %s%s", self.who, text, f" (the {self._count:,}th in a row)" if self._count > 2 else "")
