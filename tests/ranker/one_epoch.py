"""Trains a ranker for one epoch from a work folder and prints the most memory that was its own, in MiB.

What is mapped from files counts as theirs: the kernel takes it back whenever somebody needs the room.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from rec.config import Ranker
from rec.features import requests
from rec.train import ranker
from rec.train.contest import Contest
from rec.train.ranking_step import Training, batch, update


def own_mib() -> float:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main(folder: Path, options: Ranker) -> None:
    """One epoch over all training requests."""
    torch.set_num_threads(1)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], own_mib())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    data = requests.open_requests(folder)
    contest = Contest(Training(ranker.start(folder, options), options.pointwise, len(data.rows) / len(data)))
    optimizer = contest.current.optimizer(options.train.learning_rate, options.train.weight_decay)
    contest.train()
    train, _ = ranker.parts(folder)
    order, size = np.random.default_rng(0).permutation(train), ranker.requests_per_step(data, options)
    for start in range(0, len(order), size):
        given = batch(data, order[start : start + size], options.negatives, None)
        update(contest, optimizer, given.to(torch.device("cpu")), [])
    done.set()
    watcher.join()
    print(peak[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Ranker.model_validate_json(sys.argv[2]))
