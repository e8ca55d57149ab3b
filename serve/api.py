"""Bodies of the HTTP API: what is accepted, with its limits, and what is answered."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rec import profile
from rec.histories import BODY
from rec.index.live_events import LiveEvent
from rec.index.search import Filters
from rec.recommend.passage import Outcome
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_HISTORY, MAX_K, Choice, Request
from rec.sizes import MAX_SIZE_CHARS

MAX_BODY_BYTES = 64 * 1024
MAX_EXCLUDE = 1_000
MAX_PROFILE_COLUMNS = 64
MAX_EVENTS = 100
CLOCK_SKEW = timedelta(minutes=1)
"""How far the clock of whoever sends an event may be ahead; what is later is of the future."""
FIRST_EVENT = datetime(1970, 1, 1, tzinfo=UTC)

Text = StringConstraints(pattern="^[^\\x00]*$")  # Postgres stores no NUL
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[^\\x00]*$")]
ExposureId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Size = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SIZE_CHARS, pattern="^[^\\x00]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Price = Annotated[Number, Field(ge=0, le=1e9)]
"""Well within float32, which prices are stored as."""


def profile_ranges() -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the columns that a body bounds; other profile columns are any finite number."""
    return profile.ranges(datetime.now(UTC).year)


class Body(BaseModel):
    """Part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Event(Body):
    """A product of the history."""

    product_id: Id
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "view"
    at: AwareDatetime | None = None
    """When it happened; leave out for "recently", after all that is stored of the user."""
    size: Size | None = None
    """What size it was in, as the shop writes it."""
    fit: Literal["small", "fit", "large"] | None = None
    """How it fitted."""


class FilterBody(Body):
    """What a product must be."""

    category: list[Id] = Field(default=[], max_length=20)
    """Any of these categories."""
    price_min: Price | None = None
    price_max: Price | None = None

    def filters(self) -> Filters:
        """As the recommender takes them."""
        return Filters(categories=tuple(self.category), price_min=self.price_min, price_max=self.price_max)

    @model_validator(mode="after")
    def _ordered(self) -> "FilterBody":
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_min is above price_max")
        return self


class RecommendBody(Body):
    """A request for recommendations; every part is optional."""

    user_id: Id | None = None
    """Whose stored history and profile to use; an unknown id is a new user."""
    client_id: Id | None = None
    """Whose anonymous events to use, beside those of the user, as of a shopper who has just signed in."""
    history: list[Id | Event] = Field(default=[], max_length=MAX_HISTORY)
    """Products chosen so far, oldest first; follows what is stored of the user."""
    context: Annotated[str, Text] = Field(default="", max_length=MAX_CONTEXT_CHARS)
    """What the shopper is looking for, in their own words."""
    profile: dict[Id, Number] = Field(default={}, max_length=MAX_PROFILE_COLUMNS)
    """height_cm, weight_kg, birth_year, and further columns of the recipe; wins over what is stored."""
    filters: FilterBody = FilterBody()
    k: int = Field(default=10, ge=1, le=MAX_K)
    exclude: list[Id] = Field(default=[], max_length=MAX_EXCLUDE)
    """Products that must not be recommended."""
    rules: bool = True
    """Whether the merchandiser's rules apply; false shows the list without them."""

    def request(self) -> Request:
        """The request as the recommender takes it."""
        return Request(
            user_id=self.user_id,
            client_id=self.client_id,
            history=tuple(
                Choice(told) if isinstance(told, str) else Choice(**told.model_dump()) for told in self.history
            ),
            context=self.context,
            profile=dict(self.profile),
            filters=self.filters.filters(),
            k=self.k,
            exclude=tuple(self.exclude),
            rules=self.rules,
        )


class ExplainBody(RecommendBody):
    """Whose list it is about, as it was asked for, and which product."""

    product_id: Id


