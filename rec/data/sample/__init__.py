"""A synthetic catalogue, labelled so: garments, shoppers and events that this package makes up itself.

The garments are fixed (the answers that a language model gave for them are shipped); the shoppers and
their events come from the seed. Each planted structure is recoverable by one stage only:

| group    | the user's last event follows from                              | seen by               |
|----------|-----------------------------------------------------------------|-----------------------|
| re_taste | a phrase that only descriptions and HTML hold                   | RE values             |
| title    | a collection name that only titles hold                         | title tokens          |
| size     | the leg length that goes with the user's height                 | body profile          |
| launch   | the niche category of the history; the product is new           | content of cold items |
| context  | the occasion named in the context text of that very event       | context text          |

The last products of re_taste, title and launch occur in no training event (84 products in all do not),
so popularity and co-occurrence find none of them. A ranking that needs no taste still finds some:
newest first has Recall@10 of .4 for launch, least known first about .12 for these three.
"""

from dataclasses import dataclass
from typing import Any

from rec.data.sample.catalogue import LAUNCH, START, catalogue
from rec.data.sample.shoppers import Truth, shoppers

__all__ = ["LAUNCH", "START", "Sample", "Truth", "generate"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of the contracts `products`, `users` and `events` in their sort orders, and the truth per user."""

    products: list[dict[str, Any]]
    users: list[dict[str, Any]]
    events: list[dict[str, Any]]
    truth: dict[str, Truth]


def generate(seed: int) -> Sample:
    """The sample with the shoppers of `seed`; the products do not depend on it."""
    garments = catalogue()
    people = shoppers(seed, garments)
    return Sample(
        products=garments.products,
        users=[shopper.user for shopper in people],
        events=[event for shopper in people for event in shopper.events],
        truth={shopper.user["user_id"]: shopper.truth for shopper in people},
    )
