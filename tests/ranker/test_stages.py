"""The two stages on the planted shop: what they write, that the planted colour taste is learned, and that work
done is neither repeated nor changed by an interruption."""

import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from safetensors.numpy import load_file, save_file

from rec import artifact, dataset, histories, samples
from rec.config import Config, Feedback, Ranker
from rec.errors import ArtifactError
from rec.evaluate.metrics import ndcg
from rec.features import items as item_features
from rec.features import requests
from rec.features.compute import compute_batch
from rec.features.transfer import project
from rec.models import fused, user_tower
from rec.models.deepfm import DeepFM
from rec.retrieval import ANN, merge
from rec.schema import EXPOSURES, SAMPLES
from rec.sources import tables
from rec.train import ddp, ranker
from rec.train.listwise import target_ranks
from tests.ranker.conftest import START
from tests.ranker.features import compute
from tests.train import loops
from tests.train.in_process import in_process

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def retrieved(shop: Config, ray_local: None) -> dict[str, Any]:
    """Facts of the candidates stage."""
    return samples.run(shop)


@pytest.fixture(scope="module")
def dlrm(shop: Config, retrieved: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A recipe with DLRM and all options of its training in use, its candidates in place; the ranker trained."""
    given = _elsewhere(shop, tmp_path_factory.mktemp("dlrm"))
    for stage in ("sources", "samples"):
        shutil.copytree(shop.at(stage), given.at(stage))
    options = {
        "model": "dlrm", "bottom": [16], "pointwise": 0.2, "negatives": 20, "freeze_steps": 30, "patience": 3,
        "transfer": "copy", "embedding_dim": 16,
        "train": {**shop.ranker.train.model_dump(), "batch_size": 300},
    }  # fmt: skip
    given = given.model_copy(
        update={
            "ranker": Ranker.model_validate(shop.ranker.model_dump() | options),
            "item_tower": shop.item_tower.model_copy(update={"width": 16}),
        }
    )
    with in_process(ranker.loop):
        ranker.run(given)
    return given


@pytest.fixture(scope="module")
def trained(shop: Config, retrieved: dict[str, Any]) -> dict[str, Any]:
    """Facts of the training stage."""
    return ranker.run(shop)


def test_samples_are_what_retrieval_gives_before_the_target(shop: Config, retrieved: dict[str, Any]) -> None:
    h = histories.load(shop.root)
    table = dataset.read(shop.at("samples"), SAMPLES).to_pylist()
    assert len(table) + retrieved["missed"] == retrieved["users"] == 240
    assert 0 < retrieved["missed"] < 200
    tower = user_tower.load(shop.at("user_tower"))
    created = samples.created_us(shop.root)
    sources, from_others = tables.load(shop.at("sources")), 0
    for row in table[::9]:
        user = h.user_ids.index(row["user_id"])
        end = int(h.offsets[user + 1]) - 2
        state = histories.state(h, user, end, 8, int(h.at[end]), "")
        vector = tower.vectors([state], None)[0]
        scores = tower.item_vectors.numpy() @ vector
        seen = set(h.items[h.offsets[user] : end].tolist())
        allowed = [item for item in np.argsort(-scores, kind="stable").tolist() if item not in seen]
        expected = merge(
            vector,
            tower.item_vectors.numpy(),
            np.array(allowed[:60]),
            proposed := sources.propose(state),
            k=60,
            quotas=shop.ranker.quotas,
            exclude=np.array(sorted(seen), np.int64),
        )
        assert row["rows"] == expected.rows.tolist()
        assert row["sources"] == expected.sources.tolist()
        assert row["cooccurrence"] == expected.cooccurrence.tolist()
        assert len(proposed.item)
        assert len(proposed.cooccurrence)
        from_others += sum(bits & ANN == 0 for bits in row["sources"])
        assert row["rows"][row["label"]] == h.items[end]
        assert (created[row["rows"]] <= h.at[end]).all()
        np.testing.assert_allclose(row["scores"], scores[row["rows"]], atol=1e-6)
    assert from_others > 0


def test_items_launched_after_the_target_are_no_candidates(shop: Config, retrieved: dict[str, Any]) -> None:
    retrieval = samples.Retrieval(
        root=str(shop.root), text=shop.text, k=60, quotas=shop.ranker.quotas, history=8, exclude_seen=False
    )
    h = histories.load(shop.root)
    user = int(histories.leave_one_out(h).ranker_users[0])
    end = int(h.offsets[user + 1]) - 2
    late = np.setdiff1d(np.arange(0, 90, 2), h.items[end : end + 1])
    retrieval._created[late] = h.at[end] + 1
    row = retrieval(pa.table({"user": [user]})).to_pylist()[0]
    assert not set(row["rows"]) & set(late.tolist())


def test_the_planted_taste_is_learned(trained: dict[str, Any]) -> None:
    assert trained["beats_retrieval"]
    assert trained["ndcg10"] > trained["retrieval_ndcg10"] + 0.15
    assert trained["best_epoch"] >= 1


def test_dlrm_learns_it_too_with_a_few_negatives_and_a_mixed_loss(shop: Config, dlrm: Config) -> None:
    facts = artifact.peek(dlrm.at("ranker")).facts
    assert facts["ndcg10"] > facts["retrieval_ndcg10"] + 0.15
    assert (facts["model"], fused.load(dlrm.at("ranker")).model) == ("dlrm", "dlrm")
    report = json.loads((dlrm.at("ranker") / "transfer.json").read_text(encoding="utf-8"))
    assert (report["mode"], report["tables"][0]["variance_kept"]) == ("copy", 1.0)


def test_probabilities_are_calibrated_on_held_out_users(shop: Config, trained: dict[str, Any], dlrm: Config) -> None:
    for config in (shop, dlrm):
        facts, scorer = artifact.peek(config.at("ranker")).facts, fused.load(config.at("ranker"))
        assert facts["logloss"]["after"] <= facts["logloss"]["before"]
        assert facts["ece"]["after"] <= 0.05
        assert scorer.temperature.item() == pytest.approx(facts["temperature"], abs=1e-4)
        assert scorer.odds_bias.item() == pytest.approx(facts["bias"], abs=1e-4)
        assert 0.5 < facts["auc"] <= 1
        assert 0.5 < facts["gauc"] <= 1
        assert facts["gauc_skipped"] == 0


def test_the_saved_ranker_gives_the_reported_measure_as_served(shop: Config, trained: dict[str, Any]) -> None:
    """Request by request, from the artifacts alone, as serving does it."""
    h = histories.load(shop.root)
    vectors = load_file(shop.at("user_tower") / "item_vectors.safetensors")["item_vectors"]
    items = item_features.load(shop.at("features"), vectors)
    scorer = fused.load(shop.at("ranker"))
    found = samples.load(shop.root, h, items.history)
    held = np.sort(np.random.default_rng(shop.seed).permutation(len(found.states))[: trained["held_out"]])
    past = samples.past_popularity(h)
    scores = [
        scorer.score(compute(items, found.states[i], found.candidates[i], int(found.at[i]), past))
        for i in held.tolist()
    ]
    counts = np.array([len(one) for one in scores])
    measured = ndcg(target_ranks(np.concatenate(scores), counts, found.labels[held]), 10).mean()
    assert measured == pytest.approx(trained["ndcg10"], abs=1e-4)
    together = compute_batch(
        items, [found.states[i] for i in held], [found.candidates[i] for i in held], found.at[held], past
    )
    np.testing.assert_allclose(scorer.score(together), np.concatenate(scores), atol=1e-5)


def test_the_transfer_report_is_true(shop: Config, trained: dict[str, Any]) -> None:
    report = json.loads((shop.at("ranker") / "transfer.json").read_text(encoding="utf-8"))
    assert report["mode"] == "project"
    assert [table["table"] for table in report["tables"]] == ["std", "re"]
    tower = load_file(shop.at("item_tower") / "item_tower.safetensors")
    scorer = fused.load(shop.at("ranker"))
    first = 0
    for table in report["tables"]:
        name = table["table"]
        rows = scorer.table[first : first + table["rows"], : shop.ranker.embedding_dim].numpy()
        first += table["rows"]
        start, _ = project(tower[f"{name}_table.weight"], shop.ranker.embedding_dim, DeepFM.table_std)
        untouched = (rows[: len(start)] == start).all(axis=1)
        assert table["copied"] == len(start) - 1
        assert untouched[1:].sum() == table["frozen"]
        assert 0 < table["frozen"] < table["copied"]


def test_without_transfer_tables_start_at_random(shop: Config, retrieved: dict[str, Any], tmp_path: Path) -> None:
    h = histories.load(shop.root)
    items = ranker.features(shop, h)
    starts = []
    for mode in ("project", "none"):
        options = shop.ranker.model_copy(update={"transfer": mode})
        folder = tmp_path / mode
        reports, _ = ranker.prepare(folder, shop.model_copy(update={"ranker": options}), h, items)
        starts.append(load_file(folder / "start.safetensors")["net.embedding_dict.std.weight"])
        assert [report.table for report in reports] == (["std", "re"] if mode == "project" else [])
    tower = load_file(shop.at("item_tower") / "item_tower.safetensors")["std_table.weight"]
    np.testing.assert_array_equal(starts[0][1:], project(tower, shop.ranker.embedding_dim, DeepFM.table_std)[0][1:])
    assert (starts[0][1:] != starts[1][1:]).all()
    assert starts[1].std() == pytest.approx(DeepFM.table_std, rel=0.1)


def test_popularity_in_training_is_that_of_the_samples_time(
    shop: Config, retrieved: dict[str, Any], tmp_path: Path
) -> None:
    h = histories.load(shop.root)
    items = ranker.features(shop, h)
    ranker.prepare(tmp_path / "work", shop, h, items)
    data, at = requests.open_requests(tmp_path / "work"), samples.load(shop.root, h, items.history).at
    column = items.spec.dense.index("log_popularity")
    training = histories.training_events(h)
    for request in range(0, len(data), 9):
        where = data.flat(np.array([request]))
        before = h.items[training & (h.at < at[request])]
        expected = np.log1p([(before == row).sum() for row in data.rows[where]])
        np.testing.assert_allclose(data.dense[where, column], expected, rtol=1e-6)
    today = samples.past_popularity(h).before(np.arange(h.num_items), h.at.max() + 1)
    assert today.tolist() == items.popularity.tolist()


@pytest.mark.parametrize("mode", ["project", "none"])
def test_the_first_contestant_is_the_retrieval_order(
    shop: Config, retrieved: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    h = histories.load(shop.root)
    options = shop.ranker.model_copy(update={"transfer": mode})
    given = shop.model_copy(update={"ranker": options})
    _, facts = ranker.prepare(tmp_path / "work", given, h, ranker.features(given, h))
    data = requests.open_requests(tmp_path / "work")
    held = load_file(tmp_path / "work" / "parts.safetensors")["held"]
    start = ranker.evaluate(ranker.start(tmp_path / "work", options), data, held)
    assert start == pytest.approx(facts["retrieval_ndcg10"], abs=1e-5)


def test_shown_lists_train_beside_the_log_and_choose_no_epoch(
    shop: Config, retrieved: dict[str, Any], tmp_path: Path
) -> None:
    h = histories.load(shop.root)
    given = _elsewhere(shop, tmp_path)
    for stage in ("sources", "samples"):
        shutil.copytree(shop.at(stage), given.at(stage))
    items = ranker.features(given, h)
    ranker.prepare(tmp_path / "without", given, h, items)
    train, held = ranker.parts(tmp_path / "without")
    found = samples.load(given.root, h, items.history)
    known = [h.user_ids[user] for user in [*found.users[held][:3], found.users[train][0]]]
    rows = []
    for user_id in (None, "u-new", *known):
        shown = [3, 10, 40]
        rows.append(
            {
                "exposure_id": "", "user_id": user_id, "at": START + timedelta(days=300), "label": 1, "rows": shown,
                "positions": [2, 1, 3], "places": [0, 2, 59], "scores": [0.5, 0.25, -0.5], "sources": [1, 3, 1],
                "cooccurrence": [0.0, 0.5, 0.0], "retrieved": 60, "best": 0.75, "history": [8, 4],
                "history_events": [3, 1], "history_ages": [86_400.0, 60.0], "context": "",
                "profile": [("height_cm", 170.0)],
            }
        )  # fmt: skip
    dataset.write(
        given.at("exposures"), EXPOSURES, [pa.Table.from_pylist(rows, EXPOSURES.schema)], inputs={}, config={}
    )
    given = given.model_copy(update={"feedback": Feedback(train=True)})
    _, facts = ranker.prepare(tmp_path / "with", given, h, items)
    assert (facts["exposures"], facts["exposure_share"]) == (3, round(3 / (len(train) + 3), 4))
    before, after = (requests.open_requests(tmp_path / name) for name in ("without", "with"))
    both = ranker.parts(tmp_path / "with")
    np.testing.assert_array_equal(both[1], held)
    np.testing.assert_array_equal(both[0], [*train, *range(len(before), len(before) + 3)])
    for name in ("rows", "sparse", "dense"):
        np.testing.assert_array_equal(getattr(after, name)[: len(before.rows)], getattr(before, name))
    one = np.array([len(before)])
    assert (after.rows[after.flat(one)].tolist(), int(after.labels[one][0])) == ([3, 10, 40], 1)
    columns = {name: after.dense[after.flat(one), at] for at, name in enumerate(items.spec.dense)}
    np.testing.assert_allclose(columns["score_gap"], [-0.25, -0.5, -1.25])
    np.testing.assert_allclose(columns["log_rank"], np.log1p([0, 2, 59]), rtol=1e-6)
    np.testing.assert_allclose(columns["history_length"], np.log1p(2), rtol=1e-6)
    for name in ("with", "without"):
        assert ranker.evaluate(ranker.start(tmp_path / name, given.ranker), after, held) == pytest.approx(
            facts["retrieval_ndcg10"], abs=1e-5
        )


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (2, 2)])
def test_training_that_brings_nothing_stops_after_patience(
    shop: Config, retrieved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
) -> None:
    """The loop in this process; with steps too small to change an order, the start stays the best."""
    h = histories.load(shop.root)
    train = shop.ranker.train.model_copy(update={"learning_rate": 1e-12})
    options = shop.ranker.model_copy(update={"patience": patience, "train": train, "model": "dlrm"})
    given = shop.model_copy(update={"ranker": options})
    ranker.prepare(tmp_path, given, h, ranker.features(given, h))
    reports: list[dict[str, float]] = []
    monkeypatch.setattr(ddp, "world_size", lambda: 1)
    monkeypatch.setattr(ddp, "rank", lambda: 0)
    for module in (ddp, ranker):
        monkeypatch.setattr(module, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.train, "report", lambda metrics, checkpoint: reports.append(metrics))
    ranker.loop({"folder": str(tmp_path), "ranker": options.model_dump(mode="json"), "seed": 1})
    assert len(reports) == epochs


def test_work_that_is_done_is_not_done_again(shop: Config, trained: dict[str, Any]) -> None:
    (shop.at("runs") / "ranker-0123-inputs").mkdir()  # another option's run that was killed
    train = shop.ranker.train.model_copy(update={"max_failures": 7})
    text = shop.text.model_copy(update={"num_actors": 3})
    other = shop.model_copy(update={"text": text, "ranker": shop.ranker.model_copy(update={"train": train})})
    for given in (shop, other):
        assert samples.run(given)["skipped"]
        assert ranker.run(given)["skipped"]
    assert not list(shop.at("runs").iterdir())


def test_a_run_stopped_after_two_epochs_ends_with_the_same_bytes(
    dlrm: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables that stay frozen beyond the stop, and negatives drawn anew each epoch."""
    other = _elsewhere(dlrm, tmp_path)
    samples.run(other)

    def stopped(loop: Any, train: Any, name: str, loop_config: dict[str, Any], storage: Path, **_: Any) -> Path:
        options = loop_config["ranker"]
        short = {**loop_config, "ranker": {**options, "train": {**options["train"], "epochs": 2}}}
        fit(loop, train, name, short, storage)
        raise KeyboardInterrupt

    with in_process(ranker.loop):
        fit = ranker.ddp.fit
        with monkeypatch.context() as patch:
            patch.setattr(ranker.ddp, "fit", stopped)
            with pytest.raises(KeyboardInterrupt):
                ranker.run(other)
        assert not other.at("ranker").exists()
        ranker.run(other)
    for stage in ("sources", "samples", "features", "ranker"):
        hashes = [artifact.peek(config.at(stage)) for config in (dlrm, other)]
        assert hashes[0] is not None
        assert hashes[1] is not None
        assert hashes[0].content_hash == hashes[1].content_hash, stage
    assert not list(other.at("runs").iterdir())


def test_a_run_stopped_within_its_first_epoch_ends_with_the_same_bytes(
    dlrm: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start, which is the first contestant for the best epoch, is not judged anew by weights that have learned."""
    ends, judged, judge = [], [], ranker.evaluate
    for name in ("calm", "shaken"):
        given = _elsewhere(dlrm, tmp_path / name)
        train = given.ranker.train.model_copy(update={"batch_size": 60, "epochs": 2, "checkpoint_minutes": 0})
        given = given.model_copy(update={"ranker": given.ranker.model_copy(update={"train": train})})
        samples.run(given)
        with in_process(ranker.loop):
            if name == "shaken":
                with monkeypatch.context() as patch:
                    loops.interrupted_at(0, 20, patch)
                    with pytest.raises(KeyboardInterrupt):
                        ranker.run(given)
            with monkeypatch.context() as patch:
                patch.setattr(ranker, "evaluate", lambda *asked: (judged.append(1), judge(*asked))[1])
                ranker.run(given)
        ends.append(artifact.peek(given.at("ranker")))
    assert len(judged) == 3 + 2, "the start of the calm run, and each epoch's end of both"
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].content_hash == ends[1].content_hash


def test_without_samples_the_error_names_the_job(shop: Config, tmp_path: Path) -> None:
    other = _elsewhere(shop, tmp_path)
    with pytest.raises(ArtifactError, match=r"no finished samples: run `python jobs/candidates.py` first"):
        ranker.run(other)


def _elsewhere(shop: Config, store: Path) -> Config:
    """The same recipe in another store, with the inputs of the ranker's stages in place."""
    other = shop.model_copy(update={"store": str(store)})
    other.root.mkdir(parents=True, exist_ok=True)
    for stage in ("products", "users", "events", "tensors", "vocabulary", "user_tower", "item_tower"):
        shutil.copytree(shop.at(stage), other.at(stage))
    return other


@pytest.mark.long
def test_ten_times_the_samples_take_no_more_memory(shop: Config, retrieved: dict[str, Any], tmp_path: Path) -> None:
    h = histories.load(shop.root)
    folder = tmp_path / "few"
    ranker.prepare(folder, shop, h, ranker.features(shop, h))

    def repeated(times: int) -> Path:
        made = shutil.copytree(folder, tmp_path / f"{times}")
        for name in ("rows", "sparse", "dense", "labels"):
            array = np.load(folder / f"{name}.npy")
            np.save(made / f"{name}.npy", np.concatenate([array] * times))
        offsets, (train, held) = np.load(folder / "offsets.npy"), ranker.parts(folder)
        shifted = (offsets[1:] + np.arange(times)[:, None] * offsets[-1]).ravel()
        np.save(made / "offsets.npy", np.append(0, shifted))
        trains = (train + np.arange(times)[:, None] * (len(offsets) - 1)).ravel()
        save_file({"train": trains, "held": held}, made / "parts.safetensors")
        return made

    def peak_mib(of: Path) -> float:
        command = [sys.executable, "-m", "tests.ranker.one_epoch", str(of), shop.ranker.model_dump_json()]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    few, many = repeated(5), repeated(50)
    size = sum((many / f"{name}.npy").stat().st_size for name in ("sparse", "dense")) / 2**20
    assert size > 100
    assert peak_mib(many) - peak_mib(few) < size / 5
