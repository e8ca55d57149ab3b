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
from rec.models.item_inputs import ItemBatch, ItemInputs
from rec.models.item_tower import ItemTower
from rec.models.pair_loss import Partners, pair_loss
from rec.train import copurchase, ddp, schedule
from rec.train.copurchase import Pairs

KIND = "item_behaviour"
"""Of the runs; the artifact is the item tower's."""
WARMUP = 0.1
"""Share of all steps over which the learning rate rises."""


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    options = Options.model_validate(config["options"])
    items = ItemInputs.load(Path(config["tensors"]), Path(config["text_states"]))
    tower = ItemTower(config["shape"])
    ddp.load_checkpoint(Path(config["start"]), tower)
    train(tower, items, copurchase.load(Path(config["pairs"])), options, config["seed"])


def train(tower: ItemTower, items: ItemInputs, pairs: Pairs, options: Options, seed: int) -> None:
    """All epochs that are still to do, on the worker that calls it."""
    chosen = options.behaviour
    model = ddp.distribute(tower)
    device = tower.anchor.device
    share = torch.from_numpy(pairs.item_share(len(items)))
    sides = np.stack([pairs.first, pairs.second])  # int64[2, P]
    first, second = torch.from_numpy(sides)
    partners = Partners(torch.from_numpy(items.groups), share, first, second, chosen.log_q).to(device)
    optimizer = torch.optim.AdamW(
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        lr=chosen.learning_rate,
        weight_decay=options.train.weight_decay,
    )
    model.train()
    for epoch in ddp.checkpointed_epochs(model, optimizer, epochs=chosen.epochs, seed=seed):
        drawn = sides[:, pairs.draw(epoch.rng)]
        steps = ddp.batches(len(pairs), chosen.batch_size, epoch.rng)
        total = torch.zeros(2, dtype=torch.float64)
        for step, places in enumerate(epoch.progress(steps, what="item tower, behaviour", count=len(steps))):
            rate = schedule.rate(epoch.number * len(steps) + step, chosen.epochs * len(steps), warmup=WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = rate * chosen.learning_rate
            rng = np.random.default_rng([seed, epoch.number, step, ddp.rank()])
            rows = drawn[:, places]  # int64[2, B]
            batch = one_view(items.batch(rows.reshape(-1)), tower.shape.num_keys, options, rng)
            left, right = model(batch.to(device)).chunk(2)
            loss = pair_loss(left, right, torch.from_numpy(rows).to(device), partners, chosen.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            nearest = (left.detach() @ right.detach().T).argmax(1).cpu().numpy()
            hits = float((rows[1][nearest] == rows[1]).mean())
            total += torch.tensor([loss.item(), hits], dtype=torch.float64)
        epoch.metrics |= {
            "pair_loss": float(total[0]) / len(steps),
            "partner_first": float(total[1]) / len(steps),
        }


def one_view(batch: ItemBatch, num_keys: int, options: Options, rng: np.random.Generator) -> ItemBatch:
    """Each product once, without some keys in STD, others in RE, and some tokens."""
    hidden = torch.from_numpy(rng.random((2, 1, len(batch), num_keys + 1)) < options.feature_dropout)
    tokens = torch.from_numpy(rng.random((1, *batch.title_mask.shape)) < options.token_dropout)  # bool[1, B, T]
    std = hidden[0].gather(2, batch.std_key[None])  # bool[1, B, S]
    re = hidden[1].gather(2, batch.re_key[None])  # bool[1, B, R]
    return batch.views(std=std, re=re, title=tokens)
