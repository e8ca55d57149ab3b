#!/usr/bin/env python
"""Read the lists that servers have shown, and what was chosen from them, as samples for the ranker.

Run it with feedback.train=true, between jobs/candidates.py and jobs/train_ranker.py; jobs/pipeline.py does.
"""

from rec.cli import main, parser
from rec.feedback.samples import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
