"""A tiny world with planted sizes: what fits grows with height, coats run small, and one item runs large."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from rec import artifact
from rec.schema import INTERACTIONS, PRODUCTS, TENSORS, USERS
from rec.sizes import FITS
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary, shipped
from tests.user_tower.world import write

START = datetime(2024, 1, 1, tzinfo=UTC)
NUM_ITEMS = 24
NEVER = 23
"""An item, a coat, without any event."""
LARGE_ITEM = 2
SIZES = range(4, 21, 2)


def kind(item: int) -> str:
    """Garment kind of an item."""
    return ("dress", "coat")[item % 2]


def ideal(height_cm: float, item: int, bias: float = 0.0) -> float:
    """The size of `item` that fits a person: 12 of a dress at 170 cm, two more for 5 cm."""
    return 12 + (height_cm - 170) * 0.4 + bias + 2 * (kind(item) == "coat") - 4 * (item == LARGE_ITEM)


@dataclass(frozen=True, slots=True)
class Shopper:
    """One user of the world."""

    height_cm: float
    bias: float
    """By how much their sizes are above those of their height; no profile says it."""


def make(root: Path, num_users: int = 240, seed: int = 0, *, shuffled: bool = False) -> list[Shopper]:
    """Products, users, events, tensors and vocabulary under `root`; `shuffled`: feedback of other events."""
    rng = np.random.default_rng(seed)
    vocabulary = StdVocabulary.load(None)
    with artifact.write(root / "vocabulary", kind="vocabulary", version=1, inputs={}, config={}) as draft:
        (draft.path / "std.toml").write_text(shipped(), encoding="utf-8")
        ReVocabulary(vocabulary.keys, []).save(draft.path / "re.json")
    names = [f"p{item:02d}" for item in range(NUM_ITEMS)]
    write(root, PRODUCTS, [{"product_id": name, "title": name, "available": True} for name in names])
    key = vocabulary.key_id("category")
    bags = [{"std_key": [key], "std_id": [vocabulary.id_of("category", kind(item))]} for item in range(NUM_ITEMS)]
    empty = {"re_key": [], "re_id": [], "title_id": []}
    write(root, TENSORS, [{"product_id": name, "group": i, **bags[i], **empty} for i, name in enumerate(names)])
    shoppers = [Shopper(float(rng.normal(170, 6)), float(rng.choice([0.0, 4.0]))) for _ in range(num_users)]
    users = [{"user_id": f"u{u:03d}", "height_cm": shopper.height_cm} for u, shopper in enumerate(shoppers)]
    write(root, USERS, users)
    events = []
    for u, shopper in enumerate(shoppers):
        for step in range(int(rng.integers(1, 7))):
            item = int(rng.integers(NEVER))
            best = ideal(shopper.height_cm, item, shopper.bias)
            wanted = best + rng.normal(0, 2.5)
            size = SIZES[int(np.abs(np.array(SIZES) - wanted).argmin())]
            over = size - best + rng.normal(0, 0.7)
            events.append(
                {
                    "user_id": f"u{u:03d}",
                    "product_id": names[item],
                    "event": "rental",
                    "at": START + timedelta(days=step),
                    "size": str(size),
                    "size_number": float(size),
                    "fit": FITS[0 if over < -2 else 2 if over > 2 else 1],
                }
            )
    if shuffled:
        told = [event["fit"] for event in events]
        for event, place in zip(events, rng.permutation(len(told)).tolist(), strict=True):
            event["fit"] = told[place]
    write(root, INTERACTIONS, events)
    return shoppers
