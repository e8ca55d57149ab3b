"""Stage pretrain: the item tower by SimCSE on Ray Train.

Two views of each product, made by hiding whole keys in STD and in RE and single title tokens, should find
each other among the views of all other products of the batch. Content only: no event is read, so a product
that arrived this morning is as well placed as any. With `item_tower.behaviour` a second run goes on from there with
pairs of products that users chose (`rec.train.behaviour`); what the tower reads stays content.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rec import artifact, dataset, histories, runtime
from rec.config import Config
from rec.config import ItemTower as Options
from rec.errors import ConfigError
from rec.models import losses
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemBatch, ItemInputs, text_states_manifest
from rec.models.item_tower import KIND, VERSION, ItemTower, Shape
from rec.schema import INTERACTIONS, TENSORS
from rec.train import behaviour, copurchase, ddp, schedule
from rec.vocab import tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

WARMUP = 0.1
"""Share of all steps over which the learning rate rises."""


def run(config: Config) -> dict[str, Any]:
    """Train the item tower; returns where it is, its loss and how well views find each other."""
    target = config.at(KIND)
    inputs = _input_hashes(config)
    made_by = {"item_tower": config.item_tower.identity(), "seed": config.seed}
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), ddp.run_name(**work)
    second = ddp.run_name(**{**work, "kind": behaviour.KIND})
    done = artifact.finished(target, **work)
    for kind, run in ((KIND, name), (behaviour.KIND, second)):
        ddp.sweep(storage, kind, keep=None if done else run)
    if done is not None:
        return {"item_tower": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    shape = _shape(config)
    pairs = _write_pairs(config, ddp.inputs_folder(storage, second)) if config.item_tower.behaviour.epochs else 0
    runtime.start(config.cpus)
    loop_config = {
        "tensors": str(config.at("tensors")),
        "text_states": str(config.at(TEXT_STATES)),
        "shape": shape,
        "options": config.item_tower.model_dump(mode="json"),
        "seed": config.seed,
    }
    checkpoint = ddp.fit(loop, config.item_tower.train, name, loop_config, storage)
    metrics = ddp.metrics_of(checkpoint)
    if pairs:
        loop_config |= {"start": str(checkpoint), "pairs": str(ddp.inputs_folder(storage, second))}
        checkpoint = ddp.fit(behaviour.loop, config.item_tower.train, second, loop_config, storage)
        metrics |= {"pairs": pairs, **ddp.metrics_of(checkpoint)}
    tower = ItemTower(shape)
    ddp.load_checkpoint(checkpoint, tower)
    facts = {
        "items": dataset.read_manifest(config.at("tensors"), TENSORS).facts["rows"],
        "width": shape.width,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        **metrics,
    }
    with artifact.write(target, **work) as draft:
        tower.save(draft.path)
        draft.note(**facts)
    ddp.sweep(storage, KIND)
    ddp.sweep(storage, behaviour.KIND)
    return {"item_tower": str(target), **facts, "seconds": round(time.monotonic() - started, 1)}


def _input_hashes(config: Config) -> dict[str, str]:
    events = {}
    if config.item_tower.behaviour.epochs:
        events["events"] = dataset.read_manifest(config.at("events"), INTERACTIONS).content_hash
    return {
        **events,
        "tensors": dataset.read_manifest(config.at("tensors"), TENSORS).content_hash,
        "vocabulary": tensorize.manifest(config.at("vocabulary")).content_hash,
        "text_states": text_states_manifest(config.at(TEXT_STATES)).content_hash,
    }


def _write_pairs(config: Config, folder: Path) -> int:
    """Write the pairs for all workers, the same bytes in every run; returns how many there are."""
    options = config.item_tower.behaviour
    groups = dataset.read(config.at("tensors"), TENSORS, ["group"])["group"].to_numpy().astype(np.int64)
    pairs = copurchase.find(histories.load(config.root), groups, window=options.window, damping=options.damping)
    if len(pairs) < options.batch_size:
        raise ConfigError(
            f"{config.at('events')} holds {len(pairs)} pairs of products that one user chose within "
            f"item_tower.behaviour.window={options.window} training events, which fill no batch of "
            f"{options.batch_size}: lower item_tower.behaviour.batch_size, or set item_tower.behaviour.epochs=0"
        )
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save(folder)
    return len(pairs)


def _shape(config: Config) -> Shape:
    """Sizes of the tower's tables, from the artifacts that its inputs come from."""
    vocabulary = config.at("vocabulary")
    std = StdVocabulary.load(vocabulary / "std.toml")
    states = text_states_manifest(config.at(TEXT_STATES))
    return Shape(
        num_keys=std.num_keys,
        num_std_ids=std.num_ids,
        num_re_tokens=ReVocabulary.load(vocabulary / "re.json").num_tokens,
        text_width=states.facts["width"],
        text_encoder=states.config["encoder"],
        width=config.item_tower.width,
        heads=config.item_tower.heads,
        dropout=config.item_tower.dropout,
        inputs=tuple(config.item_tower.inputs),
    )


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    options = Options.model_validate(config["options"])
    items = ItemInputs.load(Path(config["tensors"]), Path(config["text_states"]))
    torch.manual_seed(config["seed"])
    tower = ItemTower(config["shape"])
    train(tower, items, options, config["seed"])


