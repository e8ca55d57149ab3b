"""What the shop's files say anew is served without training: prices, stock, and products that are new."""

import asyncio
import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import additions, artifact, bundle, bundles, dataset, postgres, publish, refresh
from rec.bundle import Bundle
from rec.config import Columns, Config, Enrich, Source
from rec.errors import ArtifactError, DatabaseError, InputError
from rec.features import items as item_features
from rec.index import check, experiments, load, promote
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from rec.index.stock import TooManyLost
from rec.recommend.chain import Chain
from rec.recommend.encode import UserEncoder
from rec.recommend.request import Choice, Request
from rec.schema import ENRICHED, PRODUCTS
from rec.sources import tables as source_tables
from rec.state import cold_state
from serve.answering import Answering
from serve.asking import Together
from serve.exposures import ExposureLog
from serve.fallible import BackedFront
from tests.bundle import tiny
from tests.item_tower import encoders
from tests.pipeline.conftest import Finished

FIELDS = ("product_id", "title", "text", "price", "brand", "style", "in_stock", "colour", "kind")
NEW = {
    "product_id": "X1",
    "title": "red dress linen",
    "text": "A linen dress of this morning.",
    "price": "33.5",
    "brand": "Norr",
    "style": "",
    "in_stock": "yes",
    "colour": "red",
    "kind": "dress",
}


ADDED = [
    {**NEW, "product_id": "X0", "title": "a coat of many colours", "price": "12", "colour": "octarine"},
    NEW,
    {**NEW, "product_id": "X2", "brand": "Norr", "style": "style-3", "price": "35"},
    {**NEW, "product_id": "X3", "brand": "Nobody", "price": ""},
]


