"""The whole chain in one process: what the Serve graph does, without Ray."""

from datetime import UTC, datetime

from rec.bundle import Bundle
from rec.index.connections import Connections
from rec.index.search import Filters
from rec.recommend.encode import UserEncoder
from rec.recommend.front import NOBODY, Front, microseconds
from rec.recommend.passage import Explanation, Passage, explanation
from rec.recommend.request import Answer, Applied, Request
from rec.recommend.retrieve import Retriever
from rec.recommend.ruling import Ruling
from rec.recommend.score import Scorer
from rec.recommend.stopwatch import Stopwatch

RULES_S = 2.0
"""How old the rules of a chain may be."""


class Chain:
    """The recommender of one bundle in this process."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        self.bundle = bundle
        self._front = Front(bundle, connections)
        self._encoder = UserEncoder(bundle)
        self._retriever = Retriever(bundle, connections)
        self._scorer = Scorer(bundle)
        self.shelf, self.rules = self._front.shelf, self._front.rules
        self.vectors = self._front.vectors
        """float32[N, d] unit rows."""

    def recommend(self, request: Request, clock: datetime | None = None) -> Answer:
        """Answer a request at `clock`, by default now, under the rules in force, at most RULES_S seconds late."""
        self.rules.refresh(older_than_s=RULES_S)
        return self.answer(request, self.rules.ruling, clock)

    def answer(self, request: Request, ruling: Ruling | None, clock: datetime | None = None) -> Answer:
        """Answer a request under the rules given."""
        watch = Stopwatch()
        passage = self._pass(request, ruling, clock, watch)
        with watch.lap("explanation"):
            items = self._front.items(passage)
            self._front.freshen(items)
        began, applied = passage.began, None
        if began.ruling is not None:
            applied = Applied(began.ruling.number, passage.left_out(), passage.arranged.moved_by)
        return Answer(items, self.bundle.id, began.at, len(items) < request.k, applied, watch.milliseconds())

    def explain(
        self, request: Request, product_id: str, ruling: Ruling | None, clock: datetime | None = None
    ) -> Explanation:
        """Why a product is or is not in the `answer` to the same request."""
        passage = self._pass(request, ruling, clock, Stopwatch())
        items = self._front.items(passage)
        self._front.freshen(items)
        available = passes = False
        if self.shelf.known(product_id):
            row = self.shelf.rows([product_id])
            available, passes = (len(self._retriever.passing(row, each)) > 0 for each in (Filters(), request.filters))
        return explanation(passage, product_id, items, self.shelf, self.vectors, available=available, passes=passes)

    def _pass(self, request: Request, ruling: Ruling | None, clock: datetime | None, watch: Stopwatch) -> Passage:
        now = clock or datetime.now(UTC)
        with watch.lap("state"):
            known = self._front.known(request) if request.named else NOBODY
            began = self._front.begin(request, known, ruling, now)
        with watch.lap("user_tower"):
            encoded = self._encoder.encode(began.state)
        with watch.lap("retrieval"):
            found = self._retriever.retrieve(
                encoded.vector,
                began.num_candidates,
                state=began.state,
                exclude=began.exclude,
                filters=request.filters,
                also=began.rules.pinned(request.k),
            )
        with watch.lap("ranking"):
            count = len(found.candidates.rows)
            ranked = self._scorer.rank(began.state, found.candidates, count, microseconds(began.at))
        with watch.lap("rules"):
            prices = self._front.prices(ranked.rows) if began.rules.needs_prices else None
            arranged = began.rules.arrange(ranked, request.k, prices)
        return Passage(began, encoded, found.candidates, ranked, arranged)
