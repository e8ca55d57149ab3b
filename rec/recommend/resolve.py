"""From a request, and what the database knows of the shopper, to the user state."""

import json
from datetime import datetime, timedelta

import numpy as np

from rec.bundle import Bundle
from rec.errors import InputError
from rec.index.catalogue import Known, PastEvent
from rec.recommend.request import Request
from rec.recommend.shelf import Shelf
from rec.schema import EVENTS
from rec.state import UserState

STORED_EVENTS = 1_000
"""Last events of a known user that are read: the history and what was seen."""

UNDATED_STEP = timedelta(days=1)
"""Products of an inline history without times count as chosen a day apart, the last one a day ago; closer together
where they would not all come after the last stored event."""

STALE = timedelta(days=60)
"""Data that ended longer ago than this is served as of the day after it ended: ages of years would be all that the
models see."""


class UnknownProducts(InputError):
    """A request names products that the bundle does not have."""

    def __init__(self, product_ids: list[str]) -> None:
        super().__init__(f"unknown products: {', '.join(product_ids)}")
        self.product_ids = product_ids


def moment(bundle: Bundle, clock: datetime) -> datetime:
    """The time of a request: the clock, unless the bundle's data is stale."""
    return clock if clock - bundle.data_until <= STALE else bundle.data_until + timedelta(days=1)


class Resolver:
    """From a request to the user state and the rows to leave out, for one bundle."""

    def __init__(self, bundle: Bundle, shelf: Shelf) -> None:
        described = json.loads((bundle.folder("user_tower") / "user_tower.json").read_text(encoding="utf-8"))
        self.profile_names: list[str] = described["profile_names"]
        """Profile columns that the towers read."""
        self._history: int = described["history"]
        self._exclude_seen = bundle.config.user_tower.exclude_seen
        self._shelf = shelf

    def resolve(self, request: Request, known: Known, at: datetime) -> tuple[UserState, np.ndarray]:
        """The state at `at`, and int64[E] item rows that are no candidates. Raises UnknownProducts.

        Stored events on products that this bundle does not have are passed over, and so are unknown products to
        leave out: the catalogue changes, and the user cannot help it. `passed_over` counts them.
        """
        missing = self._shelf.unknown(choice.product_id for choice in request.history)
        if missing:
            raise UnknownProducts(missing)
        past = [event for event in known.events if self._shelf.known(event.product_id)]
        count = len(request.history)
        latest = max((event.at for event in past), default=at - UNDATED_STEP * (count + 1))
        step = min(UNDATED_STEP, max(at - latest, timedelta(0)) / (count + 1))
        past += [
            PastEvent(choice.product_id, choice.event, choice.at or max(at, latest) - step * (count - place))
            for place, choice in enumerate(request.history)
        ]
        past.sort(key=lambda event: event.at)
        rows = self._shelf.rows([event.product_id for event in past])
        last = past[-self._history :]
        profile = {**known.profile, **request.profile}
        state = UserState(
            items=rows[-self._history :],
            events=np.array([1 + EVENTS.index(event.event) for event in last], np.int64),
            ages_s=np.array([max((at - event.at).total_seconds(), 0.0) for event in last], np.float32),
            context=" ".join(request.context.split()),
            profile=np.array([profile.get(name, np.nan) for name in self.profile_names], np.float32),
        )
        seen = rows if self._exclude_seen else rows[:0]
        return state, np.union1d(seen, self._shelf.rows([id for id in request.exclude if self._shelf.known(id)]))

    def passed_over(self, request: Request, known: Known) -> dict[str, int]:
        """How much that is told or stored this bundle does not have.

        `event`: stored events on other products; `exclude`: other products to leave out; `profile`: columns that the
        models do not read. A shop whose ids have come apart from the catalogue's shows here and nowhere else.
        """
        return {
            "event": sum(not self._shelf.known(event.product_id) for event in known.events),
            "exclude": len(self._shelf.unknown(request.exclude)),
            "profile": len({*known.profile, *request.profile}.difference(self.profile_names)),
        }