class ExplainQuery(FilterBody):
    """Which product, and the list of a shopper never seen: addresses stand in the logs of proxies."""

    product_id: Id = Field(examples=["S0003"])
    exclude: list[Id] = Field(default=[], max_length=MAX_EXCLUDE)
    k: int = Field(default=10, ge=1, le=MAX_K)
    rules: bool = True

    def request(self) -> Request:
        """The request whose list it is."""
        return Request(filters=self.filters(), k=self.k, exclude=tuple(self.exclude), rules=self.rules)


class LiveEventBody(Body):
    """Something that a shopper just did."""

    event_id: Id
    """The shop's own; what has the same id is the same event, however often it is sent."""
    product_id: Id
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "view"
    user_id: Id | None = None
    client_id: Id | None = None
    """Of a shopper who has not signed in, as from a cookie; give this or `user_id`."""
    at: AwareDatetime | None = None
    """When it happened; leave out for now."""
    context: Annotated[str, Text] | None = Field(default=None, max_length=MAX_CONTEXT_CHARS)
    """What the shopper was looking for; stored with the event."""
    size: Size | None = None
    """What size it was in, as the shop writes it."""
    fit: Literal["small", "fit", "large"] | None = None
    """How it fitted."""
    exposure_id: ExposureId | None = None
    """Of the answer to `POST /v1/recommend` that it follows from."""

    @model_validator(mode="after")
    def _checked(self) -> "LiveEventBody":
        if (self.user_id is None) == (self.client_id is None):
            raise ValueError("give either user_id or client_id")
        if self.at is not None and self.at > datetime.now(UTC) + CLOCK_SKEW:
            raise ValueError("at is in the future")
        if self.at is not None and self.at < FIRST_EVENT:
            raise ValueError("at is before 1970")
        return self


class EventsBody(Body):
    """Up to 100 events; all are taken, or none."""

    events: list[LiveEventBody] = Field(min_length=1, max_length=MAX_EVENTS)

    def live(self, now: datetime) -> list[LiveEvent]:
        """The events as they are stored; what has no time, or a time ahead of the clock, happened at `now`."""
        return [
            LiveEvent(**{**event.model_dump(), "at": now if event.at is None else min(event.at, now)})
            for event in self.events
        ]


class TakenEvents(BaseModel):
    """The answer to POST /v1/events: ids by what became of the event."""

    model_config = ConfigDict(from_attributes=True)

    stored: list[str]
    repeated: list[str]
    """They were there already."""
    forgotten: list[str]
    """Of users whose data was deleted for good: not stored."""


class StoredEvent(BaseModel):
    """An event of the shop's log as loaded."""

    product_id: str
    event: str
    at: datetime
    size: str | None
    fit: str | None


class StoredLiveEvent(StoredEvent):
    """An event that POST /v1/events took."""

    event_id: str
    context: str | None
    received_at: datetime
    exposure_id: str | None
    """The list that it follows from."""
    in_log: bool
    """Whether `events` has it as well; it then counts there."""


class StoredExposure(BaseModel):
    """A list that the user was shown, as it is stored (rec/index/exposures.py)."""

    exposure_id: str
    bundle: str
    experiment: int | None
    arm: str | None
    user_id: str | None
    client_id: str | None
    served_at: datetime
    at: datetime
    context: str
    k: int
    degraded: list[str]
    products: list[str]
    """In the order shown."""
    scores: list[float]
    probabilities: list[float] | None
    retrieval_scores: list[float]
    sources: list[int]
    cooccurrence: list[float]
    places: list[int]
    retrieved: int
    candidates: list[str]
    """What else could have been shown, in the order of retrieval."""
    candidate_scores: list[float]
    candidate_sources: list[int]
    history: list[str]
    """What the models were told of the user then, oldest first."""
    history_events: list[int]
    history_ages: list[float]
    profile: dict[str, float]


