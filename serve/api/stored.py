"""What the HTTP API answers of stored users, clients and events."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


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
