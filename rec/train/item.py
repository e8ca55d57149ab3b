"""Stage pretrain: the item tower by SimCSE on Ray Train.

Two views of each product, made by hiding whole keys in STD and in RE and single title tokens, should find
each other among the views of all other products of the batch. Content only: no event is read, so a product
that arrived this morning is as well placed as any.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rec import artifact, dataset, runtime
from rec.config import Config
from rec.config import ItemTower as Options
from rec.models import losses, text_encoder
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemBatch, ItemInputs, check_texts, text_states_manifest
from rec.models.item_tower import KIND, VERSION, ItemTower, Shape
from rec.models.text_layers import TextShape
from rec.schema import TENSORS
from rec.train import ddp, schedule
from rec.vocab import tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

WARMUP = 0.1
"""Share of all steps over which the learning rate rises."""
TEXT_LAYERS = "text_layers.safetensors"
"""What is trained of the text encoder, as it was; among a run's inputs."""


def run(config: Config) -> dict[str, Any]:
    """Train the item tower; returns where it is, its loss and how well views find each other."""
    target = config.at(KIND)
    inputs = _input_hashes(config)
    check_texts(
        config.at("tensors"),
        config.at(TEXT_STATES),
        encoder=config.text.encoder,
        layers_above=config.item_tower.layers_above_states,
        reader=f"item_tower.text={config.item_tower.text!r}",
    )
    made_by = {"item_tower": config.item_tower.identity(), "seed": config.seed}
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), ddp.run_name(**work)
    done = artifact.finished(target, **work)
    ddp.sweep(storage, KIND, keep=None if done else name)
    if done is not None:
        return {"item_tower": str(target), **done.facts, "skipped": True}
    started = time.monotonic()
    folder = ddp.inputs_folder(storage, name)
    shape = _shape(config, _text_layers(config, folder))
    runtime.start(config.cpus)
    loop_config = {
        "tensors": str(config.at("tensors")),
        "text_states": str(config.at(TEXT_STATES)),
        "inputs": str(folder),
        "shape": shape,
        "options": config.item_tower.model_dump(mode="json"),
        "seed": config.seed,
    }
    checkpoint = ddp.fit(loop, config.item_tower.train, name, loop_config, storage)
    tower = ItemTower(shape)
    ddp.load_checkpoint(checkpoint, tower)
    facts = {
        "items": dataset.read_manifest(config.at("tensors"), TENSORS).facts["rows"],
        "width": shape.width,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        **ddp.metrics_of(checkpoint),
    }
    with artifact.write(target, **work) as draft:
        tower.save(draft.path)
        draft.note(**facts)
    ddp.sweep(storage, KIND)
    return {"item_tower": str(target), **facts, "seconds": round(time.monotonic() - started, 1)}


def _input_hashes(config: Config) -> dict[str, str]:
    return {
        "tensors": dataset.read_manifest(config.at("tensors"), TENSORS).content_hash,
        "vocabulary": tensorize.manifest(config.at("vocabulary")).content_hash,
        "text_states": text_states_manifest(config.at(TEXT_STATES)).content_hash,
    }


def _text_layers(config: Config, folder: Path) -> TextShape | None:
    """Put what is trained of the text encoder into `folder`, from where all workers start alike; returns its shape."""
    options = config.item_tower
    if options.text == "frozen":
        return None
    layers = text_encoder.load_layers(config.text, options.text_layers if options.text == "top" else None)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(layers.state_dict(), folder / TEXT_LAYERS)
    return layers.shape


def _shape(config: Config, text: TextShape | None) -> Shape:
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
        text=text,
    )


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    options = Options.model_validate(config["options"])
    shape: Shape = config["shape"]
    items = ItemInputs.load(Path(config["tensors"]), Path(config["text_states"]), ids=shape.reads_ids)
    torch.manual_seed(config["seed"])
    tower = ItemTower(shape)
    if tower.text is not None:
        tower.text.load_state_dict(load_file(Path(config["inputs"]) / TEXT_LAYERS))
    if options.compile:
        tower.compile(dynamic=True)
    train(tower, items, options, config["seed"])


def train(tower: ItemTower, items: ItemInputs, options: Options, seed: int) -> None:
    """All epochs that are still to do, on the worker that calls it."""
    model = ddp.distribute(tower)
    optimizer = torch.optim.AdamW(
        parameter_groups(tower, options), lr=options.train.learning_rate, weight_decay=options.train.weight_decay
    )
    bases = [group["lr"] for group in optimizer.param_groups]
    model.train()
    for epoch in ddp.checkpointed_epochs(model, optimizer, epochs=options.train.epochs, seed=seed):
        steps = ddp.batches(len(items), options.train.batch_size, epoch.rng)
        total = torch.zeros(2, dtype=torch.float64)
        for step, rows in enumerate(epoch.progress(steps, what="item tower", count=len(steps))):
            rate = schedule.rate(epoch.number * len(steps) + step, options.train.epochs * len(steps), warmup=WARMUP)
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = rate * base
            rng = np.random.default_rng([seed, epoch.number, step, ddp.rank()])
            loss, hits = contrast(model, items, rows, tower.shape.num_keys, options, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += torch.stack([loss.detach(), hits]).double().cpu()
        epoch.metrics |= {"loss": float(total[0]) / len(steps), "twin_first": float(total[1]) / len(steps)}


def parameter_groups(tower: ItemTower, options: Options) -> list[dict[str, Any]]:
    """What is trained, for an optimizer: the tower at its own step size, the text encoder's layers at theirs."""
    text = [] if tower.text is None else [p for p in tower.text.parameters() if p.requires_grad]
    apart = set(text)
    groups = [{"params": [p for p in tower.parameters() if p.requires_grad and p not in apart]}]
    return [*groups, {"params": text, "lr": options.text_learning_rate}] if text else groups


def contrast(
    model: nn.Module, items: ItemInputs, rows: IntArray, num_keys: int, options: Options, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of one step, and the share of this worker's products whose second view is nearest to their first.

    Both views go through the model in one pass, so that data-parallel training sees one forward per step.
    """
    device = next(model.parameters()).device
    twice = two_views(items.batch(rows), num_keys, options, rng).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.train.precision == "bfloat16"):
        vectors = model(twice)  # [2B, d]
    first, second = vectors.float().chunk(2)
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
