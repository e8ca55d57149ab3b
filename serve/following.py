"""What a replica answers with: the active bundle, the experiment and the rules, as the database has them.

It begins once a real answer has passed through every stage: for the active bundle or, where that one cannot be served,
for one that was active before it. Where a stage stays down it begins without such an answer. A bundle that is promoted
later is loaded beside the one that answers and takes over after it has answered. One that cannot changes nothing else:
rules and experiments go on being followed, each in a task of its own, for the bundle that answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from rec.errors import RecError
from rec.index.connections import Connections
from serve.degrade import AWAY, Unavailable
from serve.fallible import BackedFront
from serve.loaded import FOLLOW_S, Again, Attempts, Loaded, active, experiment, startable, told
from serve.metrics import metrics
from serve.trial import Trial

log = logging.getLogger("ray.serve")

P = ParamSpec("P")
T = TypeVar("T")

LOADING_S = 300.0
"""Longest wait for the first answer of a bundle: stages may have to load it."""


class Refused(NamedTuple):
    """The active bundle, while another one answers."""

    bundle: str
    error: str
    """Why it cannot."""


class Unproven(NamedTuple):
    """The active bundle, loaded, whose stages did not all answer."""

    bundle: str
    again: Again


class Following:
    """What the database says, followed by this replica."""

    front: BackedFront
    """Of the bundle that answers; there from `begin` on."""

    def __init__(
        self, pool: Connections, fronts: Loaded[BackedFront], prove: Callable[[BackedFront], Awaitable[None]]
    ) -> None:
        """`prove` has every stage answer for a front, and raises what one of them failed with."""
        self._pool, self._fronts, self._prove = pool, fronts, prove
        # a thread for each look: others may all wait for a database that does not answer
        self._threads = ThreadPoolExecutor(3, thread_name_prefix="following")
        self._tasks: list[asyncio.Task[None]] = []
        self._unproven: Unproven | None = None
        self._before: str | None = None  # the bundle that answered before this one
        self.trial = Trial(fronts, prove, self._threads)
        self.refused: Refused | None = None

    async def begin(self) -> None:
        """Have a front, one that has answered if that can be, and follow from now on.

        A stage that is down is waited for as long as LOADING_S; answers then do without it. Raises ArtifactError where
        no bundle can be loaded.
        """
        attempts, until = Attempts(), time.monotonic() + LOADING_S
        names = await self._in_thread(startable, self._pool)
        front = degraded = None
        for name in names:
            with attempts.at(name):
                loaded = await self._loaded(name)
                try:
                    await self._patiently(loaded, until)
                except AWAY as error:  # which says nothing of this bundle, and the next one would fare alike
                    log.error("starting with bundle %s, which has not answered yet: %s", name, error)
                except Unavailable:
                    degraded = degraded or loaded
                    raise
                front = loaded
                break
        front = front or degraded
        if front is None:
            raise attempts.unstartable()
        if front.bundle.id != names[0]:
            self._refuse(names[0], attempts.errors[names[0]])
        self._take(front)
        looks = {
            "rules": self._look_for_rules,
            "an experiment": self._look_for_an_experiment,
            "the active bundle": self._look_for_a_bundle,
        }
        self._tasks += [asyncio.create_task(self._follow(what, look)) for what, look in looks.items()]

    def fronts(self) -> list[BackedFront]:
        """All that a request can name: those that answer, the active one first, and the one that answered before while
        it is in memory and was not refused since. A stage that started later does not have it, and is done without."""
        answering, before = self.trial.fronts(self.front), self._in_memory()
        if before is None or before.bundle.id in [each.bundle.id for each in answering]:
            return answering
        return [*answering, before]

    def having(self, product_id: str) -> BackedFront | None:
        """The first of `fronts` whose bundle has a product: a page may show that of one that answers nobody."""
        return next((each for each in self.fronts() if each.shelf.known(product_id)), None)

    def unknown(self, product_ids: Iterable[str]) -> list[str]:
        """Those products that none of `fronts` has, each once."""
        missing = list(product_ids)
        for each in self.fronts():
            missing = each.shelf.unknown(missing)
        return missing

    def _in_memory(self) -> BackedFront | None:
        """Of the bundle that answered before this one."""
        return None if self._before is None else self._fronts.kept(self._before)

    async def _patiently(self, front: BackedFront, until: float) -> None:
        """Prove a front, again and again while a stage is away and it is not yet `until`, monotonic seconds."""
        while True:
            try:
                await self._prove(front)
                return
            except AWAY as error:
                if time.monotonic() >= until:
                    raise
                log.warning("bundle %s has not answered yet: %s", front.bundle.id, error)
            await asyncio.sleep(FOLLOW_S)

    async def _follow(self, what: str, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await look()
            except (RecError, Unavailable) as error:
                log.warning("staying with bundle %s, the look for %s failed: %s", self.front.bundle.id, what, error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # it was a call to a stage that Serve cancelled, and not this task
                log.warning("staying with bundle %s, the look for %s was cut short", self.front.bundle.id, what)
            except Exception:  # whatever it is, the next round may go well; a task that ended would never say so
                log.exception("staying with bundle %s, the look for %s failed", self.front.bundle.id, what)

    async def _look_for_rules(self) -> None:
        front, before = self.front, self._in_memory()
        await self._in_thread(front.rules.refresh)
        if front is self.front:
            self._tell_rules()
        if before is not None and before is not front:
            await self._in_thread(before.rules.refresh)

    async def _look_for_an_experiment(self) -> None:
        await self.trial.follow(lambda: self._in_thread(experiment, self._pool), lambda: self.front)

    async def _look_for_a_bundle(self) -> None:
        name = await self._in_thread(active, self._pool)
        if name != self.front.bundle.id:
            if self._unproven is not None and self._unproven.bundle != name:
                self._unproven = None
            if self._unproven is not None and not self._unproven.again.due():
                return
            try:
                front = await self._proven(name)
            except AWAY:  # not the bundle's fault
                raise
            except Exception as error:
                if await self._in_thread(active, self._pool) == name:
                    self._refuse(name, error)
                return
            if await self._in_thread(active, self._pool) != name:  # to prove it may take minutes
                return
            log.info("bundle %s takes over from %s", name, self.front.bundle.id)
            self._before = self.front.bundle.id
            self._take(front)
        self.refused = self._unproven = None
        metrics().refused(False)

    async def _in_thread(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """What `work` returns, in a thread that nothing else needs."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *given, **named))

    async def _proven(self, name: str) -> BackedFront:
        front = await self._loaded(name)
        try:
            await self._prove(front)
        except Exception:
            self._unproven = Unproven(name, Again.after(None if self._unproven is None else self._unproven.again))
            raise
        return front

    async def _loaded(self, name: str) -> BackedFront:
        front = await self._in_thread(self._fronts.get, name)
        await self._in_thread(front.rules.refresh)  # it may have been loaded long ago
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
        if self._before == name:
            self._before = None
        metrics().refused(True)
