"""The benchmark `scale`: its shop, its jobs on a small one."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from rec.config import Config
from rec.data.sample.many import _events, many
from rec.enrich.text import canonical
from rec.errors import ArtifactError, ConfigError
from rec.evaluate import chain_speed, scale
from rec.evaluate.growth import Spent, Taken


def test_a_shop_of_any_size_has_distinct_texts_and_is_the_same_again() -> None:
    rows = list(islice(many(5), 2_000))
    assert len({canonical(row, 1_200).content_hash for row in rows}) == 2_000
    assert [row["product_id"] for row in rows] == sorted(row["product_id"] for row in rows)
    assert list(islice(many(5), 100)) == rows[:100]
    assert list(islice(many(6), 100)) != rows[:100]


def test_the_same_products_sell_in_every_run_and_some_more_than_others() -> None:
    kinds = np.arange(1_000, dtype=np.int32) ** 2 % 7
    events = _events(kinds, 5)
    assert events.equals(_events(kinds, 5))
    assert not events.equals(_events(kinds, 6))
    assert events.num_rows == 10_000
    counts = sorted(Counter(events["product_id"].to_pylist()).values(), reverse=True)
    assert sum(counts[:200]) > 0.6 * sum(counts)
    assert set(events["product_id"].to_pylist()) <= {row["product_id"] for row in islice(many(5), 1_000)}


def test_shoppers_of_a_large_shop_have_a_taste() -> None:
    events = _events(np.arange(1_000, dtype=np.int32) % 50, 5)
    shares = []
    for user in set(events["user_id"].to_pylist()):
        chosen = [int(name[1:]) % 50 for name in events.filter(pc.field("user_id") == user)["product_id"].to_pylist()]
        shares.append(max(Counter(chosen).values()) / len(chosen))
    assert np.mean(shares) > 0.6, "of a shopper's events most are of one kind"
    assert len(set(events["product_id"].to_pylist())) > 700, "and the others are of all"


@pytest.mark.parametrize("variable", ["REC_DATABASE_URL", "RAY_ADDRESS"])
def test_it_keeps_off_what_others_use(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "elsewhere")
    with pytest.raises(ConfigError, match=variable):
        scale.measure(tmp_path, tmp_path, lambda config: [], {"tiny": 300}, 3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=variable):
        scale.ask(tmp_path, ["tiny"])


def test_only_stores_that_are_there_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REC_DATABASE_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"tiny has no scale\.toml"):
        scale.ask(tmp_path, ["tiny"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_jobs_take_a_synthetic_shop_and_go_on_where_they_were_killed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stages; what the others do is seen in tests/pipeline, and the chain in tests/serve."""
    asked: list[Config] = []

    def answering(config: Config) -> dict[str, Spent]:
        asked.append(config)
        return {"total": Spent(1.0, 2.0)}

    monkeypatch.setattr(chain_speed, "stages", answering)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = scale._job

    def killed(path: Path, arguments: list[str]) -> Taken:
        took = job(path, arguments)
        if path.stem == "enrich" and not asked:
            raise KeyboardInterrupt
        return took

    names = ["ingest", "enrich", "tensorize"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "_job", killed)
        with pytest.raises(KeyboardInterrupt):
            scale.measure(repository / "jobs", tmp_path, lambda config: names, {"tiny": 300}, 3)
    grown = scale.measure(repository / "jobs", tmp_path, lambda config: names, {"tiny": 300}, 3)["tiny"]
    assert list(grown.stages) == names
    assert grown.stages["enrich"] is None, "what it took before it was killed is not known"
    for took in (grown.stages["ingest"], grown.stages["tensorize"]):
        assert took is not None
        assert took.seconds > 0.1
        assert took.peak_gib > 0.05
    assert grown.chain == {"total": Spent(1.0, 2.0)}
    assert grown.store_gib > 0
    assert asked[0].ranker.max_users == 20_000
    note = tmp_path / "tiny" / scale.TAKEN
    note.write_text(note.read_text(encoding="utf-8").replace("20000", "30000"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="begun with other options"):
        scale.measure(repository / "jobs", tmp_path, lambda config: names, {"tiny": 300}, 3)
