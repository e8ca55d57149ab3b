#!/usr/bin/env python
"""Take over prices, stock and new products from the source of a recipe into what is served, without training.

    python jobs/refresh.py --recipe shop.toml
    python jobs/refresh.py --recipe shop.toml --force      # although a fifth of the stock would be lost

For a timer of minutes. Products that are no longer in the files are out of stock. New ones go through the language
model and the towers of the active bundle, and are shown from then on; the models learn of them with the next training.
"""

from rec.cli import main, parser
from rec.refresh import run

if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--force", action="store_true", help="although more than a fifth of the products in stock would no longer be"
    )
    main(lambda config, options: run(config, force=options.force), arguments)