@dataclass
class Shop:
    """A published recipe whose products are in a file."""

    recipe: Config
    first: str
    rows: list[dict[str, str]]
    result: dict[str, Any] = field(default_factory=dict)
    """Of the refresh, where there was one."""

    @property
    def url(self) -> str:
        return postgres.url(self.recipe.store)

    def write(self, rows: list[dict[str, str]]) -> None:
        """Have the shop's file hold these products."""
        with (Path(self.recipe.source.folder) / "products.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def refresh(self, rows: list[dict[str, str]]) -> dict[str, Any]:
        """What the job answers when the file holds these products."""
        self.write(rows)
        return refresh.run(self.recipe)

    def active(self) -> Bundle:
        with postgres.session(self.url) as connection:
            return bundle.read(self.recipe.store, promote.active(connection))

    def asked(self, request: Request) -> list[dict[str, Any]]:
        """The products that a chain of the active bundle answers with."""
        connections = Connections(self.url, size=1)
        try:
            return Chain(self.active(), connections).recommend(request).items
        finally:
            connections.close()

    def query(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(text, values).fetchall()


def file_rows() -> list[dict[str, str]]:
    """The tiny shop's products as its file has them."""
    return [
        {
            "product_id": tiny.product_id(row),
            "title": f"{tiny.colour(row)} {tiny.category(row)}",
            "text": f"number {row}",
            "price": str(10.0 + row),
            "brand": ("Norr", "Haan", "")[row % 3],
            "style": f"style-{row}" if row < 5 else "",
            "in_stock": "no" if row % 10 == 9 else "yes",
            "colour": tiny.colour(row),
            "kind": tiny.category(row),
        }
        for row in range(tiny.ITEMS)
    ]


@pytest.fixture(scope="module")
def new_shop(new_store: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Shop]:
    """Makes published shops."""
    columns = Columns(
        products={
            "product_id": "product_id",
            "title": "title",
            "description": "text",
            "price": "price",
            "brand": "brand",
            "group_id": "style",
            "available": "in_stock",
        },
        attributes=["colour", "kind"],
    )

    def make(encoder: str = "minilm") -> Shop:
        folder = tmp_path_factory.mktemp("files")
        source = Source(
            kind="files",
            folder=str(folder),
            products="products.csv",
            events="events.csv",
            currency="EUR",
            columns=columns,
        )
        recipe = tiny.make(tiny.config(new_store().resolve(), fit=True, encoder=encoder))
        found = publish.run(recipe)["bundle"]
        made = Shop(recipe.model_copy(update={"source": source, "enrich": Enrich(max_calls=0)}), found, file_rows())
        made.write(made.rows)
        (folder / "events.csv").write_text("user_id,product_id,at\n")  # it has to be there, and nobody reads it
        return made

    return make


@pytest.fixture
def shop(new_shop: Callable[[], Shop]) -> Shop:
    return new_shop()


@pytest.fixture(scope="module")
def grown(new_shop: Callable[[], Shop], ray_local: None) -> Shop:
    """A shop after a refresh with four new products."""
    made = new_shop()
    made.result = made.refresh([*made.rows, *ADDED])
    return made


def changed(rows: list[dict[str, str]], product_id: str, **values: str) -> list[dict[str, str]]:
    """The rows, one product of which has other values."""
    return [{**row, **values} if row["product_id"] == product_id else row for row in rows]


def test_prices_and_stock_count_in_the_next_answer_and_make_no_bundle(shop: Shop) -> None:
    liked = Request(history=(Choice(tiny.product_id(0)),), k=20)
    before = shop.asked(liked)
    first, second, third = (item["product_id"] for item in before[:3])
    rows = changed(changed(shop.rows, first, in_stock="no"), second, price="1.25")
    rows = changed([row for row in rows if row["product_id"] != third], tiny.product_id(9), in_stock="yes")
    found = shop.refresh(rows)
    assert found == {
        "bundle": shop.first,
        "extends": None,
        "added": 0,
        "waiting": 0,
        "unknown": {"std": {}, "re": {}},
        "products": tiny.ITEMS - 1,
        "rejected": 0,
        "prices": 1,
        "sold_out": 2,
        "back": 1,
        "gone": 1,
        "seconds": found["seconds"],
    }
    after = shop.asked(liked)
    assert not {first, third} & {item["product_id"] for item in after}
    assert next(item["price"] for item in after if item["product_id"] == second) == 1.25
    again = shop.refresh(rows)
    assert {again[name] for name in ("prices", "sold_out", "back", "gone")} == {0}


@pytest.mark.slow
def test_new_products_are_served_by_the_models_as_they_are(grown: Shop) -> None:
    made, base = grown.active(), bundle.read(grown.recipe.store, grown.first)
    assert {name: grown.result[name] for name in ("added", "extends", "bundle", "rejected")} == {
        "added": 4,
        "extends": grown.first,
        "bundle": made.id,
        "rejected": 0,
    }
    unknown = {"std": {"colour": 1}, "re": {"category": 4, "colour": 1, "detail": 4}}
    assert grown.result["unknown"] == unknown, "octarine, and words that are none of the six of the tiny shop"
    bundle.verify(made)
    assert made.product_ids() == [*base.product_ids(), "X0", "X1", "X2", "X3"]
    vectors = made.item_vectors()
    np.testing.assert_array_equal(vectors[: base.items], base.item_vectors())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[-3] @ vectors[-1], 1, atol=1e-5, err_msg="of the same content")
    same = {name for name in base.files if made.file_hash(name) == base.file_hash(name)}
    assert {"ranker/ranker.safetensors", "user_tower/user_tower.safetensors", "config.json"} <= same

    assert len(grown.asked(Request(k=100))) == 100
    assert grown.asked(Request(history=(Choice("X1"),), k=5)), "it counts as a product that was chosen"
    (card,) = grown.asked(Request(filters=Filters(price_min=33.4, price_max=33.6)))
    assert (card["product_id"], card["price"], card["brand"]) == ("X1", 33.5, "Norr")
    assert card["attributes"]["category"] == ["dress"]
    assert card["fit"] is None


@pytest.mark.slow
def test_one_table_holds_both_and_each_bundle_sees_its_own_rows(grown: Shop) -> None:
    made, base = grown.active(), bundle.read(grown.recipe.store, grown.first)
    assert grown.query("SELECT vectors FROM bundles WHERE id = %s", made.id) == [(base.id,)]
    assert grown.query(f"SELECT count(*) FROM items_{base.id}") == [(tiny.ITEMS + 4,)]
    for each in (made, base):
        assert check.check(grown.url, each) is not None
    connections = Connections(grown.url, size=1)
    for each in (made, base):
        index, vector = VectorIndex(connections, each.id, each.config.index), made.item_vectors()[-4]
        for search in (index.search, index.exact):
            rows = search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters()).rows
            assert (rows[0] == tiny.ITEMS) == (each is made)
            assert rows.max() < each.items
    connections.close()


