"""Train the user tower on frozen item vectors: softmax over many items at every position of the history.

Only training events are seen: all but the last two of a user with three or more. The epoch that is kept is the best
one at the second last events of some of them, which is the field's protocol; they choose it and nothing else.
"""

import math
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
from rec.evaluate import metrics
from rec.histories import Histories
from rec.models import latent_semantics, text_encoder
from rec.models.item_table import ItemTable
from rec.models.latent_semantics import LatentSemantics
from rec.models.user_tower import KIND, VERSION, Shape, UserTower
from rec.retrieval import search
from rec.schema import INTERACTIONS, PRODUCTS, TENSORS, USERS, vectors
from rec.train import checkpoint, curves, ddp, epochs, softmax
from rec.train.contest import Contest
from rec.train.sequences import Batch, Windows, last_windows, windows
from rec.train.text_start import whitening

MADE_BY = "python jobs/train_user.py"
INPUTS = "inputs.safetensors"
VALIDATION_USERS = 4_000
VALIDATION_K = 10
START_SAMPLE = 50_000
"""Items, evenly spread over the catalogue, whose content gives the principal components."""


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

    def users(self, batch: Batch, history: Tensor, input_dropout: float) -> Tensor:
        """Unit vectors float32[T, d], given the item vectors `history` float32[B, L, d]; each whole input of a user is
        hidden with probability `input_dropout`."""
        sequences = batch.sequences
        behaviour = self.tower.behaviour(history, sequences)
        owners = sequences.owners
        drawn = torch.rand(3, len(sequences.lengths), device=owners.device)
        hidden = drawn[:, owners] < input_dropout  # bool[3, T]
        behaviour = torch.where(hidden[0, :, None], behaviour[sequences.starts[owners]], behaviour)
        contexts = self.texts[batch.contexts.masked_fill(hidden[1], 0)]
        profiles = batch.profiles[owners].masked_fill(hidden[2, :, None], torch.nan)
        return self.tower.combine(behaviour, contexts, profiles)

    def export(self) -> NDArray[np.float32]:
        """Unit vectors float32[N, d] of all items, as users' vectors are compared with them."""
        return self.table.export(self.tower.adapt)

    def forward(self, batch: Batch, options: Options) -> Tensor:
        """Mean loss over the counted positions of the batch."""
        items = batch.sequences.items
        targets = batch.targets[batch.counted]
        rows, log_q = self.candidates(targets)
        read = torch.unique(torch.cat([rows, items.flatten()]))  # what the step needs, each item once
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=options.train.precision == "bfloat16"):
            vectors = self.table(read, self.tower.adapt)
            users = self.users(batch, vectors[torch.searchsorted(read, items)], options.input_dropout)[batch.counted]
        users, vectors = users.float() / options.temperature, vectors[torch.searchsorted(read, rows)].float()
        place = torch.searchsorted(rows, targets)
        if self.candidates.all:
            return softmax.over_all(users, vectors, place, log_q)
        return softmax.cross_entropy(users @ vectors.T, place, log_q)


def validation_users(h: Histories, seed: int) -> NDArray[np.int64]:
    """Ascending indices of the users whose second last event chooses the epoch, drawn by seed."""
    users = histories.leave_one_out(h).ranker_users
    if len(users) <= VALIDATION_USERS:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, VALIDATION_USERS, replace=False))


def validate(model: Training, data: Windows, *, exclude_seen: bool) -> dict[str, float]:
    """Recall and NDCG at 10 on the last event of each window, over all items; with `exclude_seen`, over those that the
    user did not have before. Items launched later are not left out, as evaluation does.
    """
    batch = data.batch(np.arange(len(data.users))).to(model.tower.bos.device)
    last = batch.sequences.starts + batch.sequences.lengths
    vectors = model.export()
    with torch.inference_mode():
        history = torch.from_numpy(vectors).to(last.device)[batch.sequences.items]
        users = model.users(batch, history, 0.0)[last].cpu().numpy()
    targets = data.h.items[data.ends - 1]
    firsts = data.h.offsets[data.users] if exclude_seen else data.ends - 1
    exclude = [data.h.items[s : e - 1] for s, e in zip(firsts, data.ends, strict=True)]
    found, _ = search(users, vectors, VALIDATION_K, exclude)
    hit = found == targets[:, None]  # bool[U, K]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1), metrics.MISSED)
    return {
        "recall10": float(metrics.recall(ranks, VALIDATION_K).mean()),
        "ndcg10": float(metrics.ndcg(ranks, VALIDATION_K).mean()),
    }


def build(
    data: Windows, content: NDArray[np.float32], texts: NDArray[np.float32], options: Options, encoder: str
) -> Training:
    """The module before training; `content` is float32[N, d + k] (see `UserTower.adapt`), `texts` float32[C + 1, W],
    row 0 zeros."""
    counts = data.target_counts
    mean, std = histories.profile_statistics(data.h.profiles)
    shape = Shape(
        width=content.shape[1] - options.semantics,
        history=options.history,
        layers=options.layers,
        heads=options.heads,
        convolution=options.convolution,
        dropout=options.dropout,
        adapter=options.adapter,
        adapter_dropout=options.adapter_dropout,
        semantics=options.semantics,
        inputs=tuple(options.inputs),
        text_encoder=encoder,
        text_width=texts.shape[1],
        profile_names=tuple(data.h.profile_names),
        profile_mean=tuple(mean.tolist()),
        profile_std=tuple(std.tolist()),
    )
    tower = UserTower(shape)
    if options.semantics:
        _start(tower, content)
    bound = options.delta_norm if options.content else math.inf
    table = ItemTable(content, np.flatnonzero(counts), bound, shape.width)
    candidates = softmax.Candidates(torch.from_numpy(counts), options.cold_weight, options.num_negatives)
    return Training(tower, table, candidates, texts)


