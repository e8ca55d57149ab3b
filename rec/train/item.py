"""Stage pretrain: the item tower by SimCSE on Ray Train.

The tower starts from the texts of the products (`rec.train.text_start`). Two views of each product, made by hiding
whole keys in STD and in RE and single title tokens, should find each other among the views of all other products of
the batch. Content only: a product that arrived this morning is as well placed as any, and no event is read but for the
directions in which texts are told apart, where `item_tower.start` says so. With
`item_tower.behaviour` a second run goes on from there with pairs of products that users chose
(`rec.train.behaviour`); what the tower reads stays content.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.train.torch import get_device
from safetensors.torch import load_file, save_file

from rec import artifact, dataset, histories, runtime
from rec.config import Config
from rec.config import ItemTower as Options
from rec.errors import ConfigError
from rec.models import text_encoder
from rec.models.encoder_files import ENCODER_FILES
from rec.models.item_inputs import TEXT_STATES, IntArray, ItemInputs, check_texts, text_states_manifest
from rec.models.item_tower import KIND, VERSION, ItemTower, Shape, inputs_of
from rec.models.known_ids import KnownIds
from rec.models.text_layers import TextShape
from rec.schema import INTERACTIONS, TENSORS
from rec.train import ahead, behaviour, checkpoint, components, contrast, copurchase, curves, ddp, schedule, text_start
from rec.train.probe import Probe
from rec.train.watch import Watch
from rec.vocab import tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

CATEGORY = "category"
OPTIONS = "item_tower.train"
WARMUP = 0.1
"""Share of all steps over which the learning rate rises."""
TEXT_LAYERS = "text_layers.safetensors"
"""What is trained of the text encoder, as it was; among a run's inputs."""


def run(config: Config) -> dict[str, Any]:
    """Train the item tower; returns where it is, its loss and how well views find each other."""
    target = config.at(KIND)
    inputs = _input_hashes(config)
    files = text_encoder.files(config.text, text_states_manifest(config.at(TEXT_STATES)))
    check_texts(
        config.at("tensors"),
        config.at(TEXT_STATES),
        encoder=config.text.encoder,
        layers_above=config.item_tower.layers_above_states,
        reader=f"item_tower.text={config.item_tower.text!r}",
        files=files.get(ENCODER_FILES),
    )
    made_by = {"item_tower": config.item_tower.identity(), "seed": config.seed, **files}
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), artifact.run_name(**work)
    second = artifact.run_name(**{**work, "kind": behaviour.KIND})
    done = artifact.finished(target, **work)
    for kind, run in ((KIND, name), (behaviour.KIND, second)):
        ddp.sweep(storage, kind, keep=None if done else run)
    if done is not None:
        return {"item_tower": str(target), **done.facts, "learning": str(target / curves.PAGE), "skipped": True}
    started = time.monotonic()
    folder = ddp.inputs_folder(storage, name)
    shape = shape_of(config, _text_layers(config, folder))
    known = KnownIds.of(*_vocabularies(config))
    pairs = _write_pairs(config, folder) if config.item_tower.reads_choices else 0
    runtime.start(config.cpus)
    loop_config = inputs_of_loop(config, shape, folder)
    train = config.item_tower.train
    room = "item_tower.chunk_size or item_tower.train.batch_size"
    last = ddp.fit(loop, train, name, loop_config, storage, options=OPTIONS, room=room)
    history = checkpoint.read(last).history
    metrics = history[-1]
    if config.item_tower.behaviour.epochs:
        loop_config |= {"start": str(last)}
        room = "item_tower.behaviour.batch_size"
        last = ddp.fit(behaviour.loop, train, second, loop_config, storage, options=OPTIONS, room=room)
        history += checkpoint.read(last).history
        metrics = metrics | history[-1]
    if pairs:
        metrics = metrics | {"pairs": pairs}
    tower = ItemTower(shape)
    checkpoint.load(last, tower)
    if config.item_tower.std_width:
        items = inputs_of(shape, config.at("tensors"), config.at(TEXT_STATES))
        tower = components.kept(tower, items, config.item_tower.std_width)
    facts = {
        "items": dataset.read_manifest(config.at("tensors"), TENSORS).facts["rows"],
        "width": shape.width,
        "parameters": sum(parameter.numel() for parameter in tower.parameters()),
        **metrics,
    }
    with artifact.write(target, **work) as draft:
        tower.save(draft.path)
        known.save(draft.path)
        curves.write(draft.path, f"the item tower of {config.name}", history)
        draft.note(**facts)
    ddp.sweep(storage, KIND)
    ddp.sweep(storage, behaviour.KIND)
    seconds = round(time.monotonic() - started, 1)
    return {"item_tower": str(target), **facts, "learning": str(target / curves.PAGE), "seconds": seconds}


def _input_hashes(config: Config) -> dict[str, str]:
    events = {}
    if config.item_tower.reads_choices:
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
    if options.epochs and len(pairs) < options.batch_size:
        raise ConfigError(
            f"{config.at('events')} holds {len(pairs)} pairs of products that one user chose within "
            f"item_tower.behaviour.window={options.window} training events, which fill no batch of "
            f"{options.batch_size}: lower item_tower.behaviour.batch_size, or set item_tower.behaviour.epochs=0"
        )
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save(folder)
    return len(pairs)


