"""Train the fit head on events with a size and feedback, and measure it on each user's last one.

The loss is the negative log-likelihood as it is, without weights or resampling by class, so that chances stay
calibrated; what is learned of single products and sizes has a normal prior, whose share of the loss is that of a
posterior's mode. The epoch that is kept has the best log-loss at second last events.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rec import artifact, dataset, histories, runtime, worn
from rec.artifact import Manifest
from rec.config import Config
from rec.config import Fit as Options
from rec.errors import ArtifactError
from rec.evaluate import fit as measures
from rec.evaluate.benchmark import Figures
from rec.histories import Histories
from rec.models import fit_head
from rec.models.fit_head import KIND, VERSION, FitHead, Garments, Items, Past, Shape
from rec.models.size_table import SizeTable, name_of, numbers_of
from rec.schema import INTERACTIONS, PRODUCTS, TENSORS, USERS
from rec.sizes import FITS
from rec.train import checkpoint, curves, ddp, epochs, questions
from rec.train.contest import Contest
from rec.train.questions import Batch, Questions, Split
from rec.vocab import tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import UNKNOWN, StdVocabulary
from rec.worn import Worn

MADE_BY = "python jobs/train_fit.py"
REPORT = "report.json"
GARMENT_KIND = "category"
"""STD key whose first value is a garment's kind."""
CHUNK = 8_192
"""Questions that are answered at once."""
RARE = 0.01
"""A product that was in no size is offered in those of its kind that have at least this share of its events."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of N products without any event."""

    kind: NDArray[np.int64]
    """int64[N] garment kinds, consecutive; 0 for none."""
    num_kinds: int
    ids: NDArray[np.int64]
    """STD ids and, above them, RE ids of all products, flat."""
    offsets: NDArray[np.int64]
    """int64[N + 1] range of each product in `ids`."""
    num_ids: int