@torch.no_grad()
def _start(tower: UserTower, content: NDArray[np.float32]) -> None:
    """Let the adapter of an untrained tower add to the whitened principal components of the content."""
    sample = content[np.unique(np.linspace(0, len(content) - 1, min(START_SAMPLE, len(content))).astype(np.int64))]
    found = whitening(sample, tower.shape.width)
    if found is not None:
        centre, weight = found
        tower.start_weight.copy_(torch.from_numpy(weight.T))
        tower.start_bias.copy_(torch.from_numpy(-centre @ weight))


def _texts(h: Histories) -> list[str]:
    """The distinct context texts of all events but the tests, ascending."""
    return sorted({h.contexts[event] for event in np.flatnonzero(histories.events_before_test(h))} - {""})


def without_content(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Random unit rows of `shape`, float32[N, d]."""
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs; `config` holds the folders, the options and the seed."""
    options, seed = Options.model_validate(config["user_tower"]), config["seed"]
    model, data, validation = _prepare(config, options)

    def measure() -> tuple[dict[str, float], float] | None:
        if not len(validation.users):
            return None
        found = validate(model, validation, exclude_seen=options.exclude_seen)
        return found, found["ndcg10"]

    epochs.contested(
        model,
        len(data.users),
        lambda training, rows: training(data.batch(rows).to(model.tower.bos.device), options),
        measure,
        train=options.train,
        patience=options.patience,
        seed=seed,
        what="user tower",
        remedy=f"lower user_tower.train.learning_rate={options.train.learning_rate} or raise user_tower.temperature="
        f"{options.temperature}",
    )


def _prepare(config: dict[str, Any], options: Options) -> tuple[Training, Windows, Windows]:
    """The module before training, the training windows and the validation windows: the same in every process."""
    h = histories.load(Path(config["root"]))
    arrays = load_numpy(Path(config["inputs"]) / INPUTS)
    names = {text: row for row, text in enumerate(_texts(h), start=1)}
    ends = histories.leave_one_out(h).train_end
    held = validation_users(h, config["seed"])
    data = windows(h, ends, options.history, names, exclude_seen=options.exclude_seen)
    validation = last_windows(h, held, ends[held] + 1, options.history, names, exclude_seen=options.exclude_seen)
    torch.manual_seed(config["seed"])
    return build(data, arrays["content"], arrays["texts"], options, config["text_encoder"]), data, validation


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
    options = config.user_tower
    if options.semantics:
        manifests["tensors"] = dataset.read_manifest(config.at("tensors"), TENSORS)
    inputs = {name: manifest.content_hash for name, manifest in manifests.items()}
    made_by = {"user_tower": options.identity(), "seed": config.seed}
    if "context" in options.inputs:
        made_by["text"] = config.text.identity() | text_encoder.files(config.text, artifact.peek(target))
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), artifact.run_name(**work)
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
    items = item_vectors(config.root, width)
    if not options.content:
        items = without_content(items.shape, config.seed)
    semantics = None
    if options.semantics:
        tokens = latent_semantics.counts(config.at("tensors"))
        semantics = LatentSemantics.fit(tokens, options.semantics, config.seed)
        items = latent_semantics.beside(items, semantics(tokens))
    _write_inputs(folder, h, items, config.text if "context" in options.inputs else None)
    runtime.start(config.cpus)
    loop_config = {
        "root": str(config.root),
        "inputs": str(folder),
        "user_tower": options.model_dump(mode="json"),
        "text_encoder": config.text.encoder if "context" in options.inputs else "",
        "seed": config.seed,
    }
    last = ddp.fit(loop, options.train, name, loop_config, storage, options="user_tower.train")
    model, data, _ = _prepare(loop_config, options)
    contest = Contest(model)
    history = checkpoint.load(last, contest).history
    best = int(contest.best_epoch)
    with artifact.write(target, **work) as draft:
        trained = contest.winner().eval()
        trained.tower.save(draft.path, trained.export())
        if semantics is not None:
            semantics.save(draft.path)
        curves.write(draft.path, f"the user tower of {config.name}", history)
        draft.note(items=h.num_items, warm_items=int((data.target_counts > 0).sum()))
        draft.note(users=len(np.unique(data.users)), windows=len(data.users))
        draft.note(epochs=len(history), best_epoch=best, metrics=history[best - 1])
    ddp.sweep(storage, KIND)
    found = artifact.read(target, kind=KIND, version=VERSION, made_by=MADE_BY)
    return _facts(target, found) | {"seconds": round(time.monotonic() - started, 1)}


def item_vectors(root: Path, width: int) -> NDArray[np.float32]:
    """The frozen item vectors float32[N, d] of the `vectors` dataset, in item-row order."""
    column = dataset.read(root / "vectors", vectors(width), ["vector"]).column("vector").combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(-1, width)


def _write_inputs(folder: Path, h: Histories, content: NDArray[np.float32], text: Text | None) -> None:
    """Content of the items and the vectors of the context texts, for all workers; the same bytes in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    said = np.zeros((0, 0), np.float32)
    if text is not None:
        encoder = text_encoder.load(text)
        said = encoder.embed(_texts(h)).reshape(-1, encoder.width)
    texts = np.concatenate([np.zeros((1, said.shape[1]), np.float32), said])
    save_numpy({"content": content, "texts": texts}, folder / INPUTS)


def _facts(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {"stage": "train_user", "artifact": str(target), **manifest.facts}