def _text_layers(config: Config, folder: Path) -> TextShape | None:
    """Put what is trained of the text encoder into `folder`, from where all workers start alike; returns its shape."""
    options = config.item_tower
    if options.text == "frozen":
        return None
    layers = text_encoder.load_layers(config.text, options.text_layers if options.text == "top" else None)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(layers.state_dict(), folder / TEXT_LAYERS)
    return layers.shape


def shape_of(config: Config, text: TextShape | None) -> Shape:
    """That of the tower in training; sizes of its tables are from the artifacts that its inputs come from."""
    std, re = _vocabularies(config)
    states = text_states_manifest(config.at(TEXT_STATES))
    return Shape(
        num_keys=std.num_keys,
        num_std_ids=std.num_ids,
        num_re_tokens=re.num_tokens,
        text_width=states.facts["width"],
        text_encoder=states.config["encoder"],
        width=config.item_tower.width,
        heads=config.item_tower.heads,
        dropout=config.item_tower.dropout,
        inputs=tuple(config.item_tower.inputs),
        shared_keys=config.item_tower.shared_keys,
        text=text,
        std_share=config.item_tower.std_share if config.item_tower.std_width else 0.0,
    )


def _vocabularies(config: Config) -> tuple[StdVocabulary, ReVocabulary]:
    folder = config.at("vocabulary")
    return StdVocabulary.load(folder / "std.toml"), ReVocabulary.load(folder / "re.json")


def _category_ids(config: Config) -> tuple[int, int]:
    """Ids of the key whose values are the kinds of products, and of its unknown value."""
    vocabulary = _vocabularies(config)[0]
    return vocabulary.key_id(CATEGORY), vocabulary.unknown_id(CATEGORY)


def inputs_of_loop(config: Config, shape: Shape, folder: Path) -> dict[str, Any]:
    """What `loop` is given; `folder` holds what was prepared for the run."""
    return {
        "tensors": str(config.at("tensors")),
        "text_states": str(config.at(TEXT_STATES)),
        "inputs": str(folder),
        "shape": shape,
        "options": config.item_tower.model_dump(mode="json"),
        "category": _category_ids(config),
        "seed": config.seed,
    }


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    tower, items, options = drawn(config)
    categories = items.first_std(*config["category"])
    probe = None
    if ddp.rank() == 0:
        if ddp.fresh():
            choices = copurchase.load(Path(config["inputs"])) if options.start == "choices" else None
            text_start.apply(tower, items, get_device(), choices)  # the other workers get its weights
        probe = Probe(items, categories, options, config["seed"])
    train(tower, items, categories, options, config["seed"], Path(config["tensors"]), probe)


def drawn(config: dict[str, Any]) -> tuple[ItemTower, ItemInputs, Options]:
    """The tower as it is drawn, what it is trained on, and how, of the inputs of `loop`."""
    options = Options.model_validate(config["options"])
    shape: Shape = config["shape"]
    items = inputs_of(shape, Path(config["tensors"]), Path(config["text_states"]))
    torch.manual_seed(config["seed"])
    tower = ItemTower(shape)
    if tower.text is not None:
        tower.text.load_state_dict(load_file(Path(config["inputs"]) / TEXT_LAYERS))
    if options.compile:
        tower.compile_parts()
    return tower, items, options


def train(
    tower: ItemTower,
    items: ItemInputs,
    categories: IntArray,
    options: Options,
    seed: int,
    tensors: Path,
    probe: Probe | None,
    made: Callable[..., Iterator[contrast.Drawn]] = ahead.made,
) -> None:
    """All epochs that are still to do, on the worker that calls it.

    `categories` int64[N], 0 for none; `tensors` has the names of products, for errors; `probe` measures each epoch;
    `made` makes the batches.
    """
    model = ddp.distribute(tower)
    optimizer = torch.optim.AdamW(
        contrast.parameter_groups(tower, options),
        lr=options.train.learning_rate,
        weight_decay=options.train.weight_decay,
        fused=True,
    )
    bases = [group["lr"] for group in optimizer.param_groups]
    model.train()
    device = next(model.parameters()).device
    remedy = (
        f"lower item_tower.train.learning_rate={options.train.learning_rate:g} or raise item_tower.temperature="
        f"{options.temperature:g}"
    )
    for epoch in ddp.checkpointed_epochs(
        model, optimizer, options.train, what="item tower", epochs=options.train.epochs, seed=seed, remedy=remedy
    ):
        order = contrast.order(categories, options.same_category, epoch.rng)
        steps = ddp.batches(len(items), options.train.batch_size, epoch.rng, order)
        watch = Watch(epoch, tensors)

        def drawn(step: int, epoch: ddp.Epoch = epoch, steps: list[IntArray] = steps) -> contrast.Drawn:
            rng = np.random.default_rng([seed, epoch.number, step, ddp.rank()])
            return contrast.draw(items, steps[step], tower.shape.num_keys, options, rng).to(device)

        batches = made(drawn, range(epoch.first, len(steps)), device)
        for step, batch in epoch.progress(batches, count=len(steps)):
            rate = schedule.rate(epoch.number * len(steps) + step, options.train.epochs * len(steps), warmup=WARMUP)
            schedule.set_rates(optimizer, bases, rate)
            optimizer.zero_grad()
            loss, hits = contrast.step(model, batch, options)
            optimizer.step()
            watch.add(batch.rows, loss, hits)
        loss_mean, hits_mean = watch.means()
        epoch.metrics |= {"loss": loss_mean, "twin_first": hits_mean}
        if probe is not None:
            epoch.metrics |= probe.measure(tower)
