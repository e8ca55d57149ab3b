"""What the ranker costs beside deepctr-torch's own code on the same requests, all on one thread.

score100.ms              the exported ranker on the candidates of one request, ids and numbers ready
score16x100.ms           the same per request where 16 are scored together
fused.over.deepctr       deepctr-torch's forward of the same 100 rows over `score100.ms`
train.rows_per_s         rows/s of the training step, batches made and loaded included
train.over.deepctr       over the rows/s of deepctr-torch's `.fit` at its default batch size, on the same rows
train.over.deepctr.batch the same where `.fit` is told the recipe's batch size

Rates are medians of ROUNDS runs in turn.
"""

import contextlib
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from rec.config import Ranker
from rec.evaluate.benchmark import Figures, figure
from rec.features.requests import Requests
from rec.models import deepfm
from rec.models.reranker import Reranker
from rec.train.ranking_step import Training, batch, update

ROUNDS = 3
CALLS, WARM_UP = 300, 20
TOGETHER = 16
SCORE_GOAL_MS, TOGETHER_GOAL_MS, FUSED_GOAL, TRAIN_GOAL = 2.0, 1.0, 10.0, 3.0


def measure(model: Reranker, data: Requests, options: Ranker, prefix: str) -> Figures:
    """Figures named `prefix`.NAME of a model at its start; those against deepctr-torch only for its own model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {f"{prefix}.{name}": value for name, value in _measured(model, data, options).items()}
    finally:
        torch.set_num_threads(threads)


def _measured(model: Reranker, data: Requests, options: Ranker) -> Figures:
    size = max(options.train.batch_size // int(np.diff(data.offsets).max()), 1)
    users = np.arange(min(len(data), size * max(1, 160_000 // options.train.batch_size)))
    one, many = data.inputs(users[:1]), data.inputs(users[:TOGETHER])
    ranker = model.export()
    alone = _median_ms(lambda: ranker.score(one))
    together = _median_ms(lambda: ranker.score(many)) / TOGETHER
    figures = {
        "score100.ms": figure(round(alone, 3), "ms", goal=SCORE_GOAL_MS),
        f"score{TOGETHER}x100.ms": figure(round(together, 3), "ms", goal=TOGETHER_GOAL_MS),
    }
    if not isinstance(model, deepfm.DeepFM):
        figures["train.rows_per_s"] = figure(round(_steps(model, data, users, size, options)), "rows/s")
        return figures
    own = torch.from_numpy(_matrix(model, data, users[:1]))
    net = model.net.eval()

    def theirs() -> None:
        with torch.no_grad():
            net(own)

    ratios = []
    for _ in range(ROUNDS):
        ratios.append(_median_ms(theirs) / _median_ms(lambda: ranker.score(one)))
    figures["fused.over.deepctr"] = figure(round(float(np.median(ratios)), 2), "times", goal=FUSED_GOAL)
    rows = _matrix(model, data, users)
    labels = _labels(data, users)
    ours, default, same = [], [], []
    for _ in range(ROUNDS):
        ours.append(_steps(model, data, users, size, options))
        default.append(_fit(model, options, rows, labels, None))
        same.append(_fit(model, options, rows, labels, options.train.batch_size))
    rate = float(np.median(ours))
    figures["train.rows_per_s"] = figure(round(rate), "rows/s")
    figures["train.over.deepctr"] = figure(round(rate / float(np.median(default)), 2), "times", goal=TRAIN_GOAL)
    figures["train.over.deepctr.batch"] = figure(round(rate / float(np.median(same)), 2), "times", goal=TRAIN_GOAL)
    return figures


def _median_ms(call: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def _steps(model: Reranker, data: Requests, users: NDArray[np.int64], size: int, options: Ranker) -> float:
    """Rows/s of one pass over the requests with the stage's own step; the weights it learns change no time."""
    training = Training(model, options.pointwise, len(data.rows) / len(data)).train()
    optimizer = training.optimizer(options.train.learning_rate, options.train.weight_decay)
    started = time.perf_counter()
    for start in range(0, len(users), size):
        update(training, optimizer, batch(data, users[start : start + size]))
    seconds = time.perf_counter() - started
    model.eval()
    return len(data.flat(users)) / seconds


def _fit(
    model: deepfm.DeepFM,
    options: Ranker,
    rows: NDArray[np.float32],
    labels: NDArray[np.float32],
    batch_size: int | None,
) -> float:
    """Rows/s of one epoch of deepctr-torch's own DeepFM of the same sizes, as its users train it."""
    columns = deepfm.columns(model.spec, model.dim)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        net = deepfm.deepctr().models.DeepFM(
            columns, columns, dnn_hidden_units=tuple(options.hidden), dnn_dropout=options.dropout
        )
        net.compile("adam", "binary_crossentropy")
        given = {name: rows[:, first:last] for name, (first, last) in net.feature_index.items()}
        started = time.perf_counter()
        net.fit(given, labels, batch_size=batch_size, epochs=1, verbose=0)
    return len(rows) / (time.perf_counter() - started)


def _matrix(model: Reranker, data: Requests, users: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[t, columns] as deepctr-torch reads it."""
    inputs = data.inputs(users)
    scaled = model.scale(torch.from_numpy(inputs.dense)).numpy()
    return np.concatenate([inputs.sparse, inputs.varlen, scaled], axis=1).astype(np.float32)


def _labels(data: Requests, users: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[t] 1 for the target of each request."""
    counts = data.offsets[users + 1] - data.offsets[users]
    found = np.zeros(counts.sum(), np.float32)
    found[np.cumsum(counts) - counts + data.labels[users]] = 1
    return found
