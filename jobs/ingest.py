#!/usr/bin/env python
"""Read the source of a recipe and write the datasets products, users and events."""

from rec.cli import main, parser
from rec.data.ingest import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__), writes=True)