class StoredUser(BaseModel):
    """The answer to GET /v1/users/{id}: all that the database holds of a user."""

    user_id: str
    profile: dict[str, float]
    events: list[StoredEvent]
    """Oldest first."""
    live_events: list[StoredLiveEvent]
    """Oldest first."""
    exposures: list[StoredExposure]
    """Oldest first."""


class ForgottenUser(BaseModel):
    """The answer to DELETE /v1/users/{id}: how many rows were deleted."""

    model_config = ConfigDict(from_attributes=True)

    events: int
    profiles: int
    live_events: int
    exposures: int


class ForgottenClient(BaseModel):
    """The answer to DELETE /v1/clients/{id}: how many rows were deleted."""

    model_config = ConfigDict(from_attributes=True)

    live_events: int
    exposures: int


def profile_problem(given: dict[str, float], names: list[str]) -> tuple[str, str] | None:
    """(column, what is wrong with it) of the first bad profile column, given the columns that the models read."""
    ranges = profile_ranges()
    for name, value in given.items():
        if name not in BODY and name not in names:
            return name, f"unknown profile column (known: {', '.join(dict.fromkeys([*BODY, *names]))})"
        low, high = ranges.get(name, (-float("inf"), float("inf")))
        if not low <= value <= high:
            return name, f"{value:g} must lie between {low:g} and {high:g}"
    return None


class Matched(BaseModel):
    """An attribute that two products share."""

    kind: Literal["std", "re"]
    key: str
    value: str


class Cause(BaseModel):
    """The product of the history that is nearest to a recommended one."""

    product_id: str
    title: str
    cosine: float
    matched: list[Matched]


class Product(BaseModel):
    """A product as shown."""

    product_id: str
    title: str
    brand: str | None
    price: float | None
    currency: str | None
    snippet: str
    attributes: dict[str, list[str]]
    """STD values by key."""
    details: dict[str, list[str]]
    """RE values by key."""


class Fitted(BaseModel):
    """The size of a product to take, and the chances that it is too small, fits, is too large."""

    size: str
    small: float
    fit: float
    large: float


class Recommended(Product):
    """A recommended product and why."""

    score: float
    """Higher is better; comparable within one answer only. Rules may put an item above one of a higher score."""
    probability: float | None
    """That it is the shopper's next choice, given that this is one of the candidates; null without the ranker."""
    retrieval_score: float
    """Inner product of user and product vector."""
    sources: list[Literal["ann", "item", "cooccurrence", "popular"]]
    """All that found it: the user vector's neighbours, those of the last products of the history, what others had
    together with these, what is popular among shoppers alike. Empty: a rule alone brought it in."""
    reasons: list[str]
    """Codes; see rec/recommend/why.py."""
    because: Cause | None
    fit: Fitted | None
    """null where the shop foretells no fit, or knows neither body nor earlier sizes of the shopper."""


class PinLeftOut(BaseModel):
    """A pinned product that the list does not have."""

    model_config = ConfigDict(from_attributes=True)

    product_id: str
    reason: Literal["excluded", "filtered"]
    """`excluded`: by the request, by a rule, or because the shopper has it; `filtered`: the request's filters do not
    let it pass, or it is out of stock."""


class AppliedRules(BaseModel):
    """The merchandiser's rules that arranged a list."""

    version: int
    left_out: list[PinLeftOut]


class Arm(BaseModel):
    """Which part of an experiment a shopper is in."""

    number: int
    """Of the experiment."""
    arm: Literal["control", "treatment"]


class Recommendations(BaseModel):
    """The answer to POST /v1/recommend."""

    items: list[Recommended]
    exposure_id: str
    """Of this list; send it with the events that follow from it."""
    bundle: str
    experiment: Arm | None
    """null: none runs, or the shopper is neither a user nor a client."""
    at: datetime
    """The moment that ages of events and products were taken at."""
    degraded: list[str]
    """What the answer did without, as codes (rec/recommend/why.py); `prices_unavailable`: prices are as published."""
    underfilled: bool
    """Fewer than k products pass the filters."""
    rules: AppliedRules | None
    """None: there are none, or the request declined them."""
    milliseconds: dict[str, float]


