"""Doing without a stage that does not answer."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

log = logging.getLogger("ray.serve")

T = TypeVar("T")


class Unavailable(Exception):
    """A stage did not answer."""


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


async def within(seconds: float, stage: str, answer: Awaitable[T]) -> T:
    """The stage's answer. Raises Unavailable when it fails, refuses or takes longer than `seconds`."""
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError:
        raise Unavailable(f"{stage}: no answer within {seconds:g} s") from None
    except (RayError, RayServeException) as error:
        raise Unavailable(f"{stage}: {str(error).splitlines()[-1]}") from error
