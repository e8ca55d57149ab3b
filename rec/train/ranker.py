"""Train the ranker: DeepFM or DLRM on what retrieval returned, best epoch by users it did not train on.

The loss (`rec.train.ranking_step`) is a softmax over the candidates of one request, with `ranker.pointwise` also a
logloss. Training starts at the retrieval order (see `Reranker.start_from_retrieval`), which is also the first
contestant for the best epoch, so the ranker that is kept is never worse than its start on the held-out users. The facts
say whether it beats retrieval. Its probabilities are calibrated on the same users (`rec.train.calibrate`). With
`feedback.train` lists that servers have shown train it as well (`rec.feedback.samples`); they choose no epoch.
"""

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.train.torch import get_device
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import nn

from rec import artifact, dataset, histories, runtime, samples
from rec.config import Config, Ranker
from rec.errors import ArtifactError
from rec.evaluate.metrics import ndcg
from rec.features import items as item_features
from rec.features import requests
from rec.features.items import ItemFeatures
from rec.features.requests import Requests
from rec.features.spec import Spec
from rec.features.transfer import TransferReport, transfer
from rec.feedback import samples as feedback
from rec.feedback.samples import Lists
from rec.histories import Histories
from rec.models import fused, item_tower, user_tower
from rec.models.deepfm import DeepFM
from rec.models.dlrm import DLRM
from rec.models.fused import DenseScale, Fused
from rec.models.reranker import Reranker
from rec.schema import EXPOSURES, INTERACTIONS, PRODUCTS, SAMPLES, TENSORS, USERS
from rec.train import calibrate, checkpoint, ddp
from rec.train.calibrate import Scored
from rec.train.contest import Contest
from rec.train.listwise import target_ranks
from rec.train.ranking_step import Training, batch, update
from rec.vocab import tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

MIN_REQUESTS = 10
"""Requests below which a tenth of them cannot choose an epoch."""
CUTOFF = 10
"""Epochs are compared by NDCG at this rank."""
USERS_PER_BLOCK = 256
"""Held-out requests scored at once."""
TRANSFERRED = ("std", "re")
"""Tables that start from the item tower."""

log = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Write the `features` and `ranker` artifacts; returns counts and measures."""
    started = time.monotonic()
    inputs = {
        "samples": dataset.read_manifest(config.at("samples"), SAMPLES).content_hash,
        "item_tower": item_tower.manifest(config.at("item_tower")).content_hash,
        "user_tower": user_tower.manifest(config.at("user_tower")).content_hash,
    }
    if config.feedback.train:
        inputs["exposures"] = dataset.read_manifest(config.at("exposures"), EXPOSURES).content_hash
    h = histories.load(config.root)
    items = features(config, h)
    inputs["features"] = item_features.manifest(config.at("features")).content_hash
    options = {
        "ranker": config.ranker.identity(),
        "temperature": config.user_tower.temperature,
        "seed": config.seed,
    }
    work: dict[str, Any] = {"kind": fused.KIND, "version": fused.VERSION, "inputs": inputs, "config": options}
    target = config.at("ranker")
    storage, name = config.at("runs"), artifact.run_name(**work)
    done = artifact.finished(target, **work)
    ddp.sweep(storage, fused.KIND, keep=None if done else name)
    if done is not None:
        return {"ranker": str(target), **done.facts, "skipped": True}
    folder = ddp.inputs_folder(storage, name)
    reports, facts = prepare(folder, config, h, items)
    runtime.start(config.cpus)
    loop_config = {"folder": str(folder), "ranker": config.ranker.model_dump(mode="json"), "seed": config.seed}
    last = ddp.fit(loop, config.ranker.train, name, loop_config, storage, options="ranker.train")
    data = requests.open_requests(folder)
    contest = Contest(_training(folder, config.ranker, data))
    epochs = checkpoint.load(last, contest).epoch
    ranker = contest.winner().model.export()
    held = score(ranker, data, parts(folder)[1])
    temperature, bias = calibrate.fit(held)
    ranker.temperature.fill_(temperature)
    ranker.odds_bias.fill_(bias)
    facts |= {"model": config.ranker.model, "epochs": epochs}
    facts |= calibrate.figures(held, temperature, bias)
    facts |= {"ndcg10": round(float(contest.best_figure), 5), "best_epoch": int(contest.best_epoch)}
    facts["beats_retrieval"] = facts["ndcg10"] > facts["retrieval_ndcg10"]
    if not facts["beats_retrieval"]:
        log.warning("the ranker does not beat the retrieval order on held-out users: %s", facts)
    with artifact.write(target, **work) as draft:
        ranker.save(draft.path)
        artifact.write_json(
            draft.path / "transfer.json",
            {"mode": config.ranker.transfer, "tables": [report.to_json() for report in reports]},
        )
        draft.note(**facts)
    ddp.sweep(storage, fused.KIND)
    return {"ranker": str(target), **facts, "seconds": round(time.monotonic() - started, 1)}


def features(config: Config, h: Histories) -> ItemFeatures:
    """The `features` artifact, built when it is not there yet."""
    root, target = config.root, config.at("features")
    inputs = {
        "products": dataset.read_manifest(root / "products", PRODUCTS).content_hash,
        "users": dataset.read_manifest(root / "users", USERS).content_hash,
        "events": dataset.read_manifest(root / "events", INTERACTIONS).content_hash,
        "vocabulary": tensorize.manifest(root / "vocabulary").content_hash,
        "tensors": dataset.read_manifest(root / "tensors", TENSORS).content_hash,
    }
    inputs_in_use = sorted({"std", "re", "profile"} & {*config.item_tower.inputs, *config.user_tower.inputs})
    options = {
        "history": config.user_tower.history,
        "re_tokens": config.ranker.re_tokens,
        "inputs": inputs_in_use,
    }
    work: dict[str, Any] = {
        "kind": item_features.KIND,
        "version": item_features.VERSION,
        "inputs": inputs,
        "config": options,
    }
    vectors = load_numpy(root / "user_tower" / "item_vectors.safetensors")["item_vectors"]
    if artifact.finished(target, **work) is None:
        made = item_features.build(
            dataset.read(root / "products", PRODUCTS),
            dataset.read(root / "tensors", TENSORS),
            StdVocabulary.load(root / "vocabulary" / "std.toml"),
            re_rows=ReVocabulary.load(root / "vocabulary" / "re.json").num_tokens,
            re_length=config.ranker.re_tokens,
            history=config.user_tower.history,
            popularity=samples.training_popularity(h),
            profiles=h.profiles,
            profile_names=h.profile_names,
            inputs=inputs_in_use,
            vectors=vectors,
        )
        with artifact.write(target, **work) as draft:
            made.save(draft.path)
            draft.note(items=len(made.std), sparse=len(made.spec.sparse), dense=len(made.spec.dense))
    return item_features.load(target, vectors)


def prepare(
    folder: Path, config: Config, h: Histories, items: ItemFeatures
) -> tuple[list[TransferReport], dict[str, Any]]:
    """Write what the workers read into `folder`: features of all requests, who is held out, the start."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = samples.load(config.root, h, items.history)
    if len(found.states) < MIN_REQUESTS:
        raise ArtifactError(
            f"{config.at('samples')} has {len(found.states)} requests, too few to train and to choose an epoch "
            f"(at least {MIN_REQUESTS}): give more events, or raise ranker.candidates"
        )
    count = len(found.states)
    order = np.random.default_rng(config.seed).permutation(count)
    held_count = max(round(count * config.ranker.holdout), 1)
    held, train = np.sort(order[:held_count]), np.sort(order[held_count:])
    lists = _lists(config, h, found.users[held])
    requests.write(
        folder,
        items,
        found.states + lists.states,
        found.candidates + lists.candidates,
        np.concatenate([found.at, lists.at]),
        np.concatenate([found.labels, lists.labels]),
        samples.past_popularity(h),
        {count + number: kept for number, kept in enumerate(lists.kept)},
    )
    data = requests.open_requests(folder)
    train = np.concatenate([train, np.arange(count, len(data))])
    save_numpy({"train": train, "held": held}, folder / "parts.safetensors")
    model, reports = fresh(config, items, data, train)
    save_file(model.state_dict(), folder / "start.safetensors")
    artifact.write_json(folder / "spec.json", items.spec.to_json())
    facts = {
        "requests": len(data),
        "rows": len(data.rows),
        "exposures": len(lists.states),
        "exposure_share": round(len(lists.states) / len(train), 4),
        "held_out": len(held),
        "retrieval_ndcg10": round(float(ndcg(data.labels[held], CUTOFF).mean()), 5),
    }
    return reports, facts


def _lists(config: Config, h: Histories, held: NDArray[np.int64]) -> Lists:
    """The samples of shown lists that train: no choice of the users `held`, who choose the epoch."""
    if not config.feedback.train:
        return feedback.NOTHING
    found = feedback.load(config.at("exposures"), h)
    return found.where(~np.isin(found.users, held))


