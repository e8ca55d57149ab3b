"""What Ray adds to the item tower's work: Ray Train over a torch loop, the loader's share, exports over bare models.

train.products_per_s  `rec.train.item.train` on one Ray Train worker, median of ROUNDS runs, each followed by one of a
                      bare loop of the same steps in a process of its own
train.over.torch      products/s of a round's run over those of its bare loop, median of the rounds; .least and
                      .greatest of them
train.busy            how much of the processors that the worker has does work: CPU time of its process over the time of
                      the run times their number, batches made there and threads that spin for others included. It is
                      low where one thread works and the others wait, or where other processes have the processors. On a
                      GPU 1 - train.batches, for what the GPU does meanwhile is not seen from here
train.idle            share of the time in which the machine's processors had nothing to do: what busy lacks besides,
                      where the worker has them all, Ray's own processes have, and whoever else is there
train.batches         share of the run's time until a batch was there: on a CPU, where the step has all the threads, it
                      is made in that time, on a GPU it is waited for
train.step            share of that time within steps: forward, backward and update
train.around          share of that time around all steps: optimizer, order, and the checkpoint with its report
train.limit.NAME      the greatest of the three, batches, step or around: what limits
encode.products_per_s the stage encode on the first ENCODED products, each distinct text once, from an empty store
encode.over.encoder   over the bare text encoder on the same batches
embed.products_per_s  the stage embed on all products, from an empty store
embed.over.tower      over the bare tower on the same blocks
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from rec import allocator, dataset, embed, encode, histories, runtime
from rec.config import Config, Train
from rec.config import ItemTower as Options
from rec.evaluate import hidden
from rec.evaluate.benchmark import Figures, figure
from rec.models import item_tower, text_encoder
from rec.models.item_inputs import ItemInputs, Ragged
from rec.models.item_tower import ItemTower
from rec.models.item_vectors import item_vectors
from rec.schema import TENSORS
from rec.train import ahead, contrast, ddp, item

PRODUCTS, QUICK_PRODUCTS = 60_000, 3_000
ENCODED = 40_000
"""Products of which there are more batches of texts than `rec.encode` has in its own process."""
ROUNDS, QUICK_ROUNDS = 3, 1
TRAIN_GOAL, BUSY_GOAL = 0.98, 0.95
SECONDS = "seconds.json"
"""Of a run: in all, until batches were there, within steps, of CPU time, and idle, of a processor of the machine."""

Floats = NDArray[np.float64]
P = ParamSpec("P")


class Watched:
    """`ahead.made`, watched."""

    def __init__(self) -> None:
        self.waited = 0.0
        """Seconds until a batch was there, of all batches."""
        self.stepped = 0.0
        """Seconds between a batch and the question for the next one."""

    def __call__(
        self, make: Callable[[int], contrast.Drawn], given: Iterable[int], device: torch.device
    ) -> Iterator[contrast.Drawn]:
        """See `ahead.made`."""
        batches = ahead.made(make, given, device)
        asked = time.perf_counter()
        for batch in batches:
            got = time.perf_counter()
            self.waited += got - asked
            yield batch
            asked = time.perf_counter()
            self.stepped += asked - got


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
    inside, bare = [], []
    for number in range(QUICK_ROUNDS if quick else ROUNDS):
        name = f"speed-{number}"
        shutil.rmtree(folder / name, ignore_errors=True)
        ddp.fit(timed, once, name, work, folder)
        inside.append(json.loads((folder / SECONDS).read_text(encoding="utf-8")))
        bare.append(_alone(_bare, work))
    shutil.rmtree(folder)
    return profile(int(kept.sum()), np.array(inside), np.array(bare), once)


def profile(products: int, inside: Floats, bare: Floats, train: Train) -> Figures:
    """`train.*` of rounds on so many products: seconds of Ray's runs, float64[R, 5] as in SECONDS, and of bare loops'.

    `bare` is float64[R].
    """
    seconds = inside[:, 0]
    ratios = bare / seconds
    shares = {"batches": inside[:, 1] / seconds, "step": inside[:, 2] / seconds}
    shares["around"] = 1 - shares["batches"] - shares["step"]
    medians = {name: round(float(np.median(each)), 4) for name, each in shares.items()}
    works = inside[:, 3] / (seconds * train.cpus_per_worker)
    busy = 1 - medians["batches"] if train.use_gpu else float(np.median(works))
    limit = max(medians, key=lambda name: medians[name])
    return {
        "train.products_per_s": figure(round(products / float(np.median(seconds)), 1), "products/s"),
        "train.over.torch": figure(round(float(np.median(ratios)), 4), "times", goal=TRAIN_GOAL),
        "train.over.torch.least": figure(round(float(ratios.min()), 4), "times"),
        "train.over.torch.greatest": figure(round(float(ratios.max()), 4), "times"),
        "train.busy": figure(round(busy, 4), "ratio", goal=BUSY_GOAL),
        "train.idle": figure(round(float(np.median(inside[:, 4] / seconds)), 4), "ratio"),
        **{f"train.{name}": figure(share, "ratio") for name, share in medians.items()},
        f"train.limit.{limit}": figure(medians[limit], "ratio"),
    }


def timed(config: dict[str, Any]) -> None:
    """The stage's own loop in a worker, from its first batch to its checkpoint, without the probe; writes SECONDS."""
    tower, items, options = item.drawn(config)
    categories = items.first_std(*config["category"])
    _warm(tower, items, options)
    watched, started, worked, idled = Watched(), time.perf_counter(), time.process_time(), _idle()
    item.train(tower, items, categories, options, config["seed"], Path(config["tensors"]), None, watched)
    seconds = time.perf_counter() - started
    spent = [seconds, watched.waited, watched.stepped, time.process_time() - worked, _idle() - idled]
    (Path(config["inputs"]) / SECONDS).write_text(json.dumps(spent), encoding="utf-8")


