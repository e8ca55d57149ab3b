#!/usr/bin/env python
"""Retrieve the ranker's training candidates: what the user tower finds just before each held-out event."""

from rec.cli import main, parser
from rec.samples import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__), writes=True)
