#!/usr/bin/env python
"""Run all stages of a recipe in order, from the files to the published bundle.

A stage whose output is there already is skipped, so that a pipeline that was stopped goes on where it was.

    python jobs/pipeline.py --recipe demo
    python jobs/pipeline.py --recipe hm --set source.folder=../shared/data
"""

from rec.cli import main, parser
from rec.pipeline import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
