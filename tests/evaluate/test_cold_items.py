"""Cold items: what is hidden stays hidden, and both measures against worlds whose truth is known."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs import benchmark
from rec import artifact, config, dataset, encode, histories
from rec.config import Config, ItemTower, UserTower, UserTrain
from rec.errors import ArtifactError
from rec.evaluate import cases, cold_and_warm, cold_items, cold_towers, hidden, tower_speed
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.cold_items import World
from rec.models import text_encoder, user_tower
from rec.models.item_inputs import ItemInputs, unit
from rec.models.item_vectors import item_vectors
from rec.schema import ENRICHED, INTERACTIONS, PRODUCTS, TENSORS
from rec.train import behaviour, ddp, item, user
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary
from tests.item_tower import catalogue, encoders, untrained
from tests.train import test_copurchase as pairs
from tests.train.in_process import data_in_process, in_process

N = 12
CONFIG = config.load("demo", ["evaluate.bootstrap=100"])


def world(users: list[list[int]], hide: list[int], groups: list[int] | None = None, *, n: int = N) -> World:
    h = pairs.histories(users, n)
    asked = cases.last_events(h, np.full(n, -1), history=20, exclude_seen=True, max_users=None, seed=0)
    mask = np.isin(np.arange(n), hide)
    return World(h, np.array(groups or range(n), np.int64), mask, np.arange(n) < 8, asked)


def two_shelves(n: int = N) -> np.ndarray:
    """float32[n, 2]: the first half of the products lies together, and so does the second."""
    angles = np.where(np.arange(n) < n / 2, 0.0, 1.5) + np.arange(n) * 0.01
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_neighbours_are_what_was_chosen_with_a_hidden_product() -> None:
    """Product 0 was chosen with 1 and 2, which lie near, and 11, the farthest of eleven; K = 10 are found."""
    made = world([[0, 1], [2, 0], [11, 0], [5, 6]], hide=[0, 3])
    rows, chosen = cold_items.chosen_with(made)
    assert rows.tolist() == [0], "3 was never chosen"
    assert chosen.tolist() == [1, 2, 11]
    assert cold_items.neighbours(two_shelves(), made.groups, rows, chosen).tolist() == pytest.approx([2 / 3])


def test_products_of_the_same_group_neither_count_nor_stand_in_the_way() -> None:
    groups = [0, 0, *range(1, N - 1)]
    made = world([[0, 1], [0, 11]], hide=[0, 1], groups=groups)
    rows, chosen = cold_items.chosen_with(made)
    assert rows.tolist() == [0], "1 was chosen with its own group alone"
    assert chosen.tolist() == [11]
    assert cold_items.neighbours(two_shelves(), made.groups, rows, chosen).tolist() == [1.0], "ten others, all found"


def test_the_next_choice_is_ranked_among_all_that_the_user_did_not_have() -> None:
    made = world([[0, 1, 2], [6, 7, 11], [0, 1, 9]], hide=[2, 9, 11])
    found = cold_items.next_ranks(two_shelves(), made.cases, np.arange(3))
    assert found.tolist() == [0, 3, 7], "between near products, behind 8, 9 and 10, behind one's own shelf"
    places = np.where(np.arange(N) < 8, np.arange(N), -1)
    assert cold_items.next_ranks(two_shelves(), made.cases, np.array([0]), places).tolist() == [0]


def test_the_system_that_knows_the_truth_wins_and_the_difference_says_so() -> None:
    rng, n = np.random.default_rng(0), 60
    users = [(30 * (u % 2) + rng.permutation(30)[:4]).tolist() for u in range(600)]
    made = world(users, hide=list(range(0, n, 3)), n=n)
    spread = rng.standard_normal((n, 8)).astype(np.float32)
    figures = cold_items.cold("cold.x", made, {"full": two_shelves(n), "random": spread}, CONFIG)
    counts = {name: figures.pop(f"cold.x.{name}") for name in ("neighbours.n", "hr.n")}
    hidden_ones = np.flatnonzero(made.hidden)
    assert counts["neighbours.n"] == figure(len(hidden_ones), "products"), "all were chosen with others"
    assert counts["hr.n"] == figure(int(np.isin(made.cases.targets, hidden_ones).sum()), "users")
    assert set(figures) == {
        f"cold.x.{system}.{measure}"
        for system in ("full", "random", "full.minus.random")
        for measure in ("neighbours.r10", "hr10")
    }
    for measure in ("neighbours.r10", "hr10"):
        gain = figures[f"cold.x.full.minus.random.{measure}"]
        plain = [figures[f"cold.x.{system}.{measure}"]["value"] for system in ("full", "random")]
        assert gain["value"] == pytest.approx(plain[0] - plain[1], abs=1e-4)
        assert 0 < gain["ci95"][0] <= gain["value"] <= gain["ci95"][1]


def test_users_who_chose_the_same_next_are_drawn_together() -> None:
    """Half of twenty users chose 2 next, which is near, half 59, which is far: one of two products."""
    made = world([[0, 1, 2]] * 10 + [[0, 1, 59]] * 10, hide=[2, 59], n=60)
    found = cold_items.cold("cold.x", made, {"full": two_shelves(60), "random": two_shelves(60)[::-1]}, CONFIG)
    assert found["cold.x.full.hr10"]["ci95"] == [0.0, 1.0]


def test_the_lift_is_of_answered_products_only() -> None:
    made = world([[0, 1, 2], [0, 2, 1], [6, 7, 11]], hide=[])
    alternating = two_shelves()[[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]]
    lessened = {cold_towers.NO_LLM_RE: two_shelves(), cold_towers.NO_RE: alternating}
    figures = cold_items.lift(made, two_shelves(), lessened, CONFIG)
    assert figures["re.n"] == figure(2, "users"), "11 has no answer"
    assert figures["re.with.n10"]["value"] == figures["re.without.n10"]["value"] == 1.0
    assert figures["re.lift.n10"] == {"value": 0.0, "ci95": [0.0, 0.0], "goal": 0.0, "unit": "difference"}
    assert figures["re.all.without.n10"]["value"] < 1
    assert figures["re.all.lift.n10"]["value"] == pytest.approx(1 - figures["re.all.without.n10"]["value"], abs=1e-4)


def value(key: str, said: str, source: str) -> dict[str, str | None]:
    """An attribute as `enriched` has it."""
    return {"key": key, "value": said, "source": source, "evidence": None}


def enriched(tree: Config, re: list[list[dict[str, str | None]]]) -> None:
    """Write `enriched` of a catalogue: RE values as given, a colour by an answer, every second product answered."""
    facts = {"status": "ok", "tokens_in": 0, "tokens_out": 0, "content_hash": ""}
    facts |= {"vocab_version": StdVocabulary.load().version}
    std = [value("colour", "red", "llm")]
    rows = [{"product_id": f"p{i:04}", "model": "m" if i % 2 else None, "std": std, "re": said, **facts}
            for i, said in enumerate(re)]  # fmt: skip
    catalogue.put(tree, ENRICHED, rows)


def test_the_towers_of_the_table_come_first_and_those_without_titles_know_no_start() -> None:
    recipe = ItemTower()
    second = recipe.behaviour.model_copy(update={"epochs": 1})
    assert list(cold_towers.arms(recipe, lift=False)) == ["full", "std", "re", "title", "choices"]
    twice = recipe.model_copy(update={"behaviour": second})
    assert list(cold_towers.arms(twice, lift=True)) == [
        "full", "std", "re", "title", "simcse", "no-llm-re", "no-re", "apart", "choices",
    ]  # fmt: skip
    apart = cold_towers.arms(recipe.model_copy(update={"std_width": 32}), lift=True)
    assert list(apart) == ["full", "std", "re", "title", "mixed", "no-llm-re", "no-re", "apart", "choices"]
    assert apart["mixed"] == recipe
    assert {name for name, tower in apart.items() if not tower.std_width} == {"std", "re", "title", "mixed"}
    other = recipe.model_copy(update={"start": "choices"})
    by_texts, by_choices = (cold_towers.arms(options, lift=True) for options in (recipe, other))
    assert list(by_choices) == [*list(by_texts)[:-1], "texts"]
    assert (by_choices["full"], by_choices["texts"]) == (by_texts["choices"], by_texts["full"])
    alike = {name for name in by_texts if by_choices.get(name) == by_texts[name]}
    assert alike == {"std", "re"}, "what reads no titles is not learned again when the recipe's start changes"
    assert "choices" not in cold_towers.arms(ItemTower(inputs=["std", "re"]), lift=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_without_answers_only_their_re_values_are_gone(tmp_path: Path) -> None:
    """Values of rules stay, in their order, under the ids of the one vocabulary, and so does STD of answers."""
    tree = catalogue.shop(tmp_path, 4)
    rule, soft, warm = value("fibre", "ribbed", "rule"), value("colour", "soft", "llm"), value("fibre", "warm", "llm")
    enriched(tree, [[rule, soft], [soft, warm], [], [warm, rule]])
    vocabulary = StdVocabulary.load()
    words = ReVocabulary.load(tree.at("vocabulary") / "re.json")
    whole = cold_items.without_answers(tree)
    rows = dataset.read(whole.at("tensors"), TENSORS).to_pylist()
    ribbed = words.ids("fibre", "ribbed")
    assert [list(zip(row["re_key"], row["re_id"], strict=True)) for row in rows] == [ribbed, [], [], ribbed]
    assert [row["std_id"] for row in rows] == [[vocabulary.id_of("colour", "red")]] * 4
    assert [row["title_id"] for row in rows] == dataset.read(tree.at("tensors"), TENSORS)["title_id"].to_pylist()
    assert whole.at("vocabulary").resolve() == tree.at("vocabulary").resolve()
    before = dataset.read_manifest(whole.at("tensors"), TENSORS)
    cold_items.without_answers(tree)
    assert dataset.read_manifest(whole.at("tensors"), TENSORS) == before


@pytest.mark.slow
def test_raw_text_is_the_whole_encoders_where_the_tower_has_its_last_layers(tmp_path: Path) -> None:
    words = [word for text in catalogue.PEOPLE for word in text.split()]
    folder = encoders.write(tmp_path / "encoder", list(dict.fromkeys(words)))
    tree = catalogue.write(tmp_path, 16, overrides=[f"text.encoder={folder}", "item_tower.text=top"])
    with data_in_process():
        encode.run(tree)
        found = cold_items.text_vectors(tree)
    encoder = text_encoder.load(tree.text)
    ids = dataset.read(tree.at("tensors"), TENSORS, ["title_id"])["title_id"].to_pylist()
    states = [state.astype(np.float32) for state in encoder.token_states(ids, 4)]
    told = np.stack([state.mean(0) if len(state) else np.zeros(encoder.width, np.float32) for state in states])
    np.testing.assert_allclose(found, unit(told), atol=1e-3)
    below = ItemInputs.load(tree.at("tensors"), tree.at("text_states")).text_vectors()
    assert np.abs(below - found).max() > 1e-2


def test_a_run_that_fails_late_leaves_the_figures_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(config: Config, **_: bool) -> Iterator[tuple[str, Figures]]:
        yield "cold", {"cold.x": figure(0.5, "ratio")}
        yield "noise", {"noise.x": figure(0.25, "ratio")}
        raise ArtifactError("the next one fails")

    monkeypatch.setattr(cold_items, "_blocks", blocks)
    tree = CONFIG.model_copy(update={"store": str(tmp_path)})
    with pytest.raises(ArtifactError, match="the next one fails"):
        cold_items.measure(tree, quick=False, speed=True)
    kept = json.loads((tree.at(hidden.FOLDER) / cold_items.FIGURES).read_text(encoding="utf-8"))
    assert kept == {"cold.x": figure(0.5, "ratio"), "noise.x": figure(0.25, "ratio")}


def test_speed_alone_needs_one_tower_and_leaves_the_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = CONFIG.model_copy(update={"store": str(tmp_path)})
    folder = tree.at(hidden.FOLDER)
    folder.mkdir(parents=True)
    (folder / cold_items.FIGURES).write_text("{}", encoding="utf-8")
    asked: list[str] = []
    for name in ("world_of", "seen_of"):
        monkeypatch.setattr(cold_items, name, lambda *_: None)
    monkeypatch.setattr(cold_items, "_cold_blocks", lambda *_: pytest.fail("cold items are measured"))
    monkeypatch.setattr(cold_items, "_trained", lambda seen, name, options: asked.append(name))
    for name in ("training", "encoding", "exporting"):
        made = {f"{name}.x": figure(1.0, "ratio")}
        monkeypatch.setattr(tower_speed, name, lambda *_, made=made, **__: made)
    figures = cold_items.measure(tree, quick=False, speed=True, cold_too=False)
    assert asked == [cold_towers.FULL]
    assert json.loads((folder / cold_items.SPEED).read_text(encoding="utf-8")) == figures
    assert list(figures) == ["training.x", "encoding.x", "exporting.x"]
    assert (folder / cold_items.FIGURES).read_text(encoding="utf-8") == "{}"


BOTH, COLD, SPEED = (
    {"cold_too": True, "speed": True},
    {"cold_too": True, "speed": False},
    {"cold_too": False, "speed": True},
)


@pytest.mark.parametrize(
    ("recipe", "told", "asked"),
    [
        ("hm", (), {"hm": BOTH, "beauty": COLD}),
        ("hm", ("alone",), {"hm": BOTH}),
        ("beauty", ("alone",), {"beauty": BOTH}),
        ("beauty", (), {"beauty": BOTH}),
        ("hm", ("no_speed",), {"hm": COLD, "beauty": COLD}),
        ("hm", ("speed_only",), {"hm": SPEED}),
    ],
)
def test_a_recipe_is_measured_with_beauty_or_alone(
    recipe: str,
    told: tuple[str, ...],
    asked: dict[str, dict[str, bool]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met: dict[str, dict[str, bool]] = {}

    def measure(config: Config, *, quick: bool, **parts: bool) -> Figures:
        met[config.name] = parts
        return {f"cold.{config.name}.x": figure(1.0, "ratio")}

    monkeypatch.setattr(benchmark, "prepare", lambda config, last: None)
    monkeypatch.setattr(benchmark.amazon, "lies_in", lambda folder: True)
    monkeypatch.setattr(cold_items, "measure", measure)
    flags = {name: name in told for name in ("alone", "no_speed", "speed_only")}
    figures = benchmark.cold(argparse.Namespace(recipe=recipe, overrides=[f"store={tmp_path}"], quick=False, **flags))
    assert met == asked
    assert list(figures) == [f"cold.{name}.x" for name in asked]


@pytest.mark.parametrize("busy", ["hm", "beauty"])
def test_nothing_is_measured_while_another_job_writes_to_one_of_the_recipes(
    busy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "prepare", lambda config, last: pytest.fail(f"{config.name} is prepared"))
    monkeypatch.setattr(benchmark.amazon, "lies_in", lambda folder: True)
    options = argparse.Namespace(
        recipe="hm", overrides=[f"store={tmp_path}"], quick=False, alone=False, no_speed=False, speed_only=False
    )
    with artifact.alone(tmp_path / busy), pytest.raises(artifact.Busy, match=f"is writing to {tmp_path / busy}: wait"):
        benchmark.cold(options)
    monkeypatch.setattr(benchmark, "prepare", lambda config, last: None)
    monkeypatch.setattr(cold_items, "measure", lambda config, **_: {config.name: figure(1.0, "ratio")})
    assert list(benchmark.cold(options)) == ["hm", "beauty"], "the locks went with the run"


@pytest.mark.parametrize(
    ("name", "quick"), [("rankers", False), ("retrieval", True), ("fuzz", True), ("serving", True)]
)
def test_no_benchmark_makes_artifacts_beside_another_job(
    name: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "prepare", lambda config, last: pytest.fail(f"{config.name} is prepared"))
    options = argparse.Namespace(
        name=name, quick=quick, html=None, seeds=1, control_seeds=0, minutes=1.0, rate=1.0, apart_rate=None
    )
    root = tmp_path / ("demo-quick" if quick and name != "fuzz" else "demo")
    with artifact.alone(root), pytest.raises(artifact.Busy, match=f"is writing to {root}: wait"):
        benchmark.run(config.load("demo", [f"store={tmp_path}"]), options)


def test_whole_groups_are_hidden_by_seed() -> None:
    groups = np.repeat(np.arange(40), 3)
    drawn = hidden.draw(groups, 0.1, 3)
    assert 0 < drawn.sum() <= 12
    assert drawn.reshape(40, 3).all(axis=1).sum() * 3 == drawn.sum()
    np.testing.assert_array_equal(drawn, hidden.draw(groups, 0.1, 3))
    assert (drawn != hidden.draw(groups, 0.1, 4)).any()


def test_the_open_store_trains_on_no_held_out_event() -> None:
    """A user whom hiding leaves two events would train on both, though they are held out."""
    h = pairs.histories([[0, 1, 2], [3, 4, 5, 6], [0, 7], [8, 9, 10, 11]], N)
    mask = np.isin(np.arange(N), [0, 6])
    opened = hidden.open_events(h, mask)
    left = [h.items[a:b][opened[a:b]].tolist() for a, b in zip(h.offsets[:-1], h.offsets[1:], strict=True)]
    assert left == [[], [3, 4, 5], [7], [8, 9, 10, 11]]
    kept = pairs.histories(left, N)
    trained = set(kept.items[histories.training_events(kept)].tolist())
    assert trained == {3, 7, 8, 9}
    assert trained <= set(h.items[histories.training_events(h)].tolist())


def test_the_open_store_has_nothing_of_what_is_hidden_and_a_leak_is_found(tmp_path: Path) -> None:
    tree = catalogue.shop(tmp_path, 24)
    h = histories.load(tree.root)
    groups = dataset.read(tree.at("tensors"), TENSORS, ["group"])["group"].to_numpy().astype(np.int64)
    mask = hidden.draw(groups, 0.25, 1)
    ids = dataset.read(tree.at("products"), PRODUCTS, ["product_id"])["product_id"]
    gone = ids.filter(pa.array(mask)).combine_chunks()
    seen, leaky = hidden.part(tree, "seen"), hidden.part(tree, "leaky")
    hidden.write(tree, seen, ~mask, h, hidden.open_events(h, mask))
    hidden.check(seen, gone)
    again = dataset.read_manifest(seen.at("events"), INTERACTIONS)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_kept", "_events"):
            patch.setattr(hidden, name, lambda *_: pytest.fail("what is there already is read again"))
        hidden.write(tree, seen, ~mask, h, hidden.open_events(h, mask))
    assert dataset.read_manifest(seen.at("events"), INTERACTIONS) == again
    opened = histories.load(seen.root)
    assert opened.unknown == 0
    assert opened.num_items == int((~mask).sum())
    hidden.write(tree, leaky, np.ones(24, bool), h, np.ones(len(h.items), bool))
    with pytest.raises(ArtifactError, match=r"rows of hidden products such as 'p\d+': remove"):
        hidden.check(leaky, gone)


def test_vectors_are_kept_for_a_tower_and_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = catalogue.shop(tmp_path, 12)
    untrained.write(tree, 0)
    counted: list[int] = []
    monkeypatch.setattr(cold_items, "item_vectors", lambda *given: counted.append(1) or item_vectors(*given))
    first = cold_items.product_vectors(tree, tree)
    np.testing.assert_array_equal(cold_items.product_vectors(tree, tree), first)
    assert len(counted) == 1
    untrained.write(tree, 1)
    assert (cold_items.product_vectors(tree, tree) != first).any(), "another tower"
    rows = dataset.read(tree.at("tensors"), TENSORS).to_pylist()
    catalogue.put(tree, TENSORS, [{**row, "std_key": [], "std_id": []} for row in rows])
    cold_items.product_vectors(tree, tree)
    assert len(counted) == 3, "other inputs"


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_towers_are_trained_without_the_hidden_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way on a small shop, whose shoppers stay with a colour, with towers of one epoch."""
    tree = catalogue.shop(tmp_path, 60)
    with data_in_process():
        encode.run(tree)
    told = [value("fibre", "ribbed", "rule"), value("fibre", "warm", "llm")]
    enriched(tree, [told[: 1 + i % 2] for i in range(60)])
    second = tree.item_tower.behaviour.model_copy(update={"epochs": 1, "batch_size": 16})
    train = tree.item_tower.train.model_copy(update={"epochs": 1})
    tower = tree.item_tower.model_copy(update={"behaviour": second, "train": train})
    some = {
        cold_towers.FULL: tower,
        cold_towers.NO_LLM_RE: tower,
        cold_towers.NO_RE: tower.model_copy(update={"inputs": ["std", "title"]}),
        cold_towers.APART: tower.model_copy(update={"shared_keys": False}),
        cold_towers.CHOICES: tower.model_copy(update={"start": "choices"}),
    }
    monkeypatch.setattr(cold_towers, "arms", lambda options, lift: some)
    monkeypatch.setattr(tower_speed, "ROUNDS", 1)
    with in_process(item.loop, behaviour.loop, user.loop):
        figures = cold_items.measure(tree.model_copy(update={"item_tower": tower}), quick=False, speed=True)
    kept = json.loads((tree.at(hidden.FOLDER) / cold_items.FIGURES).read_text(encoding="utf-8"))
    assert kept == figures
    for measure in ("neighbours.r10", "hr10"):
        for system in ("full", "rawtext", "centred", "random"):
            low, high = figures[f"cold.catalogue.{system}.{measure}"]["ci95"]
            assert 0 <= low <= figures[f"cold.catalogue.{system}.{measure}"]["value"] <= high <= 1
        for other in ("rawtext", "choices"):
            assert f"cold.catalogue.full.minus.{other}.{measure}" in figures
    assert {figures[f"re.{part}lift.n10"]["unit"] for part in ("", "all.")} == {"difference"}
    lessened = [hidden.part(tree, "without-answers"), hidden.part(hidden.part(tree, "without-answers"), "no-llm-re")]
    assert [dataset.read_manifest(part.at("tensors"), TENSORS).facts["rows"] for part in lessened] == [60, 54]
    assert 0 < figures["noise.catalogue.full.overlap10"]["value"] <= 1
    shares = {name: figures[f"train.{name}"]["value"] for name in ("batches", "step", "around")}
    assert all(0 < share < 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1, abs=2e-4)
    assert figures["train.busy"]["value"] > 0
    for stage, inner in (("encode", "encoder"), ("embed", "tower")):
        rate, bare = figures[f"{stage}.products_per_s"]["value"], figures[f"{stage}.{inner}.products_per_s"]["value"]
        assert figures[f"{stage}.over.{inner}"]["value"] == pytest.approx(rate / bare, rel=0.05, abs=1e-4)
    assert figures["train.over.torch"]["value"] < 2
    assert {"keys.shared.mass", "keys.apart.mass", "keys.shared.minus.apart.beyond"} <= set(figures)
    assert figures["noise.catalogue.n"]["value"] > 0
    assert not any(hidden.part(tree, name).root.exists() for name in ("exported", "encoded"))
    trained = dataset.read_manifest(hidden.part(tree, "full").at("tensors"), TENSORS)
    assert trained.facts["rows"] == 54, "a tenth is hidden"
    with pytest.MonkeyPatch.context() as patch:  # a second run learns nothing anew
        patch.setattr(ddp, "fit", lambda *_, **__: pytest.fail("a tower is trained again"))
        patch.setattr(cold_items, "item_vectors", lambda *_: pytest.fail("products are placed again"))
        again = cold_items.measure(tree.model_copy(update={"item_tower": tower}), quick=False, speed=False)
    assert again.items() <= figures.items()
    users = UserTower(layers=1, adapter=8, semantics=6, train=UserTrain(epochs=2, cpus_per_worker=1))
    with in_process(item.loop, behaviour.loop, user.loop), data_in_process():
        figures = cold_and_warm.measure(tree.model_copy(update={"item_tower": tower, "user_tower": users}))
    for side in ("cold", "warm", "all"):
        for system in ("tower", "delta", "content", "centred"):
            low, high = figures[f"catalogue.{side}.{system}.hr10"]["ci95"]
            assert 0 <= low <= figures[f"catalogue.{side}.{system}.hr10"]["value"] <= high <= 1
    assert {figures[name]["goal"] for name in ("catalogue.cold.over.content", "catalogue.warm.over.delta")} == {1.0}
    learned = user_tower.load(hidden.part(tree, "user-tower").at(user_tower.KIND))
    assert len(learned.item_vectors) == 54, "user towers are trained without the hidden, too"
