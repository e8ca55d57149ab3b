"""State resolution, and the whole chain in one process: what the Serve graph does, without Ray."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from rec.bundle import Bundle
from rec.errors import InputError
from rec.index.catalogue import Catalogue, Known, PastEvent
from rec.index.connections import Connections
from rec.recommend.encode import UserEncoder
from rec.recommend.fitting import Fitter
from rec.recommend.request import Answer, Applied, Request
from rec.recommend.retrieve import Retriever
from rec.recommend.rulebook import RuleBook
from rec.recommend.ruling import NOTHING, Arranged, InForce, Ruling
from rec.recommend.score import Scorer
from rec.recommend.shelf import Shelf
from rec.recommend.why import Explainer
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


RULES_S = 2.0
"""How old the rules of a chain may be."""


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
        leave out: the catalogue changes, and the user cannot help it.
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


class Chain:
    """The recommender of one bundle in this process."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        shelf = Shelf(bundle)
        self.bundle = bundle
        self.shelf = shelf
        self._catalogue = Catalogue(connections, bundle.recipe)
        self._resolver = Resolver(bundle, shelf)
        self._encoder = UserEncoder(bundle)
        self._retriever = Retriever(bundle, connections)
        self._scorer = Scorer(bundle)
        self._explainer = Explainer(bundle, shelf)
        self._fitter = Fitter(bundle, shelf)
        self._num_candidates = bundle.config.ranker.candidates
        self.vectors = self._explainer.vectors
        """float32[N, d] unit rows."""
        self.rules = RuleBook(connections, bundle, shelf, self.vectors)

    def recommend(self, request: Request, clock: datetime | None = None) -> Answer:
        """Answer a request at `clock`, by default now, under the rules in force, at most RULES_S seconds late."""
        self.rules.refresh(older_than_s=RULES_S)
        return self.answer(request, self.rules.ruling, clock)

    def answer(self, request: Request, ruling: Ruling | None, clock: datetime | None = None) -> Answer:
        """Answer a request under the rules given."""
        watch = Stopwatch()
        now = clock or datetime.now(UTC)
        at = moment(self.bundle, now)
        ruling = ruling if request.rules else None
        rules = standing(ruling, now)
        known = NOBODY if request.user_id is None else self._catalogue.known(request.user_id, STORED_EVENTS)
        state, exclude = self._resolver.resolve(request, known, at)
        exclude = np.union1d(exclude, rules.exclude)
        watch.lap("state")
        encoded = self._encoder.encode(state)
        watch.lap("user_tower")
        found = self._retriever.retrieve(
            encoded.vector,
            max(self._num_candidates, request.k),
            state=state,
            exclude=exclude,
            filters=request.filters,
            also=rules.pinned(request.k),
        )
        watch.lap("retrieval")
        ranked = self._scorer.rank(state, found.candidates, len(found.candidates.rows), microseconds(at))
        watch.lap("ranking")
        arranged = rules.arrange(ranked, request.k, prices(rules, ranked.rows, self.shelf, self._catalogue))
        watch.lap("rules")
        items = self._explainer.explain(arranged.ranked, state, encoded)
        add_codes(items, arranged)
        self._fitter.add(items, request, known, self._catalogue)
        freshen(items, self._catalogue)
        watch.lap("explanation")
        applied = None
        if ruling is not None:
            left_out = rules.left_out(ranked.rows, exclude, request.k)
            applied = Applied(ruling.number, left_out, arranged.moved_by)
        return Answer(items, self.bundle.id, at, len(items) < request.k, applied, watch.milliseconds())


NOBODY = Known([], {})


def standing(ruling: Ruling | None, now: datetime) -> InForce:
    """The rules that hold at a moment."""
    return NOTHING if ruling is None else ruling.in_force(now)


def prices(rules: InForce, rows: np.ndarray, shelf: Shelf, catalogue: Catalogue) -> np.ndarray | None:
    """float32[n] live prices of item rows, nan where there is none; None where no rule asks for them."""
    if not rules.needs_prices:
        return None
    names = [shelf.product_id(row) for row in rows.tolist()]
    live = catalogue.live(names)
    # None, in the database or because the product is not in it, becomes nan
    return np.array([live.get(name, {}).get("price") for name in names], np.float32)


def add_codes(items: list[dict[str, Any]], arranged: Arranged) -> None:
    """Put the reason codes of rules after the others of each item dictionary, in place."""
    for item, codes in zip(items, arranged.codes, strict=True):
        item["reasons"] += codes


def microseconds(at: datetime) -> int:
    """UTC microseconds since 1970."""
    return round(at.timestamp() * 1e6)


def freshen(items: list[dict[str, object]], catalogue: Catalogue) -> None:
    """Put the live price into item dictionaries, in place."""
    live = catalogue.live([str(item["product_id"]) for item in items])
    for item in items:
        now = live.get(str(item["product_id"]), {})
        item.update({name: now[name] for name in ("price", "currency") if name in now})


class Stopwatch:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap was spent in `stage`."""
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def milliseconds(self) -> Mapping[str, float]:
        """By stage, and `total`."""
        laps = {**self._laps, "total": 1e3 * (self._last - self._start)}
        return {stage: round(spent, 2) for stage, spent in laps.items()}
