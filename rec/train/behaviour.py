"""The item tower's second, optional run: fine-tuning on pairs of products that the same users chose.

The tower still reads content only. What it learns is which content goes together, so a product that nobody chose yet
gains as well. Every product is seen without some of its keys and tokens, as in SimCSE: a tower that leans on
single words knows the products of the pairs by heart.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rec.config import ItemTower as Options
from rec.models.item_inputs import IntArray, ItemBatch, ItemInputs
from rec.models.item_tower import ItemTower, Shape, inputs_of
from rec.models.pair_loss import Partners, pair_loss
from rec.train import ahead, checkpoint, contrast, copurchase, ddp, schedule
from rec.train.copurchase import Pairs
from rec.train.watch import Watch

KIND = "item_behaviour"
"""Of the runs; the artifact is the item tower's."""
WARMUP = 0.1
"""Share of all steps over which the learning rate rises."""


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    options = Options.model_validate(config["options"])
    shape: Shape = config["shape"]
    tensors = Path(config["tensors"])
    items = inputs_of(shape, tensors, Path(config["text_states"]))
    tower = ItemTower(shape)
    checkpoint.load(Path(config["start"]), tower)
    if options.compile:
        tower.compile_parts()
    train(tower, items, copurchase.load(Path(config["inputs"])), options, config["seed"], tensors)


def train(tower: ItemTower, items: ItemInputs, pairs: Pairs, options: Options, seed: int, tensors: Path) -> None:
    """All epochs that are still to do, on the worker that calls it; `tensors` has the names of products, for errors."""
    chosen = options.behaviour
    model = ddp.distribute(tower)
    device = tower.anchor.device
    share = torch.from_numpy(pairs.item_share(len(items)))
    sides = np.stack([pairs.first, pairs.second])  # int64[2, P]
    first, second = torch.from_numpy(sides)
    partners = Partners(torch.from_numpy(items.groups), share, first, second, chosen.log_q).to(device)
    optimizer = torch.optim.AdamW(
        contrast.parameter_groups(tower, options),
        lr=chosen.learning_rate,
        weight_decay=options.train.weight_decay,
        fused=True,
    )
    bases = [group["lr"] for group in optimizer.param_groups]
    model.train()
    remedy = (
        f"lower item_tower.behaviour.learning_rate={chosen.learning_rate:g} or raise item_tower.behaviour.temperature="
        f"{chosen.temperature:g}"
    )
    for epoch in ddp.checkpointed_epochs(
        model, optimizer, options.train, what="item tower, behaviour", epochs=chosen.epochs, seed=seed, remedy=remedy
    ):
        drawn = sides[:, pairs.draw(epoch.rng)]
        steps = ddp.batches(len(pairs), chosen.batch_size, epoch.rng)
        watch = Watch(epoch, tensors)

        def seen_of(
            step: int, epoch: ddp.Epoch = epoch, drawn: IntArray = drawn, steps: list[IntArray] = steps
        ) -> tuple[IntArray, ItemBatch]:
            rng = np.random.default_rng([seed, epoch.number, step, ddp.rank()])
            rows = drawn[:, steps[step]]  # int64[2, B]
            batch = items.batch(rows.reshape(-1))
            return rows, contrast.views(batch, tower.shape.num_keys, options, rng, count=1).to(device)

        batches = ahead.made(seen_of, range(epoch.first, len(steps)), device)
        for step, (rows, seen) in epoch.progress(batches, count=len(steps)):
            rate = schedule.rate(epoch.number * len(steps) + step, chosen.epochs * len(steps), warmup=WARMUP)
            schedule.set_rates(optimizer, bases, rate)
            left, right = contrast.forward(model, seen, options.train.precision == "bfloat16").chunk(2)
            loss = pair_loss(left, right, torch.from_numpy(rows).to(device), partners, chosen.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            partner = torch.from_numpy(rows[1]).to(device)
            nearest = (left.detach() @ right.detach().T).argmax(1)
            watch.add(rows.reshape(-1), loss.detach(), (partner[nearest] == partner).float().mean())
        pair, hits = watch.means()
        epoch.metrics |= {"pair_loss": pair, "partner_first": hits}
