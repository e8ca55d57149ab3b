"""Doing without a stage that does not answer."""

import logging

log = logging.getLogger("ray.serve")


class Unavailable(Exception):
    """A stage did not answer."""


class Away(Unavailable):
    """It is not there, or not in time, or its database is not: nothing is said of the bundle that it was asked for."""


class Ladder:
    """What an answer does without, by reason code."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.codes: list[str] = []

    def down(self, code: str, error: Exception) -> None:
        """Go on without what failed with `error`; raises it where the answer must be whole."""
        if self.whole:
            raise error
        log.warning("%s: %s", code, error)
        self.codes += [] if code in self.codes else [code]
