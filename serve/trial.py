"""The bundle that an experiment tries, beside the active one: loaded, tried, and then given to its share of shoppers.

It takes part once every stage has answered for it. Until then, and where it cannot be loaded, the active bundle answers
everybody and nobody counts for the experiment, in neither arm.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace

from rec.errors import RecError
from rec.index.experiments import TREATMENT, Experiment
from rec.recommend.request import Request
from serve.degrade import Unavailable
from serve.exposures import Arm
from serve.fallible import BackedFront
from serve.loaded import Loaded

log = logging.getLogger("ray.serve")


class Trial:
    """What this replica knows of the experiment that runs."""

    def __init__(
        self, fronts: Loaded[BackedFront], prove: Callable[[BackedFront], Awaitable[None]], threads: Executor
    ) -> None:
        """`prove` has every stage answer for a front, and raises what one of them failed with."""
        self._fronts, self._prove, self._threads = fronts, prove, threads
        self._running: tuple[Experiment, BackedFront] | None = None

    async def follow(self, look: Callable[[], Awaitable[Experiment | None]], active: Callable[[], BackedFront]) -> None:
        """Take part in the experiment that `look` finds, or no longer; never raises what is wrong with its bundle.

        The one of another bundle than the `active` one of this replica is waited for.
        """
        found = await look()
        running = self._beside(active())
        if found is None or running is None or running[0].number != found.number:
            self._running = None
        if found is None or found.control != active().bundle.id:
            return
        loop = asyncio.get_running_loop()
        try:
            front = await loop.run_in_executor(self._threads, self._fronts.get, found.treatment)
            await loop.run_in_executor(self._threads, front.rules.refresh)
            if self._running is None:
                await self._prove(front)
                if await look() == found and found.control == active().bundle.id:  # to prove it may take minutes
                    self._running = found, front
                    log.info("experiment %d: bundle %s beside %s", found.number, found.treatment, found.control)
        except (RecError, Unavailable) as error:
            log.warning("experiment %d: bundle %s: %s", found.number, found.treatment, error)

    def _beside(self, active: BackedFront) -> tuple[Experiment, BackedFront] | None:
        """The experiment and the bundle that it tries; None where it is not the `active` one's, which just switched."""
        running = self._running
        return running if running is not None and running[0].control == active.bundle.id else None

    def of(self, active: BackedFront, user_id: str | None, client_id: str | None) -> tuple[BackedFront, Arm | None]:
        """The front that answers a shopper, and the shopper's arm."""
        running = self._beside(active)
        if running is None:
            return active, None
        experiment, treatment = running
        arm = experiment.arm(user_id, client_id)
        if arm is None:
            return active, None
        return treatment if arm == TREATMENT else active, Arm(experiment.number, arm)

    def fronts(self, active: BackedFront) -> list[BackedFront]:
        """All that answer, the active one first."""
        running = self._beside(active)
        return [active] if running is None else [active, running[1]]

    def told(self, active: BackedFront, front: BackedFront, request: Request) -> Request:
        """The request as `front` takes it: without what its history has of products that only another front knows.

        A storefront does not know which bundle answers a shopper, so no product of either may be an error.
        """
        others = [each for each in self.fronts(active) if each is not front]
        history = tuple(
            choice
            for choice in request.history
            if front.shelf.known(choice.product_id) or not any(each.shelf.known(choice.product_id) for each in others)
        )
        return replace(request, history=history)