class ItemSide(nn.Module):
    """Location, spread and vector of products: of their content, and of the first two a bounded part of their own."""

    kind: Tensor
    ids: Tensor
    offsets: Tensor

    def __init__(self, content: Content, width: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        for name in ("kind", "ids", "offsets"):
            self.register_buffer(name, torch.from_numpy(getattr(content, name)), persistent=False)
        self.own = nn.Parameter(torch.zeros(len(content.kind), 2))
        self.scales = nn.Parameter(torch.zeros(content.num_ids, 2))
        self.vectors = nn.Parameter(0.3 * torch.randn(content.num_ids, width))

    def forward(self, rows: Tensor) -> Tensor:
        """float32[..., 2 + r] of item rows int64[...]: location, spread, vector."""
        distinct, places = torch.unique(rows, return_inverse=True)
        counts = self.offsets[distinct + 1] - self.offsets[distinct]
        owners = torch.repeat_interleave(torch.arange(len(distinct), device=rows.device), counts)
        firsts = counts.cumsum(0) - counts
        within = torch.arange(len(owners), device=rows.device) - firsts[owners]
        ids = self.ids[self.offsets[distinct][owners] + within]
        values = torch.cat([self.scales, self.vectors], dim=1)[ids]
        made = values.new_zeros(len(distinct), values.shape[1]).index_add(0, owners, values)
        made = made / counts.clamp(min=1)[:, None]
        if self.bound:
            own = self.bound * torch.tanh(self.own[distinct] / self.bound)
            made = made + nn.functional.pad(own, (0, made.shape[1] - 2))
        return made[places]


class Training(nn.Module):
    """Head, products and loss as one module, so that one forward pass is one step of one worker."""

    popularity: Tensor

    def __init__(self, head: FitHead, items: ItemSide, popularity: NDArray[np.float32]) -> None:
        """`popularity` is that of `fit_head.Items`."""
        super().__init__()
        self.head, self.items = head, items
        self.register_buffer("popularity", torch.from_numpy(popularity), persistent=False)
        self._sizes = [torch.from_numpy(part) for part in _all_sizes(head.sizes)]

    def log_chances(self, batch: Batch) -> Tensor:
        """float32[Q, 3] log P of each class."""
        found, _ = self._answers(batch)
        return found

    def choices(self, batch: Batch) -> Tensor:
        """float32[Q, M] log P of each of the size table's `written` to be chosen, whatever size the question has."""
        return self._answers(batch)[1]

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `log_chances` and `choices` say."""
        profiles, past, asked, owners = self._question(batch)
        found, need = self.head(profiles, past, asked, owners)
        kinds, name, pair, z = (part.to(need.device) for part in self._sizes)
        nothing = torch.zeros_like(z)
        table = self.head.chosen.size(Garments(kinds, name, pair, z, nothing, nothing, nothing[..., None]))  # [K, M]
        sizes = table[asked.kind] + self.head.chosen.of_item * asked.location[:, None]
        scores = self.head.choice(sizes, need[:, None]) + self.popularity[asked.kind]
        return found, torch.log_softmax(scores, dim=1)

    def _question(self, batch: Batch) -> tuple[Tensor, Past, Garments, Tensor]:
        made = self.items(torch.cat([batch.items[:, None], batch.past_items], dim=1))  # float32[Q, 1 + H, 2 + r]
        asked = self._garments(batch.items, batch.name, batch.pair, batch.z, made[:, 0])
        garments = self._garments(batch.past_items, batch.past_name, batch.past_pair, batch.past_z, made[:, 1:])
        owners = torch.arange(len(batch.items), device=batch.items.device)
        return batch.profiles, Past(garments, batch.past_fits, batch.past_known), asked, owners

    def _garments(self, items: Tensor, name: Tensor, pair: Tensor, z: Tensor, made: Tensor) -> Garments:
        return Garments(self.items.kind[items], name, pair, z, made[..., 0], made[..., 1], made[..., 2:])

    def forward(self, batch: Batch, options: Options, rows: int) -> Tensor:
        """Mean loss of a batch, of feedback and of choice; the prior is spread over `rows`, all training events."""
        hidden = torch.rand(len(batch.items), device=batch.items.device) < options.profile_dropout
        profiles = batch.profiles.masked_fill(hidden[:, None], torch.nan)
        found, chosen = self._answers(replace(batch, profiles=profiles))
        loss = nn.functional.nll_loss(found, batch.fits - 1) + nn.functional.nll_loss(chosen, batch.written)
        axes = (self.head.worn, self.head.chosen)
        single = (self.items.own, self.items.scales, self.items.vectors, *(p for a in axes for p in (a.names, a.pairs)))
        return loss + sum(part.square().sum() for part in single) / (2 * options.prior**2 * rows)


def content(root: Path) -> Content:
    """Garment kinds, STD and RE ids of the products under `root`."""
    table = dataset.read(root / "tensors", TENSORS, ["std_key", "std_id", "re_id"])
    vocabulary = StdVocabulary.load(root / "vocabulary" / "std.toml")
    key = vocabulary.key_id(GARMENT_KIND)
    unknown = vocabulary.id_of(GARMENT_KIND, UNKNOWN)
    stds = table["std_id"].to_pylist()
    named = [
        next((id for of, id in zip(keys, ids, strict=True) if of == key and id != unknown), 0)
        for keys, ids in zip(table["std_key"].to_pylist(), stds, strict=True)
    ]
    there = sorted(set(named) | {0})
    bags = [
        std + [vocabulary.num_ids + id for id in re] for std, re in zip(stds, table["re_id"].to_pylist(), strict=True)
    ]
    return Content(
        kind=np.searchsorted(there, named).astype(np.int64),
        num_kinds=len(there),
        ids=np.array([id for bag in bags for id in bag], np.int64),
        offsets=np.cumsum([0, *map(len, bags)]).astype(np.int64),
        num_ids=vocabulary.num_ids + ReVocabulary.load(root / "vocabulary" / "re.json").num_tokens,
    )


def build(h: Histories, of: Worn, known: Content, options: Options) -> tuple[Training, Questions, Split]:
    """The module before training, all questions, and who trains, chooses and tests."""
    parts = questions.split(h, of.told)
    train = parts.train
    table = SizeTable.build(
        known.kind[h.items[train]],
        [of.sizes[event] for event in train],
        of.numbers[train],
        known.num_kinds,
        sorted({size for size in of.sizes if size}),
    )
    users = np.unique(np.searchsorted(h.offsets, train, side="right") - 1)
    mean, std = histories.profile_statistics(h.profiles[users])
    shape = Shape(
        width=options.width,
        history=options.history,
        profile_names=tuple(h.profile_names),
        profile_mean=tuple(mean.tolist()),
        profile_std=tuple(std.tolist()),
    )
    counts = _counts(known.kind[h.items[train]], table.places([of.sizes[event] for event in train]), table)
    module = Training(FitHead(shape, table), ItemSide(known, options.width, options.item_bound), popularity(counts))
    return module, questions.build(h, of, table, known.kind, options.history), parts


@torch.inference_mode()
def choices(module: Training, asked: Questions, events: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[Q] position in the size table's `written` that the users of `events` int64[Q] are likeliest to choose."""
    made = [np.zeros(0, np.int64)]
    for start in range(0, len(events), CHUNK):
        batch = fit_head.to(asked.batch(events[start : start + CHUNK]), module.items.own.device)
        made.append(module.choices(batch).argmax(dim=1).cpu().numpy())
    return np.concatenate(made)


@torch.inference_mode()
def chances(module: Training, asked: Questions, events: NDArray[np.int64], **hidden: bool) -> NDArray[np.float64]:
    """float64[Q, 3] of the questions `events` int64[Q]; with `profile=True` or `past=True` that part is hidden."""
    device, made = module.items.own.device, [np.zeros((0, len(FITS)))]
    for start in range(0, len(events), CHUNK):
        batch = asked.batch(events[start : start + CHUNK])
        if hidden.get("profile"):
            batch = replace(batch, profiles=torch.full_like(batch.profiles, torch.nan))
        if hidden.get("past"):
            batch = replace(batch, past_known=torch.zeros_like(batch.past_known))
        made.append(module.log_chances(fit_head.to(batch, device)).double().exp().cpu().numpy())
    return np.concatenate(made)


def loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs; `config` holds the root, the options and the seed."""
    options, seed = Options.model_validate(config["fit"]), config["seed"]
    module, asked, parts = _prepare(config, options)

    def measure() -> tuple[dict[str, float], float] | None:
        if not len(parts.validation):
            return None
        fits, found = asked.worn.fits[parts.validation], chances(module, asked, parts.validation)
        log_loss = float(measures.log_loss(fits, found).mean())
        return {"log_loss": log_loss, "auc": measures.macro_auc(fits, found)}, math.exp(-log_loss)

    epochs.contested(
        module,
        len(parts.train),
        lambda training, rows: training(
            fit_head.to(asked.batch(parts.train[rows]), module.items.own.device), options, len(parts.train)
        ),
        measure,
        train=options.train,
        patience=options.patience,
        seed=seed,
        what="fit head",
        remedy=f"lower fit.train.learning_rate={options.train.learning_rate}",
    )


def _prepare(config: dict[str, Any], options: Options) -> tuple[Training, Questions, Split]:
    root = Path(config["root"])
    torch.manual_seed(config["seed"])
    return build(histories.load(root), worn.load(root), content(root), options)


def run(config: Config) -> dict[str, Any]:
    """Train the head and write the `fit_head` artifact; does nothing when that is done already.

    Raises ArtifactError where no event has both a size and feedback.
    """
    target, options = config.at(KIND), config.fit
    inputs = {
        "products": dataset.read_manifest(config.at("products"), PRODUCTS).content_hash,
        "users": dataset.read_manifest(config.at("users"), USERS).content_hash,
        "events": dataset.read_manifest(config.at("events"), INTERACTIONS).content_hash,
        "vocabulary": tensorize.manifest(config.at("vocabulary")).content_hash,
        "tensors": dataset.read_manifest(config.at("tensors"), TENSORS).content_hash,
    }
    made_by = {"fit": options.identity(), "seed": config.seed}
    work: dict[str, Any] = {"kind": KIND, "version": VERSION, "inputs": inputs, "config": made_by}
    storage, name = config.at("runs"), artifact.run_name(**work)
    done = artifact.finished(target, **work)
    ddp.sweep(storage, KIND, keep=None if done else name)
    if done is not None:
        return _facts(target, done) | {"skipped": True}
    started = time.monotonic()
    if not worn.load(config.root).told.any():
        raise ArtifactError(
            f"{config.at('events')} has no event with both a size and how it fitted: map the columns `size` and `fit` "
            "in source.columns.events, then run `python jobs/ingest.py` again, or set fit.enabled=false"
        )
    runtime.start(config.cpus)
    loop_config = {"root": str(config.root), "fit": options.model_dump(mode="json"), "seed": config.seed}
    last = ddp.fit(loop, options.train, name, loop_config, storage, options="fit.train")
    module, asked, parts = _prepare(loop_config, options)
    contest = Contest(module)
    history = checkpoint.load(last, contest).history
    best = int(contest.best_epoch)
    trained = contest.winner().eval()
    with artifact.write(target, **work) as draft:
        fit_head.save(draft.path, trained.head, export(trained, asked))
        curves.write(draft.path, f"the fit head of {config.name}", history)
        figures = report(trained, asked, parts, config.seed) if len(parts.test) else {}
        artifact.write_json(draft.path / REPORT, {"figures": figures})
        draft.note(train=len(parts.train), validation=len(parts.validation), test=len(parts.test))
        draft.note(epochs=len(history), best_epoch=best, metrics=history[best - 1])
        draft.note(test_figures={name: [made["value"], made["ci95"]] for name, made in figures.items()})
    ddp.sweep(storage, KIND)
    found = artifact.read(target, kind=KIND, version=VERSION, made_by=MADE_BY)
    return _facts(target, found) | {"seconds": round(time.monotonic() - started, 1)}


def report(module: Training, asked: Questions, parts: Split, seed: int) -> Figures:
    """Figures of the head on the tests, beside the shares of all training events, of the item's and of the user's past,
    and beside itself without profiles and without the past. `size`: how often the size of a rental that fitted is the
    one that the head expects.
    """
    h, fits = asked.h, asked.worn.fits
    overall = measures.frequencies(fits[parts.train])
    by_item = np.zeros((h.num_items, len(FITS)))
    np.add.at(by_item, (h.items[parts.train], fits[parts.train] - 1), 1)
    before = np.zeros((1 + len(fits), len(FITS)))
    np.cumsum(fits[:, None] == np.arange(1, 1 + len(FITS)), axis=0, out=before[1:])
    owners = np.searchsorted(h.offsets, parts.test, side="right") - 1
    by_user = before[worn.earlier(h, parts.test)] - before[h.offsets[owners]]
    systems = {
        "fit_head": chances(module, asked, parts.test),
        "majority": np.tile(overall, (len(parts.test), 1)),
        "item_frequency": measures.smoothed(by_item[h.items[parts.test]], overall),
        "user_frequency": measures.smoothed(by_user, overall),
        "fit_head_without_profile": chances(module, asked, parts.test, profile=True),
        "fit_head_without_past": chances(module, asked, parts.test, past=True),
    }
    fitted = parts.test[fits[parts.test] == fit_head.FIT]
    usual = module.popularity.cpu().numpy().argmax(axis=1)[module.items.kind.cpu().numpy()[h.items[fitted]]]
    sizes = {"fit_head": choices(module, asked, fitted), "most_frequent": usual}
    return {
        **measures.compared(fits[parts.test], systems, ours="fit_head", seed=seed),
        **measures.sizes(asked.written[fitted], sizes, ours="fit_head", seed=seed),
    }


@torch.inference_mode()
def export(module: Training, asked: Questions) -> Items:
    """The products as tables, and the sizes that they were seen in, or else their kind."""
    device = module.items.own.device
    made = module.items(torch.arange(asked.h.num_items, device=device)).cpu().numpy()
    kind = module.items.kind.cpu().numpy()
    table, sized = module.head.sizes, asked.sized
    place = table.places([asked.worn.sizes[event] for event in sized])
    counts = _counts(kind[asked.h.items[sized]], place, table)
    usual = [np.flatnonzero((row > 0) & (row >= RARE * row.sum())) for row in counts]
    pairs = np.unique(np.column_stack([asked.h.items[sized], place]), axis=0)
    own = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, asked.h.num_items)))
    offered = [_each_once(mine if len(mine) else usual[of], table.written)
               for mine, of in zip(own, kind.tolist(), strict=True)]  # fmt: skip
    return Items(
        kind=kind,
        location=made[:, 0],
        spread=made[:, 1],
        vector=made[:, 2:],
        popularity=module.popularity.cpu().numpy(),
        offsets=np.cumsum([0, *map(len, offered)]).astype(np.int64),
        offered=np.concatenate([np.empty(0, np.int64), *offered]),
    )


def _all_sizes(table: SizeTable) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """kind, name, pair and z, each [K, M], of all `written` in all kinds."""
    kinds = np.repeat(np.arange(table.num_kinds), len(table.written))
    found = table.encode(kinds, table.written * table.num_kinds, np.tile(numbers_of(table.written), table.num_kinds))
    shape = (table.num_kinds, len(table.written))
    return kinds.reshape(shape), found.name.reshape(shape), found.pair.reshape(shape), found.z.reshape(shape)


def _counts(kinds: NDArray[np.int64], places: NDArray[np.int64], table: SizeTable) -> NDArray[np.int64]:
    """int64[K, M] events of each kind in each of `written`."""
    counts = np.zeros((table.num_kinds, len(table.written)), np.int64)
    np.add.at(counts, (kinds, places), 1)
    return counts


def popularity(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[K, M] log shares of counts int64[K, M]; every size counts a little more than it occurs."""
    more = counts + 0.01
    return np.log(more / more.sum(axis=1, keepdims=True)).astype(np.float32)


def _each_once(places: NDArray[np.int64], written: list[str]) -> NDArray[np.int64]:
    """Of sizes with one name the first."""
    return np.array(list({name_of(written[place]): place for place in places[::-1].tolist()}.values())[::-1], np.int64)


def _facts(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {"stage": "train_fit", "artifact": str(target), **manifest.facts}
