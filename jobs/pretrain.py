#!/usr/bin/env python
"""Train the item tower by SimCSE on Ray Train, then with item_tower.behaviour on products that users chose together.

Reads `tensors`, `vocabulary` and `text_states`, and `events` for that stage or where item_tower.start is "choices";
writes `item_tower`. A run that was killed goes on after its last checkpoint and ends with the same weights. The result
line names the page with the learning curves.

    python jobs/pretrain.py --recipe demo
    python jobs/pretrain.py --recipe demo --set item_tower.behaviour.epochs=2
    python jobs/pretrain.py --recipe hm --set item_tower.train.num_workers=2 --set item_tower.train.cpus_per_worker=1
"""

from rec.cli import main, parser
from rec.train.item import run

if __name__ == "__main__":
    main(lambda config, _: run(config), parser(__doc__ or "", "item_tower"), writes=True)
