"""The benchmark of rerankers on the planted shop: gains of lists, groups of fields and transfer are what they say."""

import numpy as np
import pytest

from rec import samples
from rec.config import Config
from rec.evaluate import ranker_speed, ranker_study
from rec.features.items import ItemFeatures
from rec.features.spec import GROUPS, group_of


def test_every_field_belongs_to_one_group_and_every_group_has_fields(shop_items: ItemFeatures) -> None:
    names = shop_items.spec.names
    assert len(set(names)) == len(names)
    assert {group_of(name) for name in names} == set(GROUPS)
    expected = {
        "profile_height_cm_missing": "profile", "user_colour": "habits", "item_colour": "attributes", "item_re": "re",
        "user_brand": "brand", "log_price": "product", "score": "retrieval", "last_colour": "shares", "seen": "seen",
        "history_last_age": "activity", "cosine_last": "similarity", "height_cm_to_inseam": "garment",
        "measure_inseam": "garment",
    }  # fmt: skip
    assert {name: group_of(name) for name in expected} == expected


@pytest.mark.long
def test_the_study_sees_what_is_planted(shop: Config, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.run(shop)
    monkeypatch.setattr(ranker_study, "GROUPS", ("shares", "profile"))
    monkeypatch.setattr(ranker_study, "STEPS", (0, 5))
    monkeypatch.setattr(ranker_speed, "CALLS", 5)
    found = ranker_study.measure(shop, [0, 1], groups=True)
    value = {name.removeprefix("planted."): each["value"] for name, each in found.items()}
    low = {name.removeprefix("planted."): (each["ci95"] or [np.nan])[0] for name, each in found.items()}
    for model in ranker_study.MODELS:  # colour is planted, and retrieval knows nothing of it
        assert low[f"{model}.lift.n10"] > 0
        assert value[f"{model}.lift.n10"] == pytest.approx(value[f"{model}.n10"] - value["retrieval.n10"], abs=2e-4)
        for name in ("score100.ms", "score16x100.ms", "train.rows_per_s"):
            assert value[f"{model}.{name}"] > 0
    for name in ("fused.over.deepctr", "train.over.deepctr", "train.over.deepctr.batch"):
        assert value[f"deepfm.{name}"] > 0
    assert value["gain.shares.n10"] == pytest.approx(value["deepfm.n10"] - value["without-shares.n10"], abs=2e-4)
    assert value["transfer.step0.lift.n10"] == 0, "both start at the retrieval order"
    assert {"transfer.lift.n10", "transfer.step5.lift.n10", "random.n10", "gain.profile.r10"} <= value.keys()
    assert "without-similarity.n10" not in value

    world = ranker_study.prepare(shop)
    whole = world.data.inputs(np.arange(3))
    part = ranker_study.blanked(world.data, world.items.spec, frozenset(["re", "retrieval"])).inputs(np.arange(3))
    source = [field.name for field in world.items.spec.sparse].index("source")
    assert not part.varlen.any()
    assert whole.varlen.any()
    assert not part.sparse[:, source].any()
    for column, name in enumerate(world.items.spec.dense):
        told = group_of(name) not in ("re", "retrieval")
        np.testing.assert_array_equal(part.dense[:, column], whole.dense[:, column] * told)
    np.testing.assert_array_equal(np.delete(part.sparse, source, 1), np.delete(whole.sparse, source, 1))
