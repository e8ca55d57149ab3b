"""A planted shop: whoever bought a colour before buys that colour next, and retrieval knows nothing of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save_file

from rec import artifact, dataset, histories
from rec.config import Config, Ranker, RankerTrain
from rec.config import UserTower as UserTowerOptions
from rec.features import items as item_features
from rec.features.items import ItemFeatures
from rec.histories import Histories
from rec.models import item_tower, user_tower
from rec.models.user_tower import Shape, UserTower
from rec.retrieval import Candidates
from rec.schema import INTERACTIONS, PRODUCTS, TENSORS, USERS, Contract
from rec.state import UserState
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary, shipped

ITEMS, SHOPPERS, WIDTH, RE_ROWS, TEXT_WIDTH = 90, 240, 16, 40, 384
COLOURS = 6
START = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Request:
    """One ranker request."""

    state: UserState
    candidates: Candidates
    now_us: int


def colour_of(row: int) -> int:
    """The planted colour of an item."""
    return row % COLOURS


def write(root: Path, contract: Contract, rows: list[dict[str, Any]]) -> None:
    """Write rows of which absent columns are null."""
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    dataset.write(root / contract.kind, contract, [pa.Table.from_pylist(full, contract.schema)], inputs={}, config={})


def _products() -> list[dict[str, Any]]:
    return [
        {
            "product_id": f"P{row:03d}",
            "title": f"garment {row}",
            "available": True,
            "brand": ["Norr", "Haan", None][row % 3],
            "price": 10.0 + row if row % 5 else None,
            "measurements": [("inseam", 70.0 + row % 7)] if row % 2 else None,
            "created_at": START - timedelta(days=row) if row % 4 else None,
        }
        for row in range(ITEMS)
    ]


def _tensors(vocabulary: StdVocabulary, rng: np.random.Generator) -> list[dict[str, Any]]:
    colours, categories = vocabulary.values("colour"), vocabulary.values("category")
    rows = []
    for row in range(ITEMS):
        colour = vocabulary.id_of("colour", colours[colour_of(row)])
        category = vocabulary.id_of("category", categories[row // 30])
        tokens = rng.integers(2, RE_ROWS, row % 6).tolist()
        rows.append(
            {
                "product_id": f"P{row:03d}",
                "group": row,
                "std_key": [vocabulary.key_id("category"), vocabulary.key_id("colour")],
                "std_id": [category, colour],
                "re_key": [vocabulary.key_id("colour")] * len(tokens),
                "re_id": tokens,
                "title_id": [],
            }
        )
    return rows


def _people(rng: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    users, events = [], []
    for number in range(SHOPPERS):
        user = f"u{number:03d}"
        height = float(rng.normal(170, 9)) if number % 3 else None
        users.append({"user_id": user, "height_cm": height, "birth_year": 1980 + number % 20})
        liked = [row for row in range(ITEMS) if colour_of(row) == number % COLOURS]
        for step, row in enumerate(rng.choice(liked, 6, replace=False).tolist()):
            at = START + timedelta(days=number % 5 + 3 * step, seconds=number)
            events.append({"user_id": user, "product_id": f"P{row:03d}", "event": "purchase", "at": at})
    return users, events


def _user_tower(root: Path, h: Histories, rng: np.random.Generator) -> None:
    """A tower as it is before training: its candidates are arbitrary, the same for a user every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tower = UserTower(
            Shape(
                width=WIDTH,
                history=8,
                layers=1,
                heads=2,
                convolution=0,
                dropout=0.0,
                adapter=0,
                adapter_dropout=0.0,
                semantics=0,
                inputs=("behaviour", "profile"),
                text_encoder="minilm",
                text_width=TEXT_WIDTH,
                profile_names=tuple(h.profile_names),
                profile_mean=(0.0,) * len(h.profile_names),
                profile_std=(1.0,) * len(h.profile_names),
            )
        )
    vectors = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with artifact.write(
        root / "user_tower", kind=user_tower.KIND, version=user_tower.VERSION, inputs={}, config={}
    ) as draft:
        tower.save(draft.path, vectors)


def _attributes(root: Path, vocabulary: StdVocabulary, rng: np.random.Generator) -> None:
    """The vocabulary artifact, and item tower tables as wide as the towers."""
    with artifact.write(root / "vocabulary", kind="vocabulary", version=1, inputs={}, config={}) as draft:
        (draft.path / "std.toml").write_text(shipped(), encoding="utf-8")
        words = [f"word{n}" for n in range(RE_ROWS - 2)]
        ReVocabulary(vocabulary.keys, words).save(draft.path / "re.json")
    with artifact.write(
        root / "item_tower", kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config={}
    ) as draft:
        tables = {
            "std_table.weight": rng.normal(size=(vocabulary.num_ids, WIDTH)).astype(np.float32),
            "re_table.weight": rng.normal(size=(RE_ROWS, WIDTH)).astype(np.float32),
        }
        save_file(tables, draft.path / "item_tower.safetensors")


@pytest.fixture(scope="session")
def vocabulary() -> StdVocabulary:
    """The shipped STD vocabulary."""
    return StdVocabulary.load(None)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, vocabulary: StdVocabulary) -> Config:
    """A recipe whose store holds everything that the ranker's two stages read."""
    store = tmp_path_factory.mktemp("ranker")
    config = Config(
        name="planted",
        store=str(store),
        user_tower=UserTowerOptions(history=8),
        ranker=Ranker(
            candidates=60,
            embedding_dim=8,
            hidden=[16],
            re_tokens=4,
            train=RankerTrain(epochs=6, batch_size=1200, learning_rate=1e-2, cpus_per_worker=1),
        ),
    )
    rng = np.random.default_rng(5)
    write(config.root, PRODUCTS, _products())
    write(config.root, TENSORS, _tensors(vocabulary, rng))
    users, events = _people(rng)
    write(config.root, USERS, users)
    write(config.root, INTERACTIONS, events)
    _user_tower(config.root, histories.load(config.root), rng)
    _attributes(config.root, vocabulary, rng)
    return config


@pytest.fixture(scope="session")
def shop_items(shop: Config, vocabulary: StdVocabulary) -> ItemFeatures:
    """Item features of the planted shop."""
    h = histories.load(shop.root)
    return item_features.build(
        dataset.read(shop.at("products"), PRODUCTS),
        dataset.read(shop.at("tensors"), TENSORS),
        vocabulary,
        re_rows=RE_ROWS,
        re_length=4,
        history=8,
        popularity=np.arange(ITEMS),
        profiles=h.profiles,
        profile_names=h.profile_names,
        inputs=("std", "re", "profile"),
        vectors=user_tower.load(shop.at("user_tower")).item_vectors.numpy(),
    )


@pytest.fixture(scope="session")
def shop_requests(shop: Config, shop_items: ItemFeatures) -> list[Request]:
    """Requests of users with long, short and no histories, with and without a profile."""
    h = histories.load(shop.root)
    rng = np.random.default_rng(11)
    made = []
    for user in range(60):
        end = int(h.offsets[user]) + user % 7  # 0 to 6 events are known
        now = int(h.at[min(end, len(h.at) - 1)])
        rows = rng.choice(ITEMS, 20, replace=False).astype(np.int64)
        scores = np.sort(rng.normal(size=20).astype(np.float32))[::-1].copy()
        together = rng.choice([0.0, 0.3, 0.7], 20).astype(np.float32)
        found = Candidates(rows, scores, rng.integers(1, 16, 20).astype(np.int64), together)
        made.append(Request(histories.state(h, user, end, 8, now, ""), found, now))
    return made
