#!/usr/bin/env python
"""Encode the distinct product texts with the frozen part of the text encoder, through Ray Data.

Reads `tensors`, writes `text_states`. The longest stage of a large catalogue: some 150 to 250 texts of 24
tokens a second and core. Only texts that the last run did not encode are new work (`encoded`, `kept`), and a killed
run goes on after its last batch. Options: text.*, item_tower.text

    python jobs/encode.py --recipe hm --set text.num_actors=2 --set text.cpus_per_actor=1
"""

from rec.cli import main, parser
from rec.encode import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or ""), writes=True)
