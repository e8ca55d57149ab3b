"""Why a stage did not answer: what an answer says of it, and what is counted."""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from rec.errors import DatabaseError
from serve import metrics
from serve.asking import Apart
from serve.degrade import Away, Ladder, Unavailable
from serve.stages import Ranker


def apart(answer: Callable[..., Any]) -> Apart:
    """A ranker behind a handle whose answer is that."""
    return Apart({Ranker: SimpleNamespace(rank=SimpleNamespace(remote=answer))})


def raised(error: Exception) -> Callable[..., Any]:
    """A call that fails with it."""

    async def fail() -> None:
        raise error

    return fail


def from_a_stage(error: Exception) -> Exception:
    """As the caller of a stage gets what it raised."""
    return RayTaskError("rank", f"Traceback\n{error}", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda: asyncio.sleep(9), "late"),
        (raised(BackPressureError(64, 64)), "full"),
        (raised(ActorDiedError()), "down"),
        (raised(from_a_stage(DatabaseError("no connection"))), "database"),
        (raised(from_a_stage(KeyError("unforeseen"))), "failed"),
    ],
)
def test_a_stage_that_does_not_answer_says_why(call: Callable[..., Any], cause: str) -> None:
    with pytest.raises(Unavailable, match="Ranker: ") as caught:
        asyncio.run(apart(call).ask(0.05, Ranker, Ranker.rank))
    assert caught.value.cause == cause
    assert isinstance(caught.value, Away) == (cause != "failed"), "else it is held against the bundle"
    ladder = Ladder()
    ladder.down("ranker_unavailable", caught.value)
    assert ladder.causes == {"ranker_unavailable": cause}


def test_causes_are_counted_with_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    class Counting:
        def __init__(self, name: str, _: str, labels: tuple[str, ...] = ()) -> None:
            self._name, self._labels = name, labels

        def inc(self, value: float = 1, tags: dict[str, str] | None = None) -> None:
            assert set(tags or {}) == set(self._labels)
            counted[self._name, tuple((tags or {}).items())] += value

    monkeypatch.setattr(metrics, "Counter", Counting)
    ladder = Ladder()
    ladder.down("ranker_unavailable", Away("Ranker: no answer within 1.5 s", "late"))
    ladder.down("prices_unavailable", DatabaseError("no connection"))
    ladder.down("prices_unavailable", Away("no time was left to ask Postgres", "late"))
    assert ladder.codes == ["ranker_unavailable", "prices_unavailable"]
    metrics.Metrics().degraded(ladder.causes)
    assert counted == {
        ("rec_degraded", (("reason", "ranker_unavailable"), ("cause", "late"))): 1,
        ("rec_degraded", (("reason", "prices_unavailable"), ("cause", "database"))): 1,
    }


def test_where_the_answer_must_be_whole_nothing_is_done_without() -> None:
    ladder = Ladder(whole=True)
    with pytest.raises(Away, match="died"):
        ladder.down("ranker_unavailable", Away("Ranker: the actor died"))
    assert ladder.causes == {}
