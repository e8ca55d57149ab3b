"""The configuration tree: frozen, complete, and clear about what is wrong."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rec.config import Config, ItemTower, explained, load, recipes
from rec.errors import ConfigError


@pytest.mark.parametrize("recipe", recipes())
def test_every_shipped_recipe_loads_and_survives_json(recipe: str) -> None:
    config = load(recipe)
    assert config.name == recipe
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_overrides_reach_any_depth_and_keep_the_rest() -> None:
    plain, changed = load("demo"), load("demo", ["item_tower.train.epochs=3", 'text.fields=["title"]', "store=/tmp/x"])
    assert changed.item_tower.train.epochs == 3
    assert changed.text.fields == ["title"]
    assert changed.at("products") == Path("/tmp/x/demo/products")
    assert changed.item_tower.train.batch_size == plain.item_tower.train.batch_size
    assert changed.user_tower == plain.user_tower


def test_later_overrides_win() -> None:
    assert load("demo", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("item_tower.widht=64", r"unknown option 'item_tower\.widht'; did you mean 'item_tower\.width'\?"),
        ("itemtower.width=64", "unknown option 'itemtower'; did you mean 'item_tower'"),
        ("evaluate.sampled=99", r"unknown option 'evaluate\.sampled'"),
        ("item_tower.train.epoch=2", r"did you mean 'item_tower\.train\.epochs'"),
        ("item_tower.width=wide", r"option 'item_tower\.width': .*integer.*'wide'"),
        ("item_tower.width=0", r"option 'item_tower\.width': .*greater than or equal to 8"),
        ("text.fields=[]", r"option 'text\.fields': .*at least 1 item"),
        ("item_tower.inputs=[]", r"option 'item_tower\.inputs': .*at least 1 item"),
        ("user_tower.inputs=[]", r"option 'user_tower\.inputs': .*at least 1 item"),
        ("ranker.hidden=[]", r"option 'ranker\.hidden': .*at least 1 item"),
        ("ranker.hidden=[64, 0]", r"option 'ranker\.hidden\.1': .*greater than or equal to 1"),
        ("user_tower.heads=5", r"recipe 'demo': user_tower\.heads=5 must divide item_tower\.width=128"),
        ("name.first=x", "'name' has no options of its own"),
        ("seed.first=1", "option 'seed'"),
        ("seed", r"override 'seed' must read key\.sub=value"),
        ("=3", r"override '=3' must read key\.sub=value"),
        ("name=Not A Name", "option 'name'"),
    ],
)
def test_wrong_overrides_name_the_option_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("demo", [override])


def test_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'dmeo'; did you mean 'demo'\? \(shipped: beauty, demo, hm"):
        load("dmeo")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"name = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (b"seed = 1\n", "option 'name': Field required")],
)
def test_broken_recipe_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(str(path))


def test_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml' does not exist"):
        load(str(tmp_path / "none.toml"))


def test_the_tree_is_frozen() -> None:
    config = load("demo")
    with pytest.raises(ValidationError):
        config.item_tower.width = 64  # type: ignore[misc]


def test_identity_leaves_out_what_changes_no_output() -> None:
    few, many = (load("demo", [f"item_tower.train.{o}", f"text.{t}", f"evaluate.floor_ndcg10={f}"]) for o, t, f in (
        ("max_failures=1", "num_actors=1", 0.0), ("max_failures=3", "num_actors=9", 0.1),
    ))  # fmt: skip
    for branch in ("item_tower", "text", "evaluate"):
        assert getattr(few, branch) != getattr(many, branch)
        assert getattr(few, branch).identity() == getattr(many, branch).identity()
    longer = load("demo", ["item_tower.train.epochs=99"]).item_tower
    assert longer.identity()["train"]["epochs"] == 99
    assert longer.identity() != few.item_tower.identity()


def test_options_that_came_later_leave_the_identity_of_what_was_made_before() -> None:
    before = load("demo").item_tower
    assert not {"text", "text_layers", "text_learning_rate", "compile"} & before.identity().keys()
    assert "precision" not in before.identity()["train"]
    same = load("demo", ["item_tower.text_layers=5", "item_tower.text_learning_rate=1e-3", "item_tower.compile=true"])
    assert same.item_tower.identity() == before.identity()
    top, full = (load("demo", [f"item_tower.text={mode}", "item_tower.text_layers=5"]) for mode in ("top", "full"))
    assert top.item_tower.identity()["text_layers"] == 5
    assert full.item_tower.identity().keys() - before.identity().keys() == {"text", "text_learning_rate"}
    whole = before.complete(before.identity())
    assert (whole["text"], whole["train"]["precision"]) == ("frozen", "float32")
    assert top.item_tower.complete(top.item_tower.identity())["text"] == "top"
    same, apart = (load("demo", ["item_tower.std_share=0.5", f"item_tower.std_width={n}"]).item_tower for n in (0, 32))
    assert same.identity() == before.identity()
    assert "std_share" not in same.complete(same.identity())  # of a part that is not there: no contradiction
    assert apart.complete(apart.identity())["std_share"] == 0.5
    usual = load("demo", ["item_tower.std_width=32"]).item_tower
    assert (usual.complete(usual.identity())["std_share"], usual.identity()["std_width"]) == (0.3, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["item_tower.text=full", "item_tower.inputs=['std']"], r'trains an encoder of titles, .*: add "title" to it'),
        (["ranker.train.precision=bfloat16"], r"ranker\.train\.precision='bfloat16' is not implemented"),
        (
            ["ranker.transfer=none", "ranker.freeze_steps=3"],
            r"freeze_steps=3 holds transferred tables, .*transfers none",
        ),
        (["user_tower.train.precision=bfloat16"], r'only item_tower\.train has it: set it to "float32"'),
    ],
)
def test_options_that_would_do_nothing_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("demo", overrides)
    assert load("demo", ["item_tower.train.precision=bfloat16"]).item_tower.identity()["train"]["precision"]


def test_rows_are_copied_only_where_they_fit() -> None:
    message = r"ranker\.embedding_dim=16 and item_tower\.width=\d+ differ: set ranker\.embedding_dim=\d+ or ranker\.tr"
    with pytest.raises(ConfigError, match=message):
        load("demo", ["ranker.transfer=copy"])
    width = load("demo").item_tower.width
    assert load("demo", ["ranker.transfer=copy", f"ranker.embedding_dim={width}"]).ranker.transfer == "copy"


def _fields(branch: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for name, field in branch.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _fields(field.annotation, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field.description))
    return found


def test_every_option_says_what_it_is() -> None:
    silent = [name for name, description in _fields(Config) if not description]
    assert silent == []


@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused_as_config_error(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(load("demo", [text]), Config)


def test_the_identity_of_a_tower_without_the_behaviour_stage_is_told_from_one_with_it() -> None:
    without, tuned = load("hm").item_tower, load("hm", ["item_tower.behaviour.epochs=2"]).item_tower
    assert tuned.complete(without.identity())["behaviour"]["epochs"] == 0
    assert tuned.complete(tuned.identity())["behaviour"]["epochs"] == 2
    with pytest.raises(ConfigError, match=r"item_tower.chunk_size cuts the batches of SimCSE and not those"):
        load("hm", ["item_tower.behaviour.epochs=2", "item_tower.chunk_size=32"])


def test_options_are_explained_by_what_the_tree_says_of_them() -> None:
    told = {name: (default, meaning) for name, default, meaning in explained("item_tower")}
    assert told["item_tower.train.learning_rate"][0] == "0.0003", "the default of its own training"
    assert told["item_tower.chunk_size"][0] is None
    assert told["item_tower.text"][1].endswith("or all of it. One of: frozen, top, full.")
    assert all(meaning for _, meaning in told.values())
    given = [f"{name}={default}" for name, (default, _) in told.items() if default is not None]
    assert load("demo", given).item_tower == ItemTower(), "--set takes them as they are shown"
