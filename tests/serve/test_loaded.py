"""What a replica keeps of bundles, and how the ingress follows the active one."""

import asyncio
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rec import assemble
from rec.bundle import Bundle
from rec.errors import ArtifactError, DatabaseError
from serve import app, loaded
from serve.loaded import KEPT, Loaded
from tests.bundle import tiny


def test_the_bundle_in_use_stays_when_others_come_and_go(tmp_path: Path) -> None:
    first, second, third = (assemble.create(tiny.make(tiny.config(tmp_path, seed=seed))).id for seed in (1, 2, 3))
    built: list[str] = []

    def build(opened: Bundle) -> str:
        built.append(opened.id)
        return opened.id

    parts = Loaded(str(tmp_path), build)
    for name in (first, second, first, third, first):
        assert parts.get(name) == name
    assert (KEPT, built) == (2, [first, second, third])
    parts.get(second)
    assert built[3:] == [second], "the one that was not used gave way"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # so the test ends the thread
def test_a_stage_loads_what_becomes_active_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = assemble.create(tiny.make(tiny.config(tmp_path))).id
    looks = iter([DatabaseError("away"), ArtifactError("torn"), KeyError("unforeseen"), made])
    ended = threading.Event()
    following: list[threading.Thread] = []

    def look(_: object) -> list[str]:
        found = next(looks, None)
        if found is None:
            following.append(threading.current_thread())
            ended.set()
            raise SystemExit  # ends the thread
        if isinstance(found, Exception):
            raise found
        return [found]

    built: list[str] = []
    monkeypatch.setattr(loaded, "FOLLOW_S", 0.001)
    monkeypatch.setattr(loaded, "serving", look)
    monkeypatch.setattr(loaded.log, "handlers", [caplog.handler])
    Loaded(str(tmp_path), lambda opened: built.append(opened.id)).follow(None)  # type: ignore[arg-type]  # asks nobody
    assert ended.wait(30)
    following[0].join(30)  # else the exception would be another test's
    assert built == [made]
    assert "unforeseen" in caplog.text
    assert "away" not in caplog.text


def test_following_goes_on_after_what_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    following = app.Recommender.func_or_class._follow  # type: ignore[attr-defined]  # with globals of its own
    looks = iter([KeyError("unforeseen"), "new"])

    def active(_: object) -> Any:
        found = next(looks, "new")
        if isinstance(found, Exception):
            raise found
        return found

    async def answer(*_: object, **__: object) -> None:
        return None

    def front(name: str) -> SimpleNamespace:
        return SimpleNamespace(
            bundle=SimpleNamespace(id=name), rules=SimpleNamespace(refresh=lambda: None, ruling=None)
        )

    async def follow() -> str:
        replica: Any = SimpleNamespace(
            _connections=None,
            _front=front("old"),
            _fronts=SimpleNamespace(get=front),
            _try=answer,
            _trial=SimpleNamespace(follow=answer),
        )
        task = asyncio.create_task(following(replica))
        for _ in range(500):
            if replica._front.bundle.id == "new" or task.done():
                break
            await asyncio.sleep(0.01)
        task.cancel()
        return str(replica._front.bundle.id)

    monkeypatch.setitem(following.__globals__, "FOLLOW_S", 0.001)
    monkeypatch.setitem(following.__globals__, "active", active)
    monkeypatch.setitem(following.__globals__, "experiment", lambda _: None)
    monkeypatch.setattr(app.log, "handlers", [caplog.handler])  # Ray's loggers may not propagate
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        assert asyncio.run(follow()) == "new"
    assert "staying with bundle old" in caplog.text
    assert "unforeseen" in caplog.text
