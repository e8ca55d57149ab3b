"""A finished recipe, small and quick: every artifact of a bundle through its own class, weights untrained but seeded.

Items are garments of four categories and six colours; a vector is its category's direction, its colour's and noise,
so that neighbours look alike. Stored shoppers buy one colour.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rec import artifact, dataset, histories, source_tables, worn
from rec.config import Config, Evaluate, Fit, Index, ItemTower, Ranker, Text
from rec.config import UserTower as UserTowerOptions
from rec.features import items as item_features
from rec.histories import Histories
from rec.models import fit_head, fused, item_tower, text_encoder, user_tower
from rec.models.fused import FusedDeepFM
from rec.models.user_tower import Shape, UserTower
from rec.schema import ENRICHED, INTERACTIONS, PRODUCTS, TENSORS, USERS, Contract
from rec.sizes import FITS
from rec.train import fit
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary, shipped
from tests.item_tower import encoders

ITEMS, SHOPPERS, WIDTH = 160, 12, 32
CATEGORIES = ("dress", "shirt", "coat", "skirt")
COLOURS = ("black", "red", "blue", "green", "white", "yellow")
WORDS = ("soft", "touch", "linen", "cashmere", "gorpcore", "office")
SIZES = ("8", "10", "12")
START = datetime(2025, 3, 1, tzinfo=UTC)


def config(
    store: Path,
    *,
    name: str = "tiny",
    floor: float = 0.0,
    seed: int = 17,
    kind: str = "halfvec",
    fit: bool = False,
    encoder: str = "minilm",
) -> Config:
    """A recipe whose artifacts are to be written to `store`; `encoder` is `minilm` or a folder (`encoders.write`)."""
    return Config(
        name=name,
        store=str(store),
        seed=seed,
        text=Text(encoder=encoder),
        item_tower=ItemTower(width=WIDTH),
        user_tower=UserTowerOptions(history=8),
        ranker=Ranker(candidates=60, embedding_dim=4, hidden=[8], re_tokens=4),
        fit=Fit(enabled=fit, width=2),
        index=Index(kind=kind, exact_rows=40, recall_sample=1.0),  # type: ignore[arg-type]  # a literal
        evaluate=Evaluate(floor_ndcg10=floor),
    )


def category(row: int) -> str:
    """Category of an item."""
    return CATEGORIES[row % 4]


def colour(row: int) -> str:
    """Colour of an item."""
    return COLOURS[row % 6]


def group_id(row: int) -> str | None:
    """Style of an item, which others of its category have as well; None for every fifth."""
    return f"style {row % 4} of {row // 40}" if row % 5 else None


def product_id(row: int) -> str:
    """Id of an item; ascending by row."""
    return f"P{row:04d}"


def make(chosen: Config, *, ndcg10: float = 0.2, amend: Callable[[Path], None] = lambda root: None) -> Config:
    """Write every artifact that a bundle of `chosen` needs; returns `chosen`.

    `amend` may rewrite the datasets under a folder before models are made of them.
    """
    rng = np.random.default_rng(chosen.seed)
    vocabulary = StdVocabulary.load(None)
    _datasets(chosen, vocabulary)
    amend(chosen.root)
    h = histories.load(chosen.root)
    vectors = item_vectors(rng)
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        _towers(chosen, h, vocabulary, vectors)
        source_tables.run(chosen)
        _ranker(chosen, h, vocabulary, vectors)
        if chosen.fit.enabled:
            _fit_head(chosen, h)
    with artifact.write(chosen.at("evaluation"), kind="evaluation", version=1, inputs={}, config={}) as draft:
        figure = {"value": ndcg10, "ci95": [ndcg10, ndcg10]}
        report = {"slices": {"all": {"users": 9, "figures": {"final": {"ndcg@10": figure}}, "differences": {}}}}
        artifact.write_json(draft.path / "report.json", report)
        (draft.path / "report.html").write_text("<!doctype html>", encoding="utf-8")
    return chosen


def item_vectors(rng: np.random.Generator) -> np.ndarray:
    """float32[N, d] unit vectors, near each other where category and colour agree."""
    of_category = {name: rng.normal(size=WIDTH) for name in CATEGORIES}
    of_colour = {name: rng.normal(size=WIDTH) for name in COLOURS}
    made = np.stack([of_category[category(row)] + of_colour[colour(row)] for row in range(ITEMS)])
    made += 0.3 * rng.normal(size=made.shape)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def _write(
    root: Path, contract: Contract, rows: list[dict[str, Any]], made_with: Mapping[str, Any] = MappingProxyType({})
) -> None:
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    table = pa.Table.from_pylist(full, contract.schema)
    dataset.write(root / contract.kind, contract, [table], inputs={}, config=made_with)


def _datasets(chosen: Config, vocabulary: StdVocabulary) -> None:
    root = chosen.root
    products, enriched, tensors = [], [], []
    for row in range(ITEMS):
        word = WORDS[row % len(WORDS)]
        title = f"{colour(row)} {category(row)} {word}" if row % 7 else f"리넨 원피스 <b>{row}</b> & {colour(row)}"
        products.append(
            {
                "product_id": product_id(row),
                "title": title,
                "description": f"A {word} {category(row)}, number {row}.",
                "price": 10.0 + row,
                "currency": "EUR",
                "brand": ("Norr", "Haan", None)[row % 3],
                "group_id": group_id(row),
                "available": row % 10 != 9,
                "created_at": START - timedelta(days=30),
            }
        )
        std = [("category", category(row)), ("colour", colour(row))]
        enriched.append(
            {
                "product_id": product_id(row),
                "std": [{"key": key, "value": value, "source": "given", "evidence": None} for key, value in std],
                "re": [{"key": "fabric", "value": f"{word} feel", "source": "llm", "evidence": word}],
                "status": "ok",
                "vocab_version": vocabulary.version,
                "tokens_in": 0,
                "tokens_out": 0,
                "content_hash": str(row),
            }
        )
        tensors.append(
            {
                "product_id": product_id(row),
                "group": row,
                "std_key": [vocabulary.key_id(key) for key, _ in std],
                "std_id": [vocabulary.id_of(key, value) for key, value in std],
                "re_key": [vocabulary.key_id("fabric")],
                "re_id": [2 + row % len(WORDS)],
                "title_id": [],
            }
        )
    _write(root, PRODUCTS, products)
    _write(root, ENRICHED, enriched)
    _write(root, TENSORS, tensors, {"text": text_encoder.files(chosen.text)})
    users, events = [], []
    for number in range(SHOPPERS):
        users.append({"user_id": f"u{number:02d}", "height_cm": 160.0 + number, "birth_year": 1980 + number})
        liked = [row for row in range(ITEMS) if row % 6 == number % 6][: 3 + number % 4]
        for step, row in enumerate(liked):
            at = START + timedelta(days=step, seconds=number)
            event = {"user_id": f"u{number:02d}", "product_id": product_id(row), "event": "purchase", "at": at}
            size = SIZES[(number + row) % len(SIZES)]
            events.append(event | {"size": size, "size_number": float(size), "fit": FITS[step % len(FITS)]})
    _write(root, USERS, users)
    _write(root, INTERACTIONS, events)


def _towers(chosen: Config, h: Histories, vocabulary: StdVocabulary, vectors: np.ndarray) -> None:
    text, files = chosen.text.encoder, text_encoder.files(chosen.text)
    text_width = 384 if text == text_encoder.MINILM else encoders.WIDTH
    with artifact.write(chosen.at("vocabulary"), kind="vocabulary", version=1, inputs={}, config={}) as draft:
        (draft.path / "std.toml").write_text(shipped(), encoding="utf-8")
        ReVocabulary(vocabulary.keys, list(WORDS)).save(draft.path / "re.json")
    items = item_tower.ItemTower(
        item_tower.Shape(
            width=WIDTH,
            heads=2,
            dropout=0.0,
            inputs=("std", "re", "title"),
            text_encoder=text,
            text_width=text_width,
            num_keys=vocabulary.num_keys,
            num_std_ids=vocabulary.num_ids,
            num_re_tokens=2 + len(WORDS),
        )
    )
    with artifact.write(
        chosen.at("item_tower"), kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config=files
    ) as draft:
        items.save(draft.path)
    users = UserTower(
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
            inputs=("behaviour", "context", "profile"),
            text_encoder=text,
            text_width=text_width,
            profile_names=tuple(h.profile_names),
            profile_mean=(165.0, 1985.0),
            profile_std=(5.0, 5.0),
        )
    )
    for linear in (users.context, users.profile.out, users.fuse[-1]):  # start (near) zero: inputs would change nothing
        torch.nn.init.normal_(linear.weight, std=0.5)
    with artifact.write(
        chosen.at("user_tower"), kind=user_tower.KIND, version=user_tower.VERSION, inputs={}, config={"text": files}
    ) as draft:
        users.save(draft.path, vectors)


def _ranker(chosen: Config, h: Histories, vocabulary: StdVocabulary, vectors: np.ndarray) -> None:
    items = item_features.build(
        dataset.read(chosen.at("products"), PRODUCTS),
        dataset.read(chosen.at("tensors"), TENSORS),
        vocabulary,
        re_rows=2 + len(WORDS),
        re_length=4,
        history=8,
        popularity=np.arange(ITEMS)[::-1].copy(),
        profiles=h.profiles,
        profile_names=h.profile_names,
        inputs=("std", "re", "profile"),
        vectors=vectors,
    )
    with artifact.write(
        chosen.at("features"), kind=item_features.KIND, version=item_features.VERSION, inputs={}, config={}
    ) as draft:
        items.save(draft.path)
    ranker = FusedDeepFM(items.spec, 4, [8])
    ranker.table.normal_(std=0.3)
    ranker.linear.normal_(std=0.3)
    ranker.std.fill_(1.0)
    ranker.low.fill_(-5.0)
    ranker.high.fill_(5.0)
    with artifact.write(chosen.at("ranker"), kind=fused.KIND, version=fused.VERSION, inputs={}, config={}) as draft:
        ranker.save(draft.path)


def _fit_head(chosen: Config, h: Histories) -> None:
    module, asked, _ = fit.build(h, worn.load(chosen.root), fit.content(chosen.root), chosen.fit)
    torch.nn.init.normal_(module.head.profile.out.weight, std=0.5)
    with artifact.write(
        chosen.at(fit_head.KIND), kind=fit_head.KIND, version=fit_head.VERSION, inputs={}, config={}
    ) as draft:
        fit_head.save(draft.path, module.head, fit.export(module, asked))
