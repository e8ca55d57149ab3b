"""Train the user tower on frozen item vectors: softmax over many items at every position of the history.

Only training events are seen: all but the last two of a user with three or more. A small part of the users
keeps its last training event out, and recall@10 on these is logged with every epoch.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from torch import Tensor, nn

from rec import artifact, dataset, histories, runtime
from rec.artifact import Manifest
from rec.config import Config, Text
from rec.config import UserTower as Options
from rec.errors import ArtifactError
from rec.histories import Histories
from rec.models import text_encoder
from rec.models.item_table import ItemTable
from rec.models.user_tower import KIND, VERSION, Shape, UserTower
from rec.retrieval import search
from rec.schema import INTERACTIONS, PRODUCTS, USERS, vectors
from rec.train import ddp, schedule, softmax
from rec.train.sequences import Batch, Windows, first_time, last_windows, windows

MADE_BY = "python jobs/train_user.py"
INPUTS = "inputs.safetensors"
VALIDATION_SHARE = 0.03
VALIDATION_USERS = 1_000
VALIDATION_K = 10
WARMUP = 0.05
"""Share of all steps over which the learning rate rises."""


class Training(nn.Module):
    """Tower, item table and loss as one module, so that one forward pass is one step of one worker."""

    texts: Tensor

    def __init__(
        self, tower: UserTower, table: ItemTable, candidates: softmax.Candidates, texts: NDArray[np.float32]
    ) -> None:
        """`texts` is float32[C + 1, W]: row 0 is zeros, for no text."""
        super().__init__()
        self.tower, self.table, self.candidates = tower, table, candidates
        self.register_buffer("texts", torch.from_numpy(texts), persistent=False)

    def users(self, batch: Batch, input_dropout: float) -> Tensor:
        """Unit vectors float32[T, d]; each whole input of a user is hidden with probability `input_dropout`."""
        sequences = batch.sequences
        behaviour = self.tower.behaviour(self.table(sequences.items), sequences)
        owners = sequences.owners
        drawn = torch.rand(3, len(sequences.lengths), device=owners.device)
        hidden = drawn[:, owners] < input_dropout  # bool[3, T]
        behaviour = torch.where(hidden[0, :, None], behaviour[sequences.starts[owners]], behaviour)
        contexts = self.texts[batch.contexts.masked_fill(hidden[1], 0)]
        profiles = batch.profiles[owners].masked_fill(hidden[2, :, None], torch.nan)
        return self.tower.combine(behaviour, contexts, profiles)

    def forward(self, batch: Batch, options: Options) -> Tensor:
        """Mean loss over the counted positions of the batch."""
        users = self.users(batch, options.input_dropout)[batch.counted]
        targets = batch.targets[batch.counted]
        rows, log_q = self.candidates(targets)
        scores = users @ self.table(rows).T / options.temperature  # float32[t, C]
        return softmax.cross_entropy(scores, torch.searchsorted(rows, targets), log_q)


def hold_out(h: Histories, ends: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """User indices whose last training event is kept out of training: those with two or more, drawn by seed."""
    repeated = ~first_time(h)[np.maximum(ends - 1, 0)]
    able = np.flatnonzero((ends - h.offsets[:-1] >= 2) & ~repeated)
    count = min(int(len(able) * VALIDATION_SHARE), VALIDATION_USERS)
    return np.sort(np.random.default_rng(seed).choice(able, count, replace=False))


def validate(model: Training, data: Windows, device: torch.device) -> float:
    """Recall@10 on the last event of each window, over all items that the window does not hold before."""
    batch = data.batch(np.arange(len(data.users))).to(device)
    last = batch.sequences.starts + batch.sequences.lengths
    with torch.inference_mode():
        found = model.users(batch, 0.0)[last].cpu().numpy()
    targets = data.h.items[data.ends - 1]
    exclude = [data.h.items[s : e - 1] for s, e in zip(data.starts, data.ends, strict=True)]
    rows, _ = search(found, model.table.export(), VALIDATION_K, exclude)
    return float((rows == targets[:, None]).any(axis=1).mean())


def build(
    data: Windows, frozen: NDArray[np.float32], texts: NDArray[np.float32], options: Options, encoder: str
) -> Training:
    """The module before training; `frozen` is float32[N, d] unit rows, `texts` float32[C + 1, W], row 0 zeros."""
    counts = data.target_counts
    mean, std = histories.profile_statistics(data.h.profiles)
    shape = Shape(
        width=frozen.shape[1],
        history=options.history,
        layers=options.layers,
        heads=options.heads,
        dropout=options.dropout,
        inputs=tuple(options.inputs),
        text_encoder=encoder,
        text_width=texts.shape[1],
        profile_names=tuple(data.h.profile_names),
        profile_mean=tuple(mean.tolist()),
        profile_std=tuple(std.tolist()),
    )
    table = ItemTable(frozen, np.flatnonzero(counts), options.delta_norm)
    candidates = softmax.Candidates(torch.from_numpy(counts), options.cold_weight, options.num_negatives)
    return Training(UserTower(shape), table, candidates, texts)


def _texts(h: Histories) -> list[str]:
    """The distinct context texts of training events, ascending; held-out texts are not looked at."""
    return sorted({h.contexts[event] for event in np.flatnonzero(histories.training_events(h))} - {""})


def loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs; `config` holds the folders, the options and the seed."""
    options, seed = Options.model_validate(config["user_tower"]), config["seed"]
    model, data, validation = _prepare(config, options)
    wrapped = ddp.distribute(model)
    device = model.tower.bos.device
    train = options.train
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
    for epoch in ddp.checkpointed_epochs(wrapped, optimizer, epochs=train.epochs, seed=seed):
        model.train()
        steps = ddp.batches(len(data.users), train.batch_size, epoch.rng)
        total = torch.zeros((), device=device)
        for step, rows in enumerate(epoch.progress(steps, what="user tower", count=len(steps))):
            rate = schedule.rate(epoch.number * len(steps) + step, train.epochs * len(steps), warmup=WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = rate * train.learning_rate
            loss = wrapped(data.batch(rows).to(device), options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        model.eval()
        epoch.metrics["loss"] = float(total) / len(steps)
        if len(validation.users):
            epoch.metrics["recall10"] = validate(model, validation, device)


def _prepare(config: dict[str, Any], options: Options) -> tuple[Training, Windows, Windows]:
    """The module before training, the training windows and the validation windows: the same in every process."""
    h = histories.load(Path(config["root"]))
    arrays = load_numpy(Path(config["inputs"]) / INPUTS)
    names = {text: row for row, text in enumerate(_texts(h), start=1)}
    ends = histories.leave_one_out(h).train_end
    held = hold_out(h, ends, config["seed"])
    shortened = ends.copy()
    shortened[held] -= 1
    data = windows(h, shortened, options.history, names, exclude_seen=options.exclude_seen)
    validation = last_windows(h, held, ends[held], options.history, names, exclude_seen=options.exclude_seen)
    torch.manual_seed(config["seed"])
    return build(data, arrays["vectors"], arrays["texts"], options, config["text_encoder"]), data, validation


def run(config: Config) -> dict[str, Any]:
    """Train the tower and write the `user_tower` artifact; does nothing when that is done already."""
    target = config.at(KIND)
    width = config.item_tower.width
    manifests = {
        "products": dataset.read_manifest(config.at("products"), PRODUCTS),
        "users": dataset.read_manifest(config.at("users"), USERS),
        "events": dataset.read_manifest(config.at("events"), INTERACTIONS),
        "vectors": dataset.read_manifest(config.at("vectors"), vectors(width)),
    }
    inputs = {name: manifest.content_hash for name, manifest in manifests.items()}
    options = config.user_tower
    made_by = {"user_tower": options.identity(), "seed": config.seed}
    if "context" in options.inputs:
        made_by["text"] = config.text.identity()
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), ddp.run_name(**work)
    done = artifact.finished(target, **work)
    ddp.sweep(storage, KIND, keep=None if done else name)
    if done is not None:
        return _facts(target, done) | {"skipped": True}
    started = time.monotonic()
    folder = ddp.inputs_folder(storage, name)
    h = histories.load(config.root)
    if not len(h.items):
        raise ArtifactError(
            f"{config.at('events')} has no event on a known product ({h.unknown} on unknown ones): "
            "give events whose product_id is in the products file, then run `python jobs/ingest.py` again"
        )
    _write_inputs(folder, h, item_vectors(config.root, width), config.text if "context" in options.inputs else None)
    runtime.start(config.cpus)
    loop_config = {
        "root": str(config.root),
        "inputs": str(folder),
        "user_tower": options.model_dump(mode="json"),
        "text_encoder": config.text.encoder if "context" in options.inputs else "",
        "seed": config.seed,
    }
    checkpoint = ddp.fit(loop, options.train, name, loop_config, storage)
    model, data, _ = _prepare(loop_config, options)
    ddp.load_checkpoint(checkpoint, model)
    with artifact.write(target, **work) as draft:
        model.eval().tower.save(draft.path, model.table.export())
        draft.note(items=h.num_items, warm_items=int((data.target_counts > 0).sum()))
        draft.note(users=len(np.unique(data.users)), windows=len(data.users))
        draft.note(epochs=options.train.epochs, metrics=ddp.metrics_of(checkpoint))
    ddp.sweep(storage, KIND)
    found = artifact.read(target, kind=KIND, version=VERSION, made_by=MADE_BY)
    return _facts(target, found) | {"seconds": round(time.monotonic() - started, 1)}


def item_vectors(root: Path, width: int) -> NDArray[np.float32]:
    """The frozen item vectors float32[N, d] of the `vectors` dataset, in item-row order."""
    column = dataset.read(root / "vectors", vectors(width), ["vector"]).column("vector").combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(-1, width)


def _write_inputs(folder: Path, h: Histories, frozen: NDArray[np.float32], text: Text | None) -> None:
    """Frozen vectors and the vectors of the context texts, for all workers; the same bytes in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    said = np.zeros((0, 0), np.float32)
    if text is not None:
        encoder = text_encoder.load(text)
        said = encoder.embed(_texts(h)).reshape(-1, encoder.width)
    texts = np.concatenate([np.zeros((1, said.shape[1]), np.float32), said])
    save_numpy({"vectors": frozen, "texts": texts}, folder / INPUTS)


def _facts(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {"stage": "train_user", "artifact": str(target), **manifest.facts}
