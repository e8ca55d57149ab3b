#!/usr/bin/env python
"""Train the ranker (DeepFM or DLRM) on retrieved candidates and write the artifacts features and ranker."""

from rec.cli import main, parser
from rec.train.ranker import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__), writes=True)
