"""A tiny world with planted structure: six clusters of items, users who stay in one, occasions, heights."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rec import dataset
from rec.schema import INTERACTIONS, PRODUCTS, USERS, Contract, vectors

START = datetime(2024, 1, 1, tzinfo=UTC)
WIDTH = 16
CLUSTERS, PER_CLUSTER = 6, 10
NUM_ITEMS = CLUSTERS * PER_CLUSTER
PARTY = "a party dress for the evening"


def unit_rows(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """float32 random unit vectors along the last axis."""
    made = rng.normal(size=shape)
    return (made / np.linalg.norm(made, axis=-1, keepdims=True)).astype(np.float32)


def item_vectors(seed: int = 0) -> np.ndarray:
    """float32[60, 16]: item i lies near the centre of cluster i // 10."""
    rng = np.random.default_rng(seed)
    made = np.repeat(unit_rows(rng, (CLUSTERS, WIDTH)), PER_CLUSTER, axis=0) + 0.6 * unit_rows(rng, (NUM_ITEMS, WIDTH))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def write(root: Path, contract: Contract, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as a dataset; fields that a row lacks are null."""
    full = [{name: row.get(name) for name in contract.schema.names} for row in rows]
    dataset.write(root / contract.kind, contract, [pa.Table.from_pylist(full, contract.schema)], inputs={}, config={})


def make(root: Path, num_users: int = 240, seed: int = 0) -> None:
    """Products, users, events and vectors under `root`.

    User u likes cluster u % 4, prefers the first half of a cluster when small and the second when tall, and
    goes to cluster 5 when saying PARTY, which happens once in five events. Cluster 4 is never visited in
    training. The last event of every sixth user is on a product of cluster 4 (a cold item).
    """
    rng = np.random.default_rng(seed)
    write(
        root, PRODUCTS, [{"product_id": f"p{i:02d}", "title": f"item {i}", "available": True} for i in range(NUM_ITEMS)]
    )
    tall = rng.random(num_users) < 0.5
    users = [
        {"user_id": f"u{u:03d}", "height_cm": float(rng.normal(184 if tall[u] else 160, 3))} for u in range(num_users)
    ]
    write(root, USERS, users)
    events = []
    for u in range(num_users):
        count = int(rng.integers(5, 9))
        halves = np.array([rng.permutation(5) for _ in range(CLUSTERS)])
        used = [0] * CLUSTERS
        for step in range(count):
            cold = u % 6 == 5 and step == count - 1
            party = not cold and rng.random() < 0.2
            cluster = 4 if cold else 5 if party else u % 4
            item = cluster * PER_CLUSTER + 5 * int(tall[u]) + int(halves[cluster][used[cluster] % 5])
            used[cluster] += 1
            events.append(
                {
                    "user_id": f"u{u:03d}",
                    "product_id": f"p{item:02d}",
                    "event": "purchase" if step % 2 else "view",
                    "at": START + timedelta(days=step, seconds=u),
                    "context": PARTY if party else None,
                }
            )
    write(root, INTERACTIONS, events)
    table = pa.table(
        {
            "product_id": [f"p{i:02d}" for i in range(NUM_ITEMS)],
            "vector": list(item_vectors(seed)),
            "inputs": [bytes(16)] * NUM_ITEMS,
        },
        schema=vectors(WIDTH).schema,
    )
    dataset.write(root / "vectors", vectors(WIDTH), [table], inputs={}, config={})
