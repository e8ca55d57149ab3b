"""How a server takes part in an experiment: once its bundle has answered, with one bundle for each shopper."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from rec.errors import ArtifactError
from rec.index.experiments import Experiment
from rec.recommend.request import Choice, Request
from serve.degrade import Unavailable
from serve.exposures import Arm
from serve.trial import Trial

RUNNING = Experiment(3, "tiny", "active", "tried", 0.5, "salt", datetime.now(UTC), None)
SHOPPERS = [(f"u{number}", None) for number in range(20)] + [(None, f"c{number}") for number in range(20)]


PRODUCTS = {"active": {"both", "old"}, "tried": {"both", "new"}}


def front(name: str) -> Any:
    """What a server holds of a bundle, as far as a trial looks at it."""
    shelf = SimpleNamespace(known=lambda product_id: product_id in PRODUCTS[name])
    return SimpleNamespace(bundle=SimpleNamespace(id=name), rules=SimpleNamespace(refresh=lambda: None), shelf=shelf)


ACTIVE = front("active")


class Server:
    """A trial whose bundles load, and answer, or not."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.proved: list[str] = []
        self.runs: Experiment | None = None
        self.active: Any = ACTIVE
        self.meanwhile: Callable[[], None] = lambda: None
        self.trial = Trial(SimpleNamespace(get=front), self._prove, ThreadPoolExecutor(1))  # type: ignore[arg-type]

    async def _prove(self, found: Any) -> None:
        self.proved.append(found.bundle.id)
        self.meanwhile()
        if self.fails is not None:
            raise self.fails

    async def _look(self) -> Experiment | None:
        return self.runs

    def follow(self, found: Experiment | None, active: Any = ACTIVE) -> None:
        """One look at the database, which has the experiment `found`."""
        self.runs, self.active = found, active
        asyncio.run(self.trial.follow(self._look, lambda: self.active))

    def answers(self, active: Any = ACTIVE) -> list[tuple[str, Arm | None]]:
        """Bundle and arm of every shopper."""
        found = [self.trial.of(active, *shopper) for shopper in SHOPPERS]
        return [(each.bundle.id, arm) for each, arm in found]


EVERYBODY = [("active", None)] * len(SHOPPERS)


def test_every_shopper_gets_the_bundle_of_their_arm() -> None:
    server = Server()
    assert server.answers() == EVERYBODY
    server.follow(RUNNING)
    arms = [RUNNING.arm(*shopper) for shopper in SHOPPERS]
    assert set(arms) == {"control", "treatment"}
    assert server.answers() == [("tried" if arm == "treatment" else "active", Arm(3, str(arm))) for arm in arms]
    assert [each.bundle.id for each in server.trial.fronts(ACTIVE)] == ["active", "tried"]
    bundle, arm = server.trial.of(ACTIVE, None, None)
    assert (bundle.bundle.id, arm) == ("active", None)
    server.follow(RUNNING)
    assert server.proved == ["tried"], "once"
    server.follow(None)
    assert server.answers() == EVERYBODY
    assert server.trial.fronts(ACTIVE) == [ACTIVE]
    server.follow(replace(RUNNING, number=4))
    assert server.proved == ["tried", "tried"]
    assert {arm.number for _, arm in server.answers() if arm} == {4}


def test_a_history_may_have_products_of_either_bundle() -> None:
    server = Server()
    request = Request(user_id="u", history=tuple(Choice(name) for name in ("new", "both", "nowhere", "old")), k=3)
    assert server.trial.told(ACTIVE, ACTIVE, request) == request, "no experiment runs: all that is unknown is an error"
    server.follow(RUNNING)
    expected = {"active": ["both", "nowhere", "old"], "tried": ["new", "both", "nowhere"]}
    for each in server.trial.fronts(ACTIVE):
        told = server.trial.told(ACTIVE, each, request)
        assert [choice.product_id for choice in told.history] == expected[each.bundle.id]
        assert replace(told, history=request.history) == request


@pytest.mark.parametrize("error", [Unavailable("ranker: no answer"), ArtifactError("torn")])
def test_a_bundle_that_does_not_answer_is_given_to_nobody_until_it_does(error: Exception) -> None:
    server = Server()
    server.fails = error
    server.follow(RUNNING)
    assert server.answers() == EVERYBODY
    server.fails = None
    server.follow(RUNNING)
    assert ("tried", Arm(3, "treatment")) in server.answers()


def test_a_server_on_another_bundle_takes_no_part() -> None:
    server, other = Server(), front("another")
    server.follow(RUNNING, other)
    assert server.proved == []
    server.follow(RUNNING)
    assert server.answers(other) == [("another", None)] * len(SHOPPERS), "it has just switched"
    assert server.trial.fronts(other) == [other]


@pytest.mark.parametrize("change", [{"runs": None}, {"runs": replace(RUNNING, number=4)}, {"active": front("another")}])
def test_an_experiment_that_ended_while_its_bundle_was_tried_begins_nothing(change: dict[str, Any]) -> None:
    server = Server()
    server.meanwhile = lambda: vars(server).update(change)
    server.follow(RUNNING)
    assert server.proved == ["tried"]
    assert server.answers() == EVERYBODY
    assert server.trial.fronts(ACTIVE) == [ACTIVE]
