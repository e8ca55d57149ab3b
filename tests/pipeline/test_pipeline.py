"""The whole chain, end to end, on the sample catalogue; and how it continues."""

import json
import time
from typing import Any

import pytest

from rec import artifact, bundle, config, pipeline
from rec.train import ranker
from tests.pipeline.conftest import Finished
from tests.train.in_process import in_process

pytestmark = pytest.mark.slow

NAMES = [stage.name for stage in pipeline.stages(config.load("demo"))]


def _report(finished: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished.config.at("evaluation") / "report.json").read_text())
    return found


def test_every_stage_left_a_sound_artifact_made_from_the_one_before(finished: Finished) -> None:
    found = {path.name: artifact.peek(path) for path in finished.config.root.iterdir()}
    manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
    assert set(manifests) == {
        "products", "users", "events", "enriched", "vocabulary", "tensors", "text_states", "item_tower", "vectors",
        "user_tower", "sources", "samples", "ranker", "features", "evaluation",
    }  # fmt: skip
    for name, manifest in manifests.items():
        artifact.verify(finished.config.at(name), manifest)
        for source, content_hash in manifest.inputs.items():
            if source in manifests:
                assert manifests[source].content_hash == content_hash, f"{name} was made from another {source}"


def test_result_names_the_bundle_and_what_it_cost(finished: Finished) -> None:
    result = finished.result
    bundle.verify(bundle.read(finished.config.store, result["bundle"]))
    assert list(result["seconds"]) == NAMES
    assert result["skipped"] == []
    assert 200 < result["peak_mib"] < 12 * 1024


def test_sample_has_its_golden_counts_and_controls(finished: Finished) -> None:
    """What depends on no training is the same on every machine."""
    rows = {name: artifact.peek(finished.config.at(name)) for name in ("products", "users", "events", "tensors")}
    assert {n: m.facts["rows"] for n, m in rows.items() if m} == {
        "products": 398, "users": 620, "events": 6_784, "tensors": 398,
    }  # fmt: skip
    figures = _report(finished)["slices"]["all"]["figures"]
    assert figures["popular"]["ndcg@10"]["value"] == pytest.approx(0.001647, abs=1e-6)
    assert figures["random"]["ndcg@10"]["value"] == pytest.approx(0.011627, abs=1e-6)


def test_two_epochs_already_beat_the_controls_that_know_nothing(finished: Finished) -> None:
    figures = _report(finished)["slices"]["all"]["figures"]
    for control in ("popular", "random"):
        assert figures["final"]["ndcg@10"]["ci95"][0] > figures[control]["ndcg@10"]["ci95"][1], control


def test_second_run_skips_all_and_a_changed_option_runs_what_depends_on_it(finished: Finished) -> None:
    started = time.monotonic()
    again = pipeline.run(finished.config)
    assert again["skipped"] == NAMES
    assert again["bundle"] == finished.result["bundle"]
    assert time.monotonic() - started < 60
    store = f"store={finished.config.store}"
    with in_process(ranker.loop):
        changed = pipeline.run(config.load(str(finished.recipe), [store, "ranker.train.epochs=1"]))
        assert changed["skipped"] == NAMES[: NAMES.index("train_ranker")]
        assert changed["bundle"] != finished.result["bundle"]
        back = pipeline.run(finished.config)
    assert back["bundle"] == finished.result["bundle"], "the same work gives the same bundle"