@pytest.mark.slow
def test_features_are_those_that_the_ranker_knows(grown: Shop) -> None:
    made, base = grown.active(), bundle.read(grown.recipe.store, grown.first)
    new = item_features.load(made.folder("features"), made.item_vectors())
    old = item_features.load(base.folder("features"), base.item_vectors())
    for name in ("std", "re", "re_weight", "brand", "group", "popularity"):
        np.testing.assert_array_equal(getattr(new, name)[: base.items], getattr(old, name))
    one, two, three = new.brand[-3:]
    assert one == two == old.brand[0], "Norr"
    assert three == item_features.OTHER_BRAND
    groups = [old.group.max() + 1, *3 * [old.group[3]]]
    assert new.group[-4:].tolist() == groups, "of the shop's group, and of the same content as one that is"
    assert not new.popularity[-4:].any()
    assert np.isnan(new.log_price[-1])
    sources, before = (source_tables.load(each.folder("sources")) for each in (made, base))
    np.testing.assert_array_equal(sources.item.rows[: base.items], before.item.rows)
    assert base.items + 2 in sources.item.rows[-3], "its nearest is the twin"
    assert (sources.cooccurrence.rows[-4:] == -1).all()


@pytest.mark.slow
def test_servers_take_an_extension_over(grown: Shop) -> None:
    """The stages in this process as the server's replica has them, asked for both bundles in turn."""
    pool = Connections(grown.url, size=2)
    together = Together(grown.recipe.store)
    log = ExposureLog(lambda: Connections(grown.url, size=1), lambda *_: None)
    answering = Answering(together, log)
    for name in (grown.first, grown.active().id):
        front = BackedFront(bundle.read(grown.recipe.store, name), pool)
        request = Request(history=(Choice(tiny.product_id(0)),), filters=Filters(price_min=33.4, price_max=33.6))
        answer = asyncio.run(answering.recommend(front, request))
        assert answer["degraded"] == []
        assert ("X1" in {item["product_id"] for item in answer["items"]}) == (name != grown.first)
    row = int(front.shelf.rows(["X1"])[0])
    assert asyncio.run(answering.similar(front, row, 1, evidence=False))["items"][0]["product_id"] in ("X2", "X3")
    log.close()
    pool.close()


@pytest.mark.slow
@pytest.mark.long
def test_what_another_extension_left_behind_the_rows_is_no_hindrance(shop: Shop, ray_local: None) -> None:
    before = publish.run(tiny.make(tiny.config(Path(shop.recipe.store), seed=3)))["bundle"]
    publish.activate(shop.recipe, shop.first)
    found = shop.refresh([*shop.rows, NEW])
    publish.activate(shop.recipe, shop.first)
    assert refresh.run(shop.recipe)["bundle"] == found["bundle"], "the same products make the same bundle"
    publish.activate(shop.recipe, shop.first)
    other = shop.refresh([*shop.rows, {**NEW, "product_id": "X0", "price": "44.25"}])
    assert shop.query("SELECT vectors FROM bundles WHERE id = %s", other["bundle"]) == [(other["bundle"],)], (
        "another product is in the first row behind the base's"
    )
    assert check.check(shop.url, shop.active()) is not None
    assert promote.previous(shop.url, "tiny") == before, "however often bundles of one training took turns"
    assert set(bundles.collect(shop.recipe)["kept"]) == {other["bundle"], before}