def train(tower: ItemTower, items: ItemInputs, options: Options, seed: int) -> None:
    """All epochs that are still to do, on the worker that calls it."""
    model = ddp.distribute(tower)
    optimizer = torch.optim.AdamW(
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        lr=options.train.learning_rate,
        weight_decay=options.train.weight_decay,
    )
    model.train()
    for epoch in ddp.checkpointed_epochs(model, optimizer, epochs=options.train.epochs, seed=seed):
        steps = ddp.batches(len(items), options.train.batch_size, epoch.rng)
        total = torch.zeros(2, dtype=torch.float64)
        for step, rows in enumerate(epoch.progress(steps, what="item tower", count=len(steps))):
            rate = schedule.rate(epoch.number * len(steps) + step, options.train.epochs * len(steps), warmup=WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = rate * options.train.learning_rate
            rng = np.random.default_rng([seed, epoch.number, step, ddp.rank()])
            loss, hits = contrast(model, items, rows, tower.shape.num_keys, options, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += torch.stack([loss.detach(), hits]).double().cpu()
        epoch.metrics |= {"loss": float(total[0]) / len(steps), "twin_first": float(total[1]) / len(steps)}


def contrast(
    model: nn.Module, items: ItemInputs, rows: IntArray, num_keys: int, options: Options, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of one step, and the share of this worker's products whose second view is nearest to their first.

    Both views go through the model in one pass, so that data-parallel training sees one forward per step.
    """
    device = next(model.parameters()).device
    twice = two_views(items.batch(rows), num_keys, options, rng).to(device)
    first, second = model(twice).chunk(2)
    groups = torch.from_numpy(items.groups[rows]).to(device)
    loss = losses.nt_xent(first, second, groups, options.temperature)
    nearest = (first.detach() @ second.detach().T).argmax(1)
    return loss, (groups[nearest] == groups).float().mean()


def two_views(batch: ItemBatch, num_keys: int, options: Options, rng: np.random.Generator) -> ItemBatch:
    """First all products, then all once more, each time without some keys in STD, others in RE, and some tokens."""
    hidden = torch.from_numpy(rng.random((2, 2, len(batch), num_keys + 1)) < options.feature_dropout)
    tokens = torch.from_numpy(rng.random((2, *batch.title_mask.shape)) < options.token_dropout)  # bool[2, B, T]
    std = hidden[0].gather(2, batch.std_key.expand(2, -1, -1))  # bool[2, B, S]
    re = hidden[1].gather(2, batch.re_key.expand(2, -1, -1))  # bool[2, B, R]
    return batch.views(std=std, re=re, title=tokens)
