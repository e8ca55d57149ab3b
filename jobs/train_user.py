#!/usr/bin/env python
"""Train the user tower on the item vectors and write the artifact user_tower."""

from rec.cli import main, parser
from rec.train.user import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