def fresh(
    config: Config, items: ItemFeatures, data: Requests, train: NDArray[np.int64]
) -> tuple[Reranker, list[TransferReport]]:
    """The model at its start: normalisers of the training requests, transferred tables, retrieval order."""
    options = config.ranker
    scale = {name: torch.from_numpy(values) for name, values in data.scale(train).items()}
    model = build(options, items.spec, DenseScale(**scale), config.seed)
    model.start_from_retrieval(config.user_tower.temperature)
    reports = []
    if options.transfer != "none":
        tower = load_numpy(config.at("item_tower") / "item_tower.safetensors")
        occurs = data.occurring(items, train)
        for table in TRANSFERRED:
            weight = model.table(table)
            begun, report = transfer(
                table,
                weight.detach().numpy(),
                tower[f"{table}_table.weight"],
                occurs[table],
                model.table_std,
                options.transfer,
            )
            weight.data.copy_(torch.from_numpy(begun))
            reports.append(report)
    return model, reports


def build(options: Ranker, spec: Spec, scale: DenseScale, seed: int) -> Reranker:
    """The model that the recipe names, before its start."""
    dim, hidden, dropout = options.embedding_dim, options.hidden, options.dropout
    if options.model == "dlrm":
        return DLRM(spec, scale, dim=dim, bottom=options.bottom, hidden=hidden, dropout=dropout, seed=seed)
    return DeepFM(spec, scale, dim=dim, hidden=hidden, dropout=dropout, seed=seed)


def score(ranker: Fused, data: Requests, users: NDArray[np.int64]) -> Scored:
    """The ranker's scores of all candidates of the given requests."""
    blocks = [users[start : start + USERS_PER_BLOCK] for start in range(0, len(users), USERS_PER_BLOCK)]
    scores = np.concatenate([ranker.score(data.inputs(block)) for block in blocks])
    return Scored(scores, data.offsets[users + 1] - data.offsets[users], np.asarray(data.labels[users]))


def evaluate(model: Reranker, data: Requests, users: NDArray[np.int64]) -> float:
    """NDCG@10 of the model's order of the given requests."""
    found = score(model.export().to("cpu"), data, users)
    return float(ndcg(target_ranks(found.scores, found.counts, found.labels), CUTOFF).mean())


def loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs; `config` holds the work folder, the ranker options and the seed."""
    folder, options = Path(config["folder"]), Ranker.model_validate(config["ranker"])
    data = requests.open_requests(folder)
    train, held = parts(folder)
    contest = Contest(_training(folder, options, data))
    device, model = get_device(), contest.current.model
    wrapped = ddp.distribute(contest)
    optimizer = contest.current.optimizer(options.train.learning_rate, options.train.weight_decay)
    size = requests_per_step(data, options)
    remedy = f"lower ranker.train.learning_rate={options.train.learning_rate}"
    for epoch in ddp.checkpointed_epochs(
        wrapped,
        optimizer,
        options.train,
        what="ranker",
        epochs=options.train.epochs,
        seed=config["seed"],
        remedy=remedy,
    ):
        if contest.stale(epoch.number, options.patience):
            break
        if epoch.number == epoch.first == 0:
            contest.judge(ddp.from_first(evaluate(model, data, held)), 0)
        contest.train()
        steps = ddp.batches(len(train), size, epoch.rng)
        uniform = epoch.rng.random(len(train)) if options.negatives else None  # by request: the same on every worker
        before = epoch.number * len(steps)
        for step, rows in epoch.progress(steps[epoch.first :], count=len(steps)):
            drawn = None if uniform is None else uniform[rows]
            given = batch(data, train[rows], options.negatives, drawn).to(device)
            frozen = transferred(model) if before + step < options.freeze_steps else []
            epoch.add(loss=update(wrapped, optimizer, given, frozen))
        contest.eval()
        epoch.metrics["loss"] = epoch.mean("loss", len(steps))
        epoch.metrics["ndcg10"] = ddp.from_first(evaluate(model, data, held))
        contest.judge(epoch.metrics["ndcg10"], epoch.number + 1)


def parts(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The requests that train and those that choose the epoch, from the work folder."""
    found = load_numpy(folder / "parts.safetensors")
    return found["train"], found["held"]


def requests_per_step(data: Requests, options: Ranker) -> int:
    """How many requests have together no more rows than a batch may have."""
    widest = int(np.diff(data.offsets).max())
    return max(options.train.batch_size // min(widest, 1 + (options.negatives or widest)), 1)


def transferred(model: Reranker) -> list[nn.Parameter]:
    """The tables that start from the item tower."""
    return [model.table(name) for name in TRANSFERRED]


def _training(folder: Path, options: Ranker, data: Requests) -> Training:
    """Model and loss as training starts."""
    return Training(start(folder, options), options.pointwise, len(data.rows) / len(data))


def start(folder: Path, options: Ranker) -> Reranker:
    """The model as it starts, from the work folder."""
    state = load_file(folder / "start.safetensors")
    spec = Spec.from_json(json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    model = build(options, spec, DenseScale(*(state[name] for name in DenseScale.NAMES)), seed=0)
    model.load_state_dict(state)
    return model
