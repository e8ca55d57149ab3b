"""The chain in one process answers as the shop does, and what load is measured as."""

import math
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rec.config import Config
from rec.evaluate import load
from rec.ports import free
from serve import fused
from tests.serve.conftest import Shop

BODIES: list[dict[str, Any]] = [{"k": 5}, {"user_id": "u1", "k": 7}, {"profile": {"height_cm": 180.0}, "k": 3}]


@pytest.mark.slow
def test_one_process_answers_what_the_graph_answers(
    shop: Shop, published: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REC_STORE", published.store)
    client = TestClient(fused.create())
    for body in BODIES:
        ours, theirs = shop.recommend(**body), client.post("/v1/recommend", json=body).json()
        for answer in (ours, theirs):
            assert answer.pop("milliseconds")["total"] > 0
            answer.pop("at")
        assert theirs == ours
    refused = client.post("/v1/recommend", json={"history": ["no such product"]})
    assert refused.status_code == 404


@pytest.mark.slow
def test_load_is_counted_answer_by_answer(shop: Shop) -> None:
    found = load.closed(f"{shop.url}v1/recommend", BODIES, clients=2, seconds=1.0, keep=4)
    assert found.statuses == {200: len(found.milliseconds)}
    assert [len(body["items"]) for body in found.bodies] != []
    assert found.per_second == pytest.approx(len(found.milliseconds) / found.seconds)
    assert 0 < found.percentile(50) <= found.percentile(99)
    refused = load.closed(f"{shop.url}v1/recommend", [{"k": -1}], clients=1, seconds=0.2)
    assert set(refused.statuses) == {422}
    assert math.isnan(refused.percentile(99))


def test_a_server_that_is_not_there_is_a_failed_answer() -> None:
    found = load.closed(f"http://127.0.0.1:{free()}/", [{}], clients=1, seconds=0.05)
    assert set(found.statuses) == {0}
