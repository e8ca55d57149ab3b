#!/usr/bin/env python
"""Take over prices, stock and new products from the source of a recipe into what is served, without training.

    python jobs/refresh.py --recipe shop.toml

For a timer of minutes, between the pipeline's runs. Products that are no longer in the files are out of stock. New
ones go through the language model and the towers of the active bundle; their texts and all events wait for no training
to be shown, but the models learn of them with the next one.
"""

from rec.cli import main, parser
from rec.refresh import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