@pytest.mark.slow
def test_refreshes_follow_each_other_and_a_rollback_goes_behind_them(
    shop: Shop, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.recipe = tiny.make(shop.recipe.model_copy(update={"seed": 3}))
    trained = publish.run(shop.recipe)["bundle"]
    first = shop.refresh([*shop.rows, NEW])
    second = shop.refresh([*shop.rows, NEW, {**NEW, "product_id": "X2"}])
    assert first["bundle"] in bundle.names(shop.recipe.store), "servers may still load it"
    monkeypatch.setattr(refresh, "SUPERSEDED_S", 0.0)
    third = shop.refresh([*shop.rows, NEW, {**NEW, "product_id": "X2"}, {**NEW, "product_id": "X0"}])
    assert [each["extends"] for each in (first, second, third)] == [trained, first["bundle"], second["bundle"]]
    assert shop.active().product_ids()[-3:] == ["X1", "X2", "X0"]
    ids = [second["bundle"], third["bundle"]]
    assert shop.query("SELECT DISTINCT vectors, root FROM bundles WHERE id = ANY(%s)", ids) == [(trained, trained)]
    names = bundle.names(shop.recipe.store)
    assert first["bundle"] not in names, "the one after it is there to go back to"
    assert second["bundle"] in names

    again = publish.run(shop.recipe)
    assert (again["bundle"], again["skipped"]) == (third["bundle"], True), "the same models, with more products"
    collected = bundles.collect(shop.recipe)
    assert set(collected["kept"]) == {third["bundle"], shop.first}
    assert shop.query(f"SELECT count(*) FROM items_{trained}") == [(tiny.ITEMS + 3,)], "its rows are still searched"
    assert publish.run(shop.recipe, force=True)["bundle"] == trained, "whose own rows are still there"
    assert check.check(shop.url, shop.active()) is not None
    assert refresh.run(shop.recipe)["added"] == 3
    assert publish.rollback(shop.recipe)["bundle"] == shop.first
    dropped = set(bundles.collect(shop.recipe)["dropped"])
    assert trained in dropped
    assert shop.query("SELECT to_regclass(%s)", f"items_{trained}") == [(None,)]


@pytest.mark.slow
def test_a_promotion_or_a_job_meanwhile_is_not_undone(
    shop: Shop, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = publish.run(tiny.make(tiny.config(Path(shop.recipe.store), seed=3)))["bundle"]
    shop.write([*shop.rows, NEW])
    load_vectors = load.vectors

    def rolled_back_meanwhile(*given: Any) -> bool:
        publish.rollback(shop.recipe)
        return load_vectors(*given)

    with monkeypatch.context() as patch:
        patch.setattr(load, "vectors", rolled_back_meanwhile)
        with pytest.raises(DatabaseError, match=f"{shop.first} has become the active one.*no longer {other}"):
            refresh.run(shop.recipe)
    assert shop.active().id == shop.first
    with artifact.alone(shop.recipe.root):
        found = shop.refresh([*changed(shop.rows, tiny.product_id(0), price="99.5"), NEW])
        with pytest.raises(artifact.Busy, match="is writing to"):
            bundles.collect(shop.recipe)
    assert (found["added"], found["waiting"], found["bundle"]) == (0, 1, shop.first)
    assert found["prices"] == 1, "they wait for nobody"


@pytest.mark.slow
def test_a_refresh_that_was_stopped_is_done_again(shop: Shop, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shop.write([*shop.rows, NEW])
    with monkeypatch.context() as patch:
        patch.setattr(promote, "promote", stopped)
        with pytest.raises(KeyboardInterrupt):
            refresh.run(shop.recipe)
    assert shop.active().id == shop.first
    assert check.check(shop.url, shop.active()) is not None
    found = refresh.run(shop.recipe)
    assert found["added"] == 1
    assert shop.active().id == found["bundle"]
    assert len(bundle.names(shop.recipe.store)) == 2, "the first try made the same bundle"


@pytest.mark.parametrize("broken", ["half", "none in stock", "prices"])
def test_a_broken_file_does_not_empty_the_shop(shop: Shop, broken: str) -> None:
    rows = {
        "half": shop.rows[: tiny.ITEMS // 2],
        "none in stock": [{**row, "in_stock": "no"} for row in shop.rows],
        "prices": [{**row, "price": f"EUR {row['price']},-"} for row in shop.rows[:80]] + shop.rows[80:],
    }[broken]
    shop.write(rows)
    before = shop.query("SELECT product_id, price, available FROM products ORDER BY product_id")
    lost = {"half": "72", "none in stock": "144", "prices": "72"}[broken]
    said = rf"^{lost} of the 144 products in stock would no longer be, .*more than 20%.*--force"
    with pytest.raises(TooManyLost, match=said) as raised:
        refresh.run(shop.recipe)
    assert ("80 rows of it are refused, the first one because price" in str(raised.value)) == (broken == "prices")
    assert (shop.recipe.at("refresh") / "rejected.parquet").exists() == (broken == "prices")
    assert shop.query("SELECT product_id, price, available FROM products ORDER BY product_id") == before
    assert refresh.prices_and_stock(shop.recipe) == {}, "a pipeline ends all the same"
    assert refresh.run(shop.recipe, force=True)["sold_out"] == int(lost)


def test_what_is_refused(shop: Shop) -> None:
    with pytest.raises(ArtifactError, match=r"is of recipe 'tiny', not 'other'.*refresh with --recipe tiny"):
        refresh.run(shop.recipe.model_copy(update={"name": "other"}))
    (Path(shop.recipe.source.folder) / "products.csv").unlink()
    with pytest.raises(InputError, match=r"products\.csv"):
        refresh.run(shop.recipe)
    assert shop.query("SELECT count(*) FROM products WHERE available")[0][0] > 0, "no file is not an empty shop"
    publish.run(tiny.make(tiny.config(Path(shop.recipe.store), seed=3)))
    experiments.start(shop.url, "tiny", shop.first, 0.5)
    with pytest.raises(DatabaseError, match="experiment"):
        shop.refresh([*shop.rows, NEW])


def test_an_encoder_with_replaced_weights_adds_no_products_and_reads_no_context(
    new_shop: Callable[..., Shop], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = encoders.write(tmp_path / "encoder", ["warm", "coat"])
    shop = new_shop(str(folder))
    base = shop.active()
    additions.check(base)
    state = cold_state(2, "a warm coat")
    silent = replace(state, context="")
    (read,), (unread,) = UserEncoder(base).encode([state]), UserEncoder(base).encode([silent])
    assert set(read.without) == {"context"}
    assert np.abs(read.vector - unread.vector).max() > 1e-3
    encoders.change(folder)
    with pytest.raises(ArtifactError, match=rf"^bundle {base.id} was made with other files in the folder .*pipeline"):
        shop.refresh([*shop.rows, NEW])
    assert shop.active().id == base.id
    caplog.clear()
    (found,) = UserEncoder(base).encode([state])
    assert [entry.getMessage().partition(":")[0] for entry in caplog.records] == [f"bundle {base.id} reads no context"]
    assert not found.without
    np.testing.assert_allclose(found.vector, unread.vector, atol=1e-6)


@pytest.mark.slow
def test_a_twin_gets_the_vector_that_training_gave(finished: Finished, new_store: Callable[[], Path]) -> None:
    """On the whole chain: the same content embedded by the refresh lies where its twin lies."""
    store = new_store()
    shutil.copytree(finished.config.root, store / finished.config.name)
    recipe = finished.config.model_copy(update={"store": str(store)})
    base = bundle.read(store, publish.run(recipe)["bundle"])
    products = dataset.read(recipe.at("products"), PRODUCTS)
    popularity = item_features.load(base.folder("features"), base.item_vectors()).popularity
    enriched = dataset.read(recipe.at("enriched"), ENRICHED)["re"].to_pylist()
    unasked = np.array([all(value["source"] != "llm" for value in values) for values in enriched])
    # no twin has what is learned of a product from its events, nor a model's answer under another id
    never = np.flatnonzero((popularity == 0) & unasked)[:3]
    assert len(never) == 3
    twins = products.take(pa.array(never))
    originals = twins["product_id"].to_pylist()
    names = pa.array([f"twin-{name}" for name in originals])
    both = pa.concat_tables([products, twins.set_column(0, products.schema.field(0), names)])
    folder = store / "files"
    folder.mkdir()
    keys = sorted({key for pairs in both["attributes"].to_pylist() for key, _ in pairs})
    flat = both.drop_columns(["attributes", "measurements"])
    for key in keys:
        given = [dict(pairs).get(key) for pairs in both["attributes"].to_pylist()]
        flat = flat.append_column(key, pa.array(given, pa.list_(pa.string())))
    pq.write_table(flat, folder / "products.parquet")
    pq.write_table(pa.table({"user_id": [""], "product_id": [""], "at": [""]}), folder / "events.parquet")
    fields = [name for name in flat.column_names if name not in keys]
    columns = Columns(products={name: name for name in fields}, attributes=keys)
    source = Source(
        kind="files", folder=str(folder), products="products.parquet", events="events.parquet", columns=columns
    )
    found = refresh.run(recipe.model_copy(update={"source": source, "enrich": recipe.enrich}))
    assert (found["added"], found["prices"], found["sold_out"]) == (3, 0, 0)
    made = bundle.read(store, found["bundle"])
    shown = {row["product_id"]: (row["std"], row["re"], row["title"]) for row in made.products().to_pylist()}
    for name in originals:
        assert shown[name] == shown[f"twin-{name}"]
    vectors, rows = made.item_vectors(), {name: row for row, name in enumerate(made.product_ids())}
    for name in originals:
        one, other = vectors[rows[name]], vectors[rows[f"twin-{name}"]]
        assert one @ other >= 1 - 1e-5, name
    features = item_features.load(made.folder("features"), vectors)
    for name in ("std", "re", "re_weight", "brand", "group", "log_price"):
        values = getattr(features, name)
        for product in originals:
            np.testing.assert_array_equal(values[rows[product]], values[rows[f"twin-{product}"]], err_msg=name)
    assert made.items == base.items + 3
