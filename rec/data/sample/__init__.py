"""A synthetic catalogue, labelled so: garments, shoppers and events that this package makes up itself.

The garments are fixed (the answers that a language model gave for them are shipped); the shoppers and
their events come from the seed. Each planted structure is recoverable by one stage only:

| group    | the user's last event follows from                              | seen by              |
|----------|-----------------------------------------------------------------|----------------------|
| re_taste | a phrase that only descriptions and HTML hold                   | RE values            |
| title    | a collection name that only titles hold                         | title tokens         |
| size     | the leg length that goes with the user's height                 | body profile         |
| launch   | the niche category of the history; the product is new           | content of cold items|
| context  | the occasion named in the context text of that very event       | context text         |
"""

from rec.data.sample.catalogue import LAUNCH, START, catalogue

__all__ = ["LAUNCH", "START", "catalogue", "live_product_ids"]


def live_product_ids() -> list[str]:
    """The new arrivals: no shipped answer holds them, so that enrichment asks the model live."""
    return catalogue().ids(lambda role: role.new)
