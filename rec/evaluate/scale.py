"""How time and memory of the first stages grow with the catalogue: synthetic garments through the jobs themselves.

    ingest      the shop's parquet files
    enrich      enrichment with every answer in the cache
    tensorize   vocabulary and tensors

Each is a job in a process of its own, as a user starts it, on a store of its own; `peak_gib` is of that process and all
that it starts, pages that processes share counted in each (an upper bound), the embedded Postgres apart.
`STAGE.peak_growth` is the peak of the largest catalogue over that of the middle one, of a tenth of its size.
`STAGE.marginal` is the time of a further product from the middle to the largest catalogue over that from the smallest
to the middle one: 1 where time is linear in rows.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from rec import dataset, postgres
from rec.config import Config, load
from rec.data.sample.many import write_shop
from rec.enrich import cache, engine
from rec.enrich.answers import Answer
from rec.enrich.backfill import edition
from rec.enrich.prompt import Body
from rec.enrich.text import shown
from rec.enrich.workers import COLUMNS
from rec.errors import RecError
from rec.evaluate.benchmark import Figures, figure
from rec.log import bar
from rec.memory import PeakMemory
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
QUICK_SIZES = {"2k": 2_000, "10k": 10_000, "40k": 40_000}
PEAK_GOAL_GIB = 6.0
MARGINAL_GOAL = 1.2
MAX_DETAILS, MAX_WORDS = 2, 4
"""Phrases of a text that its made-up answer sorts, and the words of one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one stage took of one catalogue."""

    seconds: float
    peak_gib: float


Measured = Mapping[str, Mapping[str, Taken]]
"""Size → stage → what it took."""


def measure(jobs: Path, sizes: Mapping[str, int], seed: int) -> Measured:
    """Run the stages on catalogues of these sizes; `jobs` is the folder of the job files."""
    with tempfile.TemporaryDirectory(prefix="rec-scale-") as folder:
        return {name: _measured(jobs, Path(folder) / name, rows, seed) for name, rows in sizes.items()}


def figures(taken: Measured, sizes: Mapping[str, int]) -> Figures:
    """Seconds and peaks by size and stage, products/s of the largest, and how time grows over three sizes."""
    made: Figures = {}
    for size, stages in taken.items():
        for stage, took in stages.items():
            made[f"{size}.{stage}.seconds"] = figure(round(took.seconds, 1), "s")
            made[f"{size}.{stage}.peak_gib"] = figure(round(took.peak_gib, 2), "GiB", goal=PEAK_GOAL_GIB)
    small, middle, large = sorted(sizes, key=sizes.__getitem__)
    for stage, took in taken[large].items():
        made[f"{large}.{stage}.products_per_s"] = figure(round(sizes[large] / took.seconds, 1), "products/s")
        later, earlier = (
            (taken[more][stage].seconds - taken[less][stage].seconds) / (sizes[more] - sizes[less])
            for less, more in ((middle, large), (small, middle))
        )
        if earlier <= 0:
            raise RecError(
                f"{stage} took no longer for {sizes[middle]} products than for {sizes[small]}: its growth cannot be "
                "told, run the benchmark on a quiet machine"
            )
        made[f"{stage}.marginal"] = figure(round(later / earlier, 3), "times", goal=MARGINAL_GOAL)
        peaks = taken[large][stage].peak_gib / taken[middle][stage].peak_gib
        made[f"{stage}.peak_growth"] = figure(round(peaks, 3), "times")
    return made


def _measured(jobs: Path, folder: Path, rows: int, seed: int) -> dict[str, Taken]:
    folder.mkdir()
    recipe = str(write_shop(folder, "scale", rows, seed))
    arguments = ["--recipe", recipe, "--set", f"store={folder}"]
    config = load(recipe, [f"store={folder}"])
    taken = {"ingest": _job(jobs / "ingest.py", arguments)}
    try:
        _answer(config)
        taken["enrich"] = _job(jobs / "enrich.py", arguments)
        taken["tensorize"] = _job(jobs / "tensorize.py", arguments)
    finally:
        postgres.stop_embedded(folder)
    return taken


def _job(job: Path, arguments: list[str]) -> Taken:
    """Run a job to its end. Raises RecError when it fails, or asks a model."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            [sys.executable, str(job), *arguments], stdout=subprocess.PIPE, stderr=log, text=True
        )
        with PeakMemory(running.pid).watch() as peak:
            printed, _ = running.communicate()
        seconds = time.monotonic() - started
        log.seek(0)
        if running.returncode:
            raise RecError(f"{job.name} failed, see the end of its log: {' '.join(log.read()[-1_000:].split())}")
    if json.loads(printed.splitlines()[-1]).get("live_calls"):
        raise RecError(
            f"{job.name} asked the model although every answer was given: run the benchmark on a clean store"
        )
    return Taken(seconds, peak.bytes / 2**30)


def _answer(config: Config) -> None:
    """Put an answer to every product into the cache: phrases of its text, as the configured model might give them."""
    with postgres.connect(postgres.url(config.store), autocommit=True) as connection:
        cache.prepare(connection)
        cache.put(connection, _answers(config))


def _answers(config: Config) -> Iterator[tuple[str, Answer]]:
    now = edition(engine.form(config.enrich), StdVocabulary.load(None))
    products = pq.ParquetFile(dataset.part(config.at("products"), PRODUCTS))
    total = products.metadata.num_rows
    with bar(total=total, what=f"answers to {total} garments") as done:
        for batch in products.iter_batches(columns=COLUMNS):
            for row in batch.to_pylist():
                text = shown(row, config.enrich, tame=True)
                phrases = [" ".join(run[:MAX_WORDS]) for run in text.runs if len(run) > 1][:MAX_DETAILS]
                body = Body(re={"detail": phrases} if phrases else {}).dump()
                answer = Answer(config.enrich.model, now.prompt_version, "finished", body, 300, 40)
                yield now.key(text.subject, config.enrich.model), answer
            done.update(batch.num_rows)
