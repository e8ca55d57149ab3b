"""What a replica keeps of bundles, and when it tries again to load one."""

import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rec import assemble
from rec.bundle import Bundle
from rec.errors import ArtifactError, DatabaseError
from serve import loaded
from serve.degrade import Unavailable
from serve.loaded import KEPT, Loaded, Wanted
from tests.bundle import tiny


def test_the_bundle_in_use_stays_when_others_come_and_go(tmp_path: Path) -> None:
    names = [assemble.create(tiny.make(tiny.config(tmp_path, seed=seed))).id for seed in range(1, KEPT + 2)]
    first, second, *others = names
    built: list[str] = []

    def build(opened: Bundle) -> str:
        built.append(opened.id)
        return opened.id

    parts = Loaded(str(tmp_path), build)
    for name in (first, second, first, *others, first):
        assert parts.kept(second) == (second if len(built) in (2, 3) else None), "to look is not to use"
        assert parts.get(name) == name
    assert built == names
    parts.get(second)
    assert built[KEPT + 1 :] == [second], "the one that was not used gave way"


def test_a_bundle_that_is_only_named_is_not_loaded_and_waits_for_none_that_loads(tmp_path: Path) -> None:
    first, second = (assemble.create(tiny.make(tiny.config(tmp_path, seed=seed))).id for seed in (1, 2))
    loading, done = threading.Event(), threading.Event()

    def build(opened: Bundle) -> str:
        if opened.id == second:
            loading.set()
            assert done.wait(60)
        return opened.id

    parts = Loaded(str(tmp_path), build)
    assert parts.wanted(Wanted(first, load=True)) == first
    waiting = threading.Thread(target=parts.wanted, args=(Wanted(second, load=True),))
    waiting.start()
    try:
        assert loading.wait(60)
        assert parts.wanted(Wanted(first, load=False)) == first
        with pytest.raises(Unavailable, match=second):
            parts.wanted(Wanted(second, load=False))
        assert waiting.is_alive(), "at once"
    finally:
        done.set()
        waiting.join(60)
    assert parts.wanted(Wanted(second, load=False)) == second


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


def test_a_bundle_that_cannot_be_loaded_is_hashed_ever_more_seldom_until_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = assemble.create(tiny.make(tiny.config(tmp_path)))
    now, tried = [1_000.0], list[float]()
    monkeypatch.setattr(loaded, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))

    def build(opened: Bundle) -> str:
        tried.append(now[0])
        if len(tried) < 12:
            raise KeyError("no such part")
        return opened.id

    parts = Loaded(str(tmp_path), build)
    with pytest.raises(KeyError):
        parts.get(made.id)
    while now[0] < 2_000:
        now[0] += 1
        with pytest.raises((ArtifactError, KeyError), match="no such part"):
            parts.get(made.id)
    waits = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300]
    (made.path / "config.json").touch()
    with pytest.raises(KeyError):
        parts.get(made.id)
    assert tried[-1] == now[0], "at once"
    (made.path / "config.json").touch()
    assert parts.get(made.id) == made.id
    assert parts.get(made.id) == made.id
    assert len(tried) == 12, "kept"


def test_a_database_that_is_away_is_not_held_against_a_bundle(tmp_path: Path) -> None:
    made = assemble.create(tiny.make(tiny.config(tmp_path))).id
    fails = iter([DatabaseError("away"), None])

    def build(opened: Bundle) -> str:
        found = next(fails)
        if found is not None:
            raise found
        return opened.id

    parts = Loaded(str(tmp_path), build)
    with pytest.raises(DatabaseError):
        parts.get(made)
    assert parts.get(made) == made
