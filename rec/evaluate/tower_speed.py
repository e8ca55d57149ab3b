"""What Ray adds to the item tower's work: Ray Train over a torch loop, the loader's share, the export over the tower.

train.over.torch     products/s of `rec.train.item.train` on one Ray Train worker over those of a bare loop of the
                     same steps in this process, medians of ROUNDS runs in turn
train.busy           share of the bare loop's time that is not spent on waiting for batches
embed.products_per_s the stage embed on all products, from an empty store
embed.over.tower     over the bare tower on the same blocks
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rec import embed, histories, runtime
from rec.config import Config
from rec.config import ItemTower as Options
from rec.evaluate import hidden
from rec.evaluate.benchmark import Figures, figure
from rec.models import item_tower
from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower
from rec.models.item_vectors import item_vectors
from rec.train import ahead, contrast, ddp, item

PRODUCTS, QUICK_PRODUCTS = 20_000, 3_000
ROUNDS, QUICK_ROUNDS = 5, 1
TRAIN_GOAL, BUSY_GOAL = 0.98, 0.95
SECONDS = "seconds.json"


def training(config: Config, *, quick: bool) -> Figures:
    """`train.*` on the first products of a recipe that went through encode, with a frozen text encoder."""
    h = histories.load(config.root)
    part = hidden.part(config, "speed")
    kept = np.arange(h.num_items) < (QUICK_PRODUCTS if quick else PRODUCTS)
    hidden.write(config, part, kept, h, np.zeros(len(h.items), dtype=np.bool_))
    once = config.item_tower.train.model_copy(update={"epochs": 1, "num_workers": 1})
    options = config.item_tower.model_copy(update={"train": once, "text": "frozen"})
    part = part.model_copy(update={"item_tower": options})
    folder = part.at("runs")
    folder.mkdir(parents=True, exist_ok=True)
    work = item.inputs_of_loop(part, item.shape_of(part, None), folder)
    runtime.start(config.cpus)
    inside, bare, waits = [], [], []
    for number in range(QUICK_ROUNDS if quick else ROUNDS):
        name = f"speed-{number}"
        shutil.rmtree(folder / name, ignore_errors=True)
        ddp.fit(timed, once, name, work, folder)
        inside.append(float(json.loads((folder / SECONDS).read_text(encoding="utf-8"))))
        seconds, waited = _bare(work)
        bare.append(seconds)
        waits.append(waited)
    shutil.rmtree(folder)
    return {
        "train.products_per_s": figure(round(float(kept.sum() / np.median(inside)), 1), "products/s"),
        "train.over.torch": figure(round(float(np.median(bare) / np.median(inside)), 4), "times", goal=TRAIN_GOAL),
        "train.busy": figure(round(1 - float(np.median(waits) / np.median(bare)), 4), "ratio", goal=BUSY_GOAL),
    }


def timed(config: dict[str, Any]) -> None:
    """The stage's own loop in a worker, from its first batch to its checkpoint, without the probe; writes SECONDS."""
    tower, items, options = item.drawn(config)
    categories = items.first_std(config["category"])
    _warm(tower, items, options)
    started = time.perf_counter()
    item.train(tower, items, categories, options, config["seed"], Path(config["tensors"]), None)
    (Path(config["inputs"]) / SECONDS).write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")


def _warm(tower: ItemTower, items: ItemInputs, options: Options) -> None:
    """One step on the device, whose gradient is dropped: what a device or a compiler needs once is not timed."""
    device = torch.device("cuda" if options.train.use_gpu else "cpu")
    rows = np.arange(min(options.train.batch_size, len(items)))
    drawn = contrast.draw(items, rows, tower.shape.num_keys, options, np.random.default_rng(0))
    contrast.step(tower.to(device).train(), drawn.to(device), options)
    tower.zero_grad()


def _bare(config: dict[str, Any]) -> tuple[float, float]:
    """Seconds of as many steps in a loop of a few lines, and of waiting for its batches."""
    tower, items, options = item.drawn(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.train.cpus_per_worker)
    _warm(tower, items, options)
    optimizer = torch.optim.AdamW(contrast.parameter_groups(tower, options), lr=options.train.learning_rate, fused=True)
    count = -(-len(items) // options.train.batch_size)
    batches = np.array_split(np.random.default_rng(0).permutation(len(items)), count)
    device = next(tower.parameters()).device

    def drawn(step: int) -> contrast.Drawn:
        rng = np.random.default_rng(step)
        return contrast.draw(items, batches[step], tower.shape.num_keys, options, rng).to(device)

    started, waited = time.perf_counter(), 0.0
    made = ahead.made(drawn, range(count), device)
    while True:
        asked = time.perf_counter()
        batch = next(made, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        optimizer.zero_grad()
        contrast.step(tower, batch, options)
        optimizer.step()
    if options.train.use_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    return seconds, waited


def exporting(config: Config, trained: Config) -> Figures:
    """`embed.*` of all products of `config` with the tower that `trained` has."""
    alone = trained.item_tower.train.model_copy(update={"num_workers": 1})
    options = trained.item_tower.model_copy(update={"train": alone})
    part = hidden.part(config, "exported").model_copy(update={"item_tower": options})
    shutil.rmtree(part.root, ignore_errors=True)
    for name in hidden.DATASETS:
        hidden.link(config, part, name)
    hidden.link(trained, part, item_tower.KIND)
    runtime.start(config.cpus)
    started = time.perf_counter()
    embed.run(part)
    inside = time.perf_counter() - started
    tower = item_tower.load(trained.at(item_tower.KIND))
    device = torch.device("cuda" if trained.item_tower.train.use_gpu else "cpu")
    items = ItemInputs.load(config.at("tensors"), config.at("text_states"), ids=tower.shape.reads_ids)
    tower.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(trained.item_tower.train.cpus_per_worker)
    started = time.perf_counter()
    item_vectors(tower, items)
    bare = time.perf_counter() - started
    torch.set_num_threads(threads)
    shutil.rmtree(part.root)
    return {
        "embed.products_per_s": figure(round(len(items) / inside, 1), "products/s"),
        "embed.tower.products_per_s": figure(round(len(items) / bare, 1), "products/s"),
        "embed.over.tower": figure(round(bare / inside, 4), "times"),
    }
