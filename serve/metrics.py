"""What the application counts. Ray exports it for Prometheus on the metrics port of its node, names behind `ray_`."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from ray.util.metrics import Counter, Gauge, Histogram

from rec.retrieval import SOURCES
from serve.degrade import Cause

STAGE_MS = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 4_000.0, 10_000.0]
"""Upper bounds of the latency buckets, milliseconds."""
RECALLS = [0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999, 1.0]
"""Upper bounds of the buckets of recall."""

SCORES = [step / 10 for step in range(1, 11)]
"""Upper bounds of the buckets of the inner product of two unit vectors."""
HISTORIES = [(20, "20+"), (5, "5-19"), (2, "2-4"), (1, "1"), (0, "0")]
"""Fewest events of a shopper, and the label of these and more."""

FUNNEL = ("candidates", "ranked", "shown")
"""Steps of rec.recommend.request.Funnel that are counted; the catalogue is the same for every answer."""


class Metrics:
    """The counters of this process."""

    def __init__(self) -> None:
        self._requests = Counter("rec_requests", "Requests by route and class of status.", ("route", "status"))
        self._stages = Histogram("rec_stage_ms", "Milliseconds by stage.", STAGE_MS, ("stage",))
        self._shoppers = Counter("rec_shoppers", "Answers by how many events were known of the shopper.", ("events",))
        self._nearest = Histogram("rec_nearest", "Inner product of shopper and nearest candidate.", SCORES, ())
        self._candidates = Counter("rec_candidates", "Candidates by the source that found them.", ("source",))
        self._funnel = Counter("rec_funnel", "Products of answers by how far they came.", ("step",))
        self._degraded = Counter(
            "rec_degraded", "Answers that did without something, by reason code and cause.", ("reason", "cause")
        )
        self._events = Counter("rec_events", "Live events by what became of them.", ("outcome",))
        self._unknown = Counter("rec_unknown", "What answers passed over as the bundle lacks it, by kind.", ("what",))
        self._exposures = Counter("rec_exposures", "Lists by what became of their log entry.", ("outcome",))
        self._recall = Histogram(
            "rec_index_recall", "Recall of sampled answers of the HNSW index, by class of filter.", RECALLS, ("filter",)
        )
        self._rules = Gauge("rec_rules_version", "Version of the rules in force, 0 for none.")
        self._refused = Gauge("rec_bundle_refused", "1 while the active bundle cannot be served, else 0.")

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.inc(tags={"route": route, "status": f"{status // 100}xx"})

    def answer(
        self,
        milliseconds: Mapping[str, float],
        sources: np.ndarray,
        funnel: Mapping[str, int],
        degraded: Mapping[str, Cause],
    ) -> None:
        """A recommendation took so long by stage, had candidates of `sources` int64[K], so many products by step of its
        `funnel`, and did without `degraded`, causes by reason code."""
        for stage, spent in milliseconds.items():
            self._stages.observe(spent, tags={"stage": stage})
        for place, source in enumerate(SOURCES):
            count = int((sources >> place & 1).sum())
            if count:
                self._candidates.inc(count, tags={"source": source})
        for step in FUNNEL:
            if funnel[step]:
                self._funnel.inc(funnel[step], tags={"step": step})
        self.degraded(degraded)

    def waited(self, milliseconds: float) -> None:
        """So long a recommendation has waited, as far as that is known, when it was begun or refused: stage `wait`."""
        self._stages.observe(milliseconds, tags={"stage": "wait"})

    def shopper(self, events: int, nearest: float | None) -> None:
        """An answer to a shopper of so many known events, whose vector has this inner product with the nearest
        candidate's; None: there was no vector, or no candidate."""
        self._shoppers.inc(tags={"events": next(name for fewest, name in HISTORIES if events >= fewest)})
        if nearest is not None:
            self._nearest.observe(nearest)

    def degraded(self, causes: Mapping[str, Cause]) -> None:
        """An answer did without something; `causes` by reason code."""
        for reason, cause in causes.items():
            self._degraded.inc(tags={"reason": reason, "cause": cause})

    def events(self, outcomes: Mapping[str, int]) -> None:
        """So many live events were stored, repeated, of forgotten users."""
        for outcome, count in outcomes.items():
            if count:
                self._events.inc(count, tags={"outcome": outcome})

    def unknown(self, counts: Mapping[str, int]) -> None:
        """An answer passed over so much that its bundle does not have, by kind (rec.recommend.resolve)."""
        for what, count in counts.items():
            if count:
                self._unknown.inc(count, tags={"what": what})

    def exposures(self, outcome: str, count: int) -> None:
        """So many lists were `logged`, or `dropped` from the log."""
        self._exposures.inc(count, tags={"outcome": outcome})

    def recall(self, filter_class: str, value: float) -> None:
        """A sampled search of a class of rec.index.recall found this share of exact search."""
        self._recall.observe(value, tags={"filter": filter_class})

    def rules(self, version: int) -> None:
        """These rules are in force."""
        self._rules.set(version)

    def refused(self, refused: bool) -> None:
        """Whether another bundle than the active one answers, as that one cannot."""
        self._refused.set(refused)


@cache
def metrics() -> Metrics:
    """Those of this process, made when first asked for."""
    return Metrics()
