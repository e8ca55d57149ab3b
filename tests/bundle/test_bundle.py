"""A bundle is whole, immutable, named by its content, and refused when anything about it is wrong."""

import fcntl
import json
import os
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rec import artifact, assemble, bundle, bundle_diff, dataset
from rec.bundle import Bundle
from rec.config import Config, Text
from rec.errors import ArtifactError
from rec.models import fused, item_tower, text_encoder, text_layers
from rec.models.item_tower import ItemTower
from rec.recommend.shelf import Shelf
from rec.schema import ENRICHED
from tests.bundle import tiny
from tests.item_tower import encoders


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished recipe."""
    return tiny.make(tiny.config(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def made(recipe: Config) -> Bundle:
    """Its bundle."""
    return assemble.create(recipe)


@pytest.fixture
def copy(made: Bundle, tmp_path: Path) -> Path:
    """A store with a copy of the bundle that a test may damage."""
    shutil.copytree(made.path, tmp_path / "bundles" / made.id)
    return tmp_path


def test_id_is_the_hash_of_the_manifest_and_every_file_is_listed(made: Bundle) -> None:
    assert artifact.hash_file(made.path / "manifest.json")[:12] == made.id
    present = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    assert set(made.files) == present - {"manifest.json"}
    assert {Path(name).suffix for name in made.files} <= set(assemble.SUFFIXES)
    bundle.verify(made)


def test_a_bundle_says_which_files_a_folder_had_and_is_of_one_encoder(made: Bundle, tmp_path: Path) -> None:
    assert made.encoder_files is None
    assert "encoder_files" not in made.said()
    folder = encoders.write(tmp_path / "encoder", ["warm", "coat"])
    recipe = tiny.make(tiny.config(tmp_path / "store", encoder=str(folder)))
    assert {"encoder_files": assemble.create(recipe).encoder_files} == text_encoder.files(recipe.text)
    path = recipe.at("user_tower") / artifact.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for files, said in (({"encoder_files": "0" * 64}, "with other files"), ({}, "by a program that noted no files")):
        artifact.write_json(path, manifest | {"config": {"text": files}})
        with pytest.raises(ArtifactError, match=rf"user_tower was made {said} .*pipeline"):
            assemble.create(recipe)


def test_a_fit_head_is_in_the_bundle_where_the_recipe_has_one(made: Bundle, tmp_path: Path) -> None:
    assert not made.has(bundle.FIT_HEAD)
    recipe = tiny.make(tiny.config(tmp_path, fit=True))
    with_head = assemble.create(recipe)
    assert {name for name in with_head.files if name.startswith("fit_head/")} == {
        "fit_head/fit_head.json", "fit_head/fit_head.safetensors",
    }  # fmt: skip
    without = assemble.create(tiny.config(tmp_path))
    assert not without.has(bundle.FIT_HEAD), "it is there, but the recipe has it off"
    shutil.rmtree(recipe.at(bundle.FIT_HEAD))
    with pytest.raises(ArtifactError, match=r"no finished fit_head: run `python jobs/pipeline\.py"):
        assemble.create(recipe)


def test_creating_twice_changes_nothing(recipe: Config, made: Bundle) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.path.rglob("*")}
    again = assemble.create(recipe)
    assert again.id == made.id
    assert {p: p.stat().st_mtime_ns for p in made.path.rglob("*")} == before
    assert bundle.names(recipe.store) == [made.id]
    assert not [p for p in made.path.parent.iterdir() if p.name.startswith(".")]


def test_id_does_not_depend_on_the_store(made: Bundle, tmp_path: Path) -> None:
    assert assemble.create(tiny.make(tiny.config(tmp_path))).id == made.id


def test_another_weight_is_another_bundle(made: Bundle, tmp_path: Path) -> None:
    assert assemble.create(tiny.make(tiny.config(tmp_path, seed=18))).id != made.id


def test_opened_bundle_says_what_it_holds(recipe: Config, made: Bundle) -> None:
    opened = bundle.read(recipe.store, made.id)
    assert (opened.items, opened.width, opened.recipe) == (tiny.ITEMS, tiny.WIDTH, "tiny")
    assert opened.config == recipe.model_copy(update={"store": str(Path(recipe.store).resolve())})
    assert opened.item_vectors().shape == (tiny.ITEMS, tiny.WIDTH)
    assert opened.product_ids() == [tiny.product_id(row) for row in range(tiny.ITEMS)]
    assert opened.evaluation.ndcg10 == pytest.approx(0.2)
    assert opened.data_until == max(pq.read_table(recipe.at("events") / "part-00000.parquet")["at"].to_pylist())


def test_products_are_shown_without_markup(made: Bundle) -> None:
    assert assemble._snippet("<p>Soft &amp; warm</p><script>alert(1)</script> coat") == "Soft & warm coat"
    long = assemble._snippet("word " * 200)
    assert len(long) <= assemble.SNIPPET_CHARS + 1
    assert long.endswith("word…")
    row = made.products().slice(0, 1).to_pylist()[0]
    assert row["category"] == [tiny.category(0)]
    assert row["colour"] == [tiny.colour(0)]


def test_attributes_say_where_they_come_from(recipe: Config, made: Bundle) -> None:
    enriched = dataset.read(recipe.at("enriched"), ENRICHED, columns=["std", "re"]).to_pylist()
    assert made.products(["std", "re"]).to_pylist() == enriched
    shelf = Shelf(made)
    for row in (0, tiny.ITEMS - 1):
        expected = [{"kind": kind, **each} for kind in ("std", "re") for each in enriched[row][kind]]
        assert {each["source"] for each in expected} == {"given", "llm"}
        assert shelf.evidence(row) == expected


def test_a_bundle_of_before_has_attributes_without_evidence(made: Bundle, copy: Path) -> None:
    whole = made.products().to_pylist()
    pairs = pa.list_(pa.struct([pa.field(name, pa.string(), nullable=False) for name in ("key", "value")]))
    before = pa.schema([f.with_type(pairs) if f.name in ("std", "re") else f for f in bundle.DISPLAY])
    rows = [
        {**row, **{kind: [{"key": a["key"], "value": a["value"]} for a in row[kind]] for kind in ("std", "re")}}
        for row in whole
    ]
    old = replace(made, path=copy / "bundles" / made.id)
    pq.write_table(pa.Table.from_pylist(rows, schema=before), old.path / "products.parquet")
    assert Shelf(old).card(3) == Shelf(made).card(3)
    assert Shelf(old).evidence(3) == [{**each, "source": None, "evidence": None} for each in Shelf(made).evidence(3)]
    assert bundle_diff.diff(old, made)["products"]["changed"] == 0
    assert pa.concat_tables([old.products(), made.products()]).num_rows == 2 * tiny.ITEMS, "as `additions` makes one"


def test_a_secret_never_enters_a_bundle(recipe: Config, made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REC_DATABASE_URL", "postgresql://u:hunter2@db/x")
    again = assemble.create(recipe)
    assert again.id == made.id
    assert not [p for p in again.path.rglob("*.json") if "hunter2" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ["ranker/ranker.safetensors", "products.parquet", "config.json"])
def test_a_changed_file_is_named(copy: Path, made: Bundle, name: str) -> None:
    path = copy / "bundles" / made.id / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=f"{name}.*was changed"):
        bundle.verify(bundle.read(copy, made.id))


def test_a_missing_and_an_added_file_are_named(copy: Path, made: Bundle) -> None:
    folder = copy / "bundles" / made.id
    (folder / "metrics.json").rename(folder / "other.json")
    with pytest.raises(ArtifactError, match=r"lacks metrics[.]json"):
        bundle.verify(bundle.read(copy, made.id))
    shutil.copy(folder / "other.json", folder / "metrics.json")
    with pytest.raises(ArtifactError, match=r"other[.]json, which its manifest does not list"):
        bundle.verify(bundle.read(copy, made.id))


def test_a_changed_manifest_is_refused(copy: Path, made: Bundle) -> None:
    path = copy / "bundles" / made.id / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"items": 160', '"items": 161'), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"manifest of bundle .* was changed"):
        bundle.read(copy, made.id)


def test_a_bundle_of_another_version_is_refused(copy: Path, made: Bundle) -> None:
    folder = copy / "bundles" / made.id
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    artifact.write_json(folder / "manifest.json", {**manifest, "version": 99})
    name = artifact.hash_file(folder / "manifest.json")[:12]
    folder.rename(folder.parent / name)
    with pytest.raises(ArtifactError, match=f"bundle {name} is of version 99.*jobs/publish.py"):
        bundle.read(copy, name)


def test_a_part_of_another_version_is_refused_when_made_and_when_read(
    tmp_path: Path, copy: Path, made: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads((made.path / "manifest.json").read_text(encoding="utf-8"))["parts"]["ranker"] == fused.VERSION
    monkeypatch.setattr(fused, "VERSION", 99)
    with pytest.raises(ArtifactError, match=f"bundle {made.id} holds ranker version .*reads version 99.*--recipe tiny"):
        bundle.read(copy, made.id)
    monkeypatch.undo()
    recipe = tiny.make(tiny.config(tmp_path / "new"))
    monkeypatch.setattr(fused, "VERSION", 99)
    with pytest.raises(ArtifactError, match=r"ranker holds ranker version .*reads version 99.*jobs/pipeline[.]py"):
        assemble.create(recipe)
    assert list((tmp_path / "new" / "bundles").iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "ranker/ranker.json"])
def test_a_damaged_bundle_is_made_anew(tmp_path: Path, made: Bundle, name: str) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    damaged = assemble.create(recipe).path / name
    damaged.write_text("{}", encoding="utf-8")
    again = assemble.create(recipe)
    assert again.id == made.id
    bundle.verify(again)
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [made.id]


def test_what_another_process_is_assembling_is_left_alone(tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    theirs = tmp_path / "bundles" / ".theirs.tmp"
    theirs.mkdir(parents=True)
    mine = threading.Thread(target=assemble.create, args=(recipe,))
    folder = os.open(theirs.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # as the other process does
        mine.start()
        mine.join(1.0)
        assert mine.is_alive()
        assert list(theirs.parent.iterdir()) == [theirs]
    finally:
        os.close(folder)  # it was killed
        mine.join()
    (only,) = theirs.parent.iterdir()
    bundle.verify(bundle.read(tmp_path, only.name))


def test_an_unknown_id_lists_the_known_ones(recipe: Config, made: Bundle) -> None:
    with pytest.raises(ArtifactError, match=f"no bundle 'ffffffffffff'.*{made.id}"):
        bundle.read(recipe.store, "ffffffffffff")


def test_a_missing_stage_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    shutil.rmtree(recipe.at("ranker"))
    with pytest.raises(ArtifactError, match=r"ranker.*jobs/pipeline[.]py"):
        assemble.create(recipe)
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [("vectors", "item_tower"), ("samples", "sources"), ("ranker", "features"), ("evaluation", "ranker")],
)
def test_artifacts_of_different_runs_make_no_bundle(tmp_path: Path, name: str, source: str) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    with artifact.write(recipe.at(name), kind=name, version=1, inputs={source: "of before"}, config={}):
        pass
    with pytest.raises(ArtifactError, match=f"{name} was made of another {source} than .*pipeline.py --recipe tiny`"):
        assemble.create(recipe)
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "made_with", "option"),
    [
        ("products", {"kind": "hm", "limit": None, "seed": 17}, "source.kind = 'hm', but 'sample'"),
        ("item_tower", {"item_tower": {"width": 32, "train": {"epochs": 3}}}, "item_tower.train.epochs = 3, but 20"),
        ("user_tower", {"text": {"encoder": "elsewhere/large"}}, "text.encoder = 'elsewhere/large', but 'minilm'"),
        ("features", {"history": 9, "inputs": ["std"]}, "user_tower.history = 9, but 8"),
        ("ranker", {"temperature": 0.07, "seed": 18}, "seed = 18, but 17"),
        ("evaluation", {"source": "sample", "candidates": 50}, "ranker.candidates = 50, but 60"),
        ("sources", {"quotas": {"item": 0.3, "cooccurrence": 0.1}}, "ranker.quotas.item = 0.3, but 0.1"),
    ],
)
def test_a_bundle_states_the_options_it_was_made_with(
    tmp_path: Path, name: str, made_with: dict[str, Any], option: str
) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    manifest = artifact.peek(recipe.at(name))
    assert manifest is not None
    artifact.write_json(recipe.at(name) / artifact.MANIFEST, {**asdict(manifest), "config": made_with})
    with pytest.raises(ArtifactError, match=f"{name} was made with {option} is to be published.*pipeline.py"):
        assemble.create(recipe)


def test_an_option_that_a_manifest_leaves_out_had_its_default(tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    manifest = artifact.peek(recipe.at("item_tower"))
    assert manifest is not None
    made_with = {"item_tower": recipe.item_tower.identity()}
    artifact.write_json(recipe.at("item_tower") / artifact.MANIFEST, {**asdict(manifest), "config": made_with})
    assert assemble.create(recipe).items == tiny.ITEMS
    other = recipe.model_copy(update={"item_tower": recipe.item_tower.model_copy(update={"text": "full"})})
    with pytest.raises(
        ArtifactError, match=r"item_tower was made with item_tower\.text = 'frozen', but 'full' is to be"
    ):
        assemble.create(other)


def test_a_bundle_carries_the_layers_of_a_text_encoder(tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    layers = text_layers.take(encoders.model("distilbert"), 2, "distilbert").shape
    old = item_tower.load(recipe.at("item_tower"))
    tower = ItemTower(replace(old.shape, text_width=12, text=layers)).eval()
    with artifact.write(
        recipe.at("item_tower"), kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config={}
    ) as draft:
        tower.save(draft.path)
    found = item_tower.restore(assemble.create(recipe).folder("item_tower"))
    assert found.shape == tower.shape
    assert all(torch.equal(weight, tower.state_dict()[name]) for name, weight in found.state_dict().items())


def test_options_that_agree_and_other_facts_of_the_work_are_no_matter(recipe: Config, made: Bundle) -> None:
    manifest = artifact.peek(recipe.at("ranker"))
    assert manifest is not None
    agreed = {"ranker": recipe.ranker.identity(), "temperature": recipe.user_tower.temperature, "prompt_version": "9"}
    artifact.write_json(recipe.at("ranker") / artifact.MANIFEST, {**asdict(manifest), "config": agreed})
    assert assemble.create(recipe).id == made.id


def test_inputs_that_are_no_artifacts_of_the_store_are_passed_over(recipe: Config, made: Bundle) -> None:
    manifest = artifact.peek(recipe.at("ranker"))
    assert manifest is not None
    inputs = {"features": artifact.hash_folder(recipe.at("features")), "previous": "a vocabulary that is gone"}
    artifact.write_json(recipe.at("ranker") / artifact.MANIFEST, {**asdict(manifest), "inputs": inputs})
    assert assemble.create(recipe).id == made.id


def test_a_configuration_of_another_program_is_named(copy: Path, made: Bundle) -> None:
    (copy / "bundles" / made.id / "config.json").write_text('{"name": "tiny", "wings": 2}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"configuration of bundle {made.id} .*jobs/publish.py --recipe tiny"):
        _ = bundle.read(copy, made.id).config


def test_a_foreign_file_type_is_refused(tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path))
    with artifact.write(recipe.at("ranker"), kind=fused.KIND, version=fused.VERSION, inputs={}, config={}) as draft:
        (draft.path / "ranker.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ArtifactError, match=r"ranker\.pt is not one of"):
        assemble.create(recipe)


@pytest.mark.parametrize(("floor", "met"), [(0.0, True), (0.2, True), (0.21, False)])
def test_the_manifest_says_whether_the_floor_is_met(tmp_path: Path, floor: float, met: bool) -> None:
    made = assemble.create(tiny.make(tiny.config(tmp_path, floor=floor), ndcg10=0.2))
    written = json.loads((made.path / "manifest.json").read_text(encoding="utf-8"))["evaluation"]
    assert written == {"ndcg10": 0.2, "floor": floor, "floor_met": met}


def test_config_of_a_bundle_is_a_valid_recipe(made: Bundle) -> None:
    assert made.config.text == Text()
    assert made.config.index.exact_rows == 40