class Neighbour(Product):
    """A product near another one."""

    score: float
    """Cosine."""
    matched: list[Matched]


class Neighbours(BaseModel):
    """The answer to GET /v1/products/{id}/similar."""

    product: Product
    items: list[Neighbour]
    bundle: str
    degraded: list[str]
    """As in POST /v1/recommend."""


class Nearness(BaseModel):
    """A product in the order of the user vector."""

    rank: int
    """From 1, among all products of the bundle, those that do not pass as well."""
    of: int
    score: float
    """Inner product of user and product vector."""
    last_candidate: float | None
    """Lowest such score of a candidate; null where there is no candidate."""


class Ranking(BaseModel):
    """A candidate in the ranker's order, before rules."""

    rank: int
    """From 1."""
    of: int
    score: float
    probability: float | None
    last_shown: float
    """The score of the k-th best candidate."""


class Explanation(BaseModel):
    """The answer to /v1/explain: the stage that had the last word on a product, and what it went by."""

    product_id: str
    outcome: Outcome
    place: int | None
    """In the list, from 1."""
    excluded_by: list[Literal["rule", "request", "seen"]]
    rules: list[str]
    """Names of the rules that exclude or move the product; where none does, of those that move others before it."""
    nearness: Nearness | None
    """null: unknown product, or no user vector."""
    ranking: Ranking | None
    """null: no candidate."""
    item: Recommended | None
    """The product as shown, with reasons and matched attributes."""
    bundle: str
    degraded: list[str]


class KnownBundle(BaseModel):
    """A bundle whose vectors the database has."""

    bundle: str
    recipe: str
    items: int
    loaded_at: datetime
    state: Literal["active", "treatment", "previous"] | None
    """`treatment`: it is tried beside the active one."""


class RunningExperiment(BaseModel):
    """A bundle that is tried beside the active one (rec/index/experiments.py)."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    control: str
    treatment: str
    share: float
    """Of the shoppers who get the treatment."""
    started_at: datetime


class Bundles(BaseModel):
    """The answer to GET /v1/bundles."""

    serving: str
    """The bundle that this replica answers for; it follows `active` within seconds."""
    active: str | None
    previous: str | None
    """The one that was active before, of whatever recipe."""
    experiment: RunningExperiment | None
    known: list[KnownBundle]
    """Newest first."""


class Products(BaseModel):
    """The answer to GET /v1/products."""

    items: list[Product]
    bundle: str


class Health(BaseModel):
    """The answer to GET /healthz."""

    status: Literal["ok"]


class RulesState(BaseModel):
    """The merchandiser's rules of the bundle that answers."""

    version: int | None
    """null: there are none."""
    inactive: list[str]
    """What they name and the bundle does not have."""
    problem: str | None
    """Why the newest version is not in force; the one before it is."""


class Readiness(BaseModel):
    """The answer to GET /readyz."""

    status: Literal["ready"]
    bundle: str
    milliseconds: dict[str, float]
    rules: RulesState


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    """A code."""
    message: str
    products: list[str] | None = None
    """Of `unknown_products`: which."""


class Shopper(BaseModel):
    """A stored user of the synthetic catalogue."""

    user_id: str
    events: int
    profile: dict[str, float]
    recent: list[Product]
    """Latest first."""


class ShopFacts(BaseModel):
    """What the demo page needs to start."""

    recipe: str
    bundle: str
    items: int
    categories: list[str]
    profile_names: list[str]
    profile_ranges: dict[str, tuple[float, float]]
    """Lowest and highest value of the columns that have any."""
    users: list[Shopper]
    """Synthetic shoppers to try; empty for catalogues of real people."""