def _idle() -> float:
    """Seconds since its start in which a processor of the machine had nothing to do, of all the mean."""
    return float(psutil.cpu_times().idle / psutil.cpu_count())


def _warm(tower: ItemTower, items: ItemInputs, options: Options) -> None:
    """One step on the device, whose gradient is dropped: what a device or a compiler needs once is not timed."""
    device = _device(options.train.use_gpu)
    rows = np.arange(min(options.train.batch_size, len(items)))
    drawn = contrast.draw(items, rows, tower.shape.num_keys, options, np.random.default_rng(0))
    contrast.step(tower.to(device).train(), drawn.to(device), options)
    tower.zero_grad()


def _alone(work: Callable[P, float], *given: P.args, **named: P.kwargs) -> float:
    """The seconds that `work` tells, in a process that has memory as Ray's workers have it."""
    with allocator.keeping(), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *given, **named).result()


def _bare(config: dict[str, Any]) -> float:
    """Seconds of as many steps in a loop of a few lines."""
    tower, items, options = item.drawn(config)
    torch.set_num_threads(options.train.cpus_per_worker)
    _warm(tower, items, options)
    optimizer = torch.optim.AdamW(contrast.parameter_groups(tower, options), lr=options.train.learning_rate, fused=True)
    count = -(-len(items) // options.train.batch_size)
    batches = np.array_split(np.random.default_rng(0).permutation(len(items)), count)
    device = next(tower.parameters()).device

    def drawn(step: int) -> contrast.Drawn:
        rng = np.random.default_rng(step)
        return contrast.draw(items, batches[step], tower.shape.num_keys, options, rng).to(device)

    started = time.perf_counter()
    for batch in ahead.made(drawn, range(count), device):
        optimizer.zero_grad()
        contrast.step(tower, batch, options)
        optimizer.step()
    if options.train.use_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def encoding(config: Config, *, quick: bool) -> Figures:
    """`encode.*` of the first products of a recipe that went through tensorize."""
    part = hidden.part(config, "encoded")
    shutil.rmtree(part.root, ignore_errors=True)
    rows = dataset.read(config.at("tensors"), TENSORS).slice(0, QUICK_PRODUCTS if quick else ENCODED)
    source = dataset.read_manifest(config.at("tensors"), TENSORS)
    dataset.write(part.at("tensors"), TENSORS, [rows], inputs={"whole": source.content_hash}, config=source.config)
    runtime.start(config.cpus)
    started = time.perf_counter()
    encode.run(part)
    inside = time.perf_counter() - started
    shutil.rmtree(part.root)
    first, _ = encode.distinct(Ragged.of(rows["title_id"]))
    ids = rows["title_id"].take(first).to_pylist()
    bare = _alone(_bare_encoder, config, ids)
    return {
        "encode.products_per_s": figure(round(len(rows) / inside, 1), "products/s"),
        "encode.encoder.products_per_s": figure(round(len(rows) / bare, 1), "products/s"),
        "encode.over.encoder": figure(round(bare / inside, 4), "times"),
    }


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
    count = dataset.read_manifest(config.at("tensors"), TENSORS).facts["rows"]
    bare = _alone(_bare_tower, config, trained)
    shutil.rmtree(part.root)
    return {
        "embed.products_per_s": figure(round(count / inside, 1), "products/s"),
        "embed.tower.products_per_s": figure(round(count / bare, 1), "products/s"),
        "embed.over.tower": figure(round(bare / inside, 4), "times"),
    }


def _bare_encoder(config: Config, ids: list[list[int]]) -> float:
    """Seconds of the text encoder for texts of these token ids."""
    encoder = text_encoder.load(config.text, config.item_tower.layers_above_states).to(_device(config.text.use_gpu))
    torch.set_num_threads(config.text.cpus_per_actor)
    started = time.perf_counter()
    encoder.token_states(ids, config.text.batch_size)
    return time.perf_counter() - started


def _bare_tower(config: Config, trained: Config) -> float:
    """Seconds of the tower that `trained` has, for all products of `config`."""
    tower = item_tower.load(trained.at(item_tower.KIND))
    items = item_tower.inputs_of(tower.shape, config.at("tensors"), config.at("text_states"))
    tower.to(_device(trained.item_tower.train.use_gpu))
    torch.set_num_threads(trained.item_tower.train.cpus_per_worker)
    started = time.perf_counter()
    item_vectors(tower, items)
    return time.perf_counter() - started


def _device(use_gpu: bool) -> torch.device:
    return torch.device("cuda" if use_gpu else "cpu")
