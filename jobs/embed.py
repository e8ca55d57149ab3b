#!/usr/bin/env python
"""Embed every product with the trained item tower, through Ray Data.

Reads `tensors`, `text_states` and `item_tower`, writes `vectors`: one unit vector a product, in product order.
It takes the workers that item_tower.train names.

    python jobs/embed.py --recipe demo
"""

from rec.cli import main, parser
from rec.embed import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
