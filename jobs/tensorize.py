#!/usr/bin/env python
"""Grow the RE vocabulary and turn the attributes and titles of all products into ids."""

from rec.cli import main, parser
from rec.vocab.tensorize import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
