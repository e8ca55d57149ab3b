"""What the HTTP API takes, with its limits."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rec import profile
from rec.histories import BODY
from rec.index.live_events import LiveEvent
from rec.index.search import Filters
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_HISTORY, MAX_K, Choice, Request, Spared
from rec.sizes import MAX_SIZE_CHARS

MAX_BODY_BYTES = 64 * 1024
MAX_EXCLUDE = 1_000
MAX_PROFILE_COLUMNS = 64
MAX_EVENTS = 100
CLOCK_SKEW = timedelta(minutes=1)
"""How far the clock of whoever sends an event may be ahead; what is later is of the future."""
FIRST_EVENT = datetime(1970, 1, 1, tzinfo=UTC)


def _happened(at: datetime) -> datetime:
    if at > datetime.now(UTC) + CLOCK_SKEW:
        raise ValueError("at is in the future")
    if at < FIRST_EVENT:
        raise ValueError("at is before 1970")
    return at


Moment = Annotated[AwareDatetime, AfterValidator(_happened)]
"""When something happened that is told of."""
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
    at: Moment | None = None
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
    without: list[Spared] = Field(default=[], max_length=len(get_args(Spared)))
    """Stages to leave out, to see what they give: what is popular instead of the user tower's, the order of retrieval
    instead of the ranker's. Such a list is not logged and has no `exposure_id`."""
    evidence: bool = False
    """Whether products say where each of their attributes comes from."""
    bundle: Id | None = None
    """Which bundle answers, of those that GET /v1/bundles says are `loaded`, to compare them; leave out for the one
    that this shopper gets. Such a list is not logged, has no `exposure_id`, and counts for no experiment and in no
    metric of shoppers. A stage that does not have the bundle in memory is done without."""

    def request(self) -> Request:
        """The request as the recommender takes it; by which bundle is the server's business."""
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
            without=frozenset(self.without),
            evidence=self.evidence,
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
    at: Moment | None = None
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
