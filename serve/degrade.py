"""Doing without a stage that does not answer."""

import logging
from typing import Literal

from rec.errors import DatabaseError

log = logging.getLogger("ray.serve")

Cause = Literal["late", "full", "down", "database", "failed"]
"""Why there was no answer: not in time, its queue was full, nobody is there, Postgres is not, or it went wrong."""


class Unavailable(Exception):
    """A stage did not answer."""

    cause: Cause = "failed"


class Away(Unavailable):
    """It is not there, or not in time, or its database is not: nothing is said of the bundle that it was asked for."""

    def __init__(self, said: str, cause: Cause = "down") -> None:
        super().__init__(said)
        self.cause = cause


class Overloaded(Exception):
    """A request waited too long for its turn: hardly any time is left, or a queue stands (`serve.arrival.Patience`)."""


AWAY = (DatabaseError, Away)
"""What is not held against a bundle."""


class Ladder:
    """What an answer does without."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.causes: dict[str, Cause] = {}
        """By reason code, in the order they came in; the first cause of each."""

    @property
    def codes(self) -> list[str]:
        """The reason codes."""
        return list(self.causes)

    def down(self, code: str, error: Exception) -> None:
        """Go on without what failed with `error`; raises it where the answer must be whole."""
        if self.whole:
            raise error
        log.warning("%s: %s", code, error)
        self.causes.setdefault(code, error.cause if isinstance(error, Unavailable) else "database")
