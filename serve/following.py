"""What a replica answers with: the active bundle, the experiment and the rules, as the database has them.

It begins once a real answer has passed through every stage: for the active bundle or, where that one cannot be served,
for one that was active before it. A bundle that is promoted later is loaded beside the one that answers and takes
over after it has answered. One that cannot changes nothing else: rules and experiments go on being followed, each in
a task of its own, for the bundle that answers.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from rec.errors import DatabaseError, RecError
from rec.index.connections import Connections
from serve.degrade import Unavailable
from serve.fallible import BackedFront
from serve.loaded import FOLLOW_S, Loaded, active, experiment, startable, told, unstartable
from serve.metrics import metrics
from serve.trial import Trial

log = logging.getLogger("ray.serve")


class Refused(NamedTuple):
    """The active bundle, while another one answers."""

    bundle: str
    error: str
    """Why it cannot."""


class Following:
    """What the database says, followed by this replica."""

    front: BackedFront
    """Of the bundle that answers; there from `begin` on."""

    def __init__(
        self, pool: Connections, fronts: Loaded[BackedFront], prove: Callable[[BackedFront], Awaitable[None]]
    ) -> None:
        """`prove` has every stage answer for a front, and raises what one of them failed with."""
        self._pool, self._fronts, self._prove = pool, fronts, prove
        self._tasks: list[asyncio.Task[None]] = []
        self.trial = Trial(fronts, prove)
        self.refused: Refused | None = None

    async def begin(self) -> None:
        """Have a front that has answered, and follow from now on. Raises ArtifactError where there is none."""
        said = []
        for name in await asyncio.to_thread(startable, self._pool):
            try:
                self._take(await self._proven(name))
                break
            except DatabaseError:
                raise
            except Exception as error:
                log.exception("not starting with bundle %s", name)
                said.append(told(name, error))
                self._refuse(name, error)
        else:
            raise unstartable(said)
        looks = (self._look_for_rules, self._look_for_an_experiment, self._look_for_a_bundle)
        self._tasks += [asyncio.create_task(self._follow(look)) for look in looks]

    async def _follow(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await look()
            except (RecError, Unavailable) as error:
                log.warning("staying with bundle %s and its rules: %s", self.front.bundle.id, error)
            except Exception:  # whatever it is, the next round may go well; a task that ended would never say so
                log.exception("staying with bundle %s and its rules", self.front.bundle.id)

    async def _look_for_rules(self) -> None:
        front = self.front
        await asyncio.to_thread(front.rules.refresh)
        if front is self.front:
            self._tell_rules()

    async def _look_for_an_experiment(self) -> None:
        await self.trial.follow(await asyncio.to_thread(experiment, self._pool), self.front)

    async def _look_for_a_bundle(self) -> None:
        name = await asyncio.to_thread(active, self._pool)
        if name != self.front.bundle.id:
            try:
                front = await self._proven(name)
            except DatabaseError:
                raise
            except Exception as error:
                self._refuse(name, error)
                return
            log.info("bundle %s takes over from %s", name, self.front.bundle.id)
            self._take(front)
        self.refused = None
        metrics().refused(False)

    async def _proven(self, name: str) -> BackedFront:
        front = await asyncio.to_thread(self._fronts.get, name)
        await asyncio.to_thread(front.rules.refresh)  # it may have been loaded long ago
        await self._prove(front)
        return front

    def _take(self, front: BackedFront) -> None:
        self.front = front
        self._tell_rules()

    def _tell_rules(self) -> None:
        ruling = self.front.rules.ruling
        metrics().rules(0 if ruling is None else ruling.number)

    def _refuse(self, name: str, error: Exception) -> None:
        found = Refused(name, told(name, error))
        if found != self.refused:
            foreseen = isinstance(error, (RecError, Unavailable))
            log.error("bundle %s is not used: %s", name, found.error, exc_info=not foreseen)
        self.refused = found
        metrics().refused(True)
