#!/usr/bin/env python
"""Train the fit head on sizes and how they fitted, measure it, and write the artifact fit_head."""

from rec.cli import main, parser
from rec.train.fit import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
