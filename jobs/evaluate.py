#!/usr/bin/env python
"""Evaluate retrieval and the final list on each user's last event and write the artifact evaluation."""

from rec.cli import main, parser
from rec.evaluate.stage import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
