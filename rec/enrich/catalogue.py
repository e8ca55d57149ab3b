"""The products of a store as the passes of enrichment read them."""

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from rec import dataset
from rec import log as progress
from rec.config import Config
from rec.enrich import places
from rec.enrich.workers import BATCH_ROWS, COLUMNS, read, scan
from rec.schema import PRODUCTS


def placed(config: Config) -> Config:
    """With what workers need to know of the folder of images, wherever they run."""
    return config.model_copy(update={"enrich": places.placed(config.enrich, config.source.folder)})


def stream(config: Config) -> ray.data.Dataset:
    """The products, streamed in product order, a task for each row group.

    Ray Data's own reader would first start a process to look into the one file.
    """
    numbers = ray.data.range(row_groups(config), override_num_blocks=max(1, row_groups(config)))
    path = dataset.part(config.at("products"), PRODUCTS)
    products = numbers.map_batches(
        partial(read, path=path), batch_format="pyarrow", batch_size=None, compute=pool(config)
    )
    products.context.execution_options.preserve_order = True
    products.context.enable_progress_bars = False
    return products


def pool(config: Config) -> ray.data.TaskPoolStrategy:
    """As many tasks at once as the recipe says: more would only start processes that wait for each other."""
    return ray.data.TaskPoolStrategy(max(1, min(config.enrich.num_tasks, row_groups(config))))


def row_groups(config: Config) -> int:
    """How many row groups the products lie in."""
    return pq.ParquetFile(dataset.part(config.at("products"), PRODUCTS)).num_row_groups


def tables(data: ray.data.Dataset) -> Iterator[pa.Table]:
    """Run `data` and yield its blocks as they come."""
    for batch in data.iter_batches(batch_format="pyarrow", batch_size=None):
        assert isinstance(batch, pa.Table)
        yield batch


def scanned(config: Config) -> tuple[list[str], list[str], list[bool]]:
    """Product ids, what each product's answer is found by, and whether a model may be asked, in product order."""
    ids: list[str] = []
    hashes: list[str] = []
    askable: list[bool] = []
    cut = partial(scan, enrich=config.enrich)
    found = stream(config).map_batches(cut, batch_format="pyarrow", batch_size=BATCH_ROWS, compute=pool(config))
    with progress.bar(total=None, what="scan product text") as bar:
        for batch in tables(found):
            ids += batch["product_id"].to_pylist()
            hashes += batch["subject"].to_pylist()
            askable += batch["askable"].to_pylist()
            bar.update(batch.num_rows)
    return ids, hashes, askable


def descriptions(config: Config) -> dict[str, str]:
    """Product id → description of the products that have one."""
    table = dataset.read(config.at("products"), PRODUCTS, ["product_id", "description"])
    pairs = zip(table["product_id"].to_pylist(), table["description"].to_pylist(), strict=True)
    return {product_id: text for product_id, text in pairs if text}


def rows(config: Config, chosen: Sequence[int]) -> pa.Table:
    """COLUMNS of the chosen rows."""
    return pq.read_table(dataset.part(config.at("products"), PRODUCTS), columns=COLUMNS).take(
        pa.array(chosen, pa.int64())
    )
