"""What a GPU gives: the item tower with a whole DistilBERT under it, the user tower, and DLRM with tables of Criteo's
shape.

Weights and inputs are drawn: what they are changes no time. The steps are those that the stages run.

tower.items_per_s        products/s of `rec.train.contrast.step` and the update, two views of TOKENS title tokens each
tower.mfu                floating point operations of the step's matrix products, but those of packed attention (a
                         hundredth), over the device's dense bf16 rate
tower.busy               share of the time in which a kernel runs
tower.KIND.share         kernels of a kind in the time that kernels take
user.windows_per_s       shoppers/s of the user tower's step, HISTORY events each, of ITEMS products
dlrm.rows_per_s          rows/s of `rec.train.ranking_step.update`, batches on the device
dlrm.bandwidth           bytes that a step cannot do without over its time, as a share of what a plain copy moves
PART.over.cpu            the rate of tower, user and dlrm over that of this machine's processors, which compute in
                         float32, as they do in training, and take smaller steps of the tower

Published rates: NVIDIA's data sheets of A100, H100 and H200 (SXM), dense bf16.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rec import processors
from rec.config import ItemTower as Options
from rec.config import ItemTrain, UserTower, UserTrain
from rec.errors import ConfigError
from rec.evaluate.benchmark import Figures, figure
from rec.features.spec import SparseField, Spec
from rec.histories import Histories
from rec.models.dlrm import DLRM
from rec.models.fused import DenseScale
from rec.models.item_inputs import ItemInputs, Ragged, unit
from rec.models.item_tower import ItemTower, Shape
from rec.models.text_layers import TextShape
from rec.train import ahead, contrast
from rec.train import user as user_training
from rec.train.ranking_step import Batch, Training, update
from rec.train.sequences import windows

TOKENS = 32
KEYS, STD_PER_ITEM, RE_PER_ITEM = 16, 6, 12
STD_IDS, RE_TOKENS = 400, 5_000
ITEMS_GOAL, MFU_GOAL = 22_000.0, 0.45
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert", "n_layers": 6, "dim": 768, "hidden_dim": 3_072, "n_heads": 12, "vocab_size": 30_522,
}  # fmt: skip

HISTORY, ITEMS, WIDTH, CONTEXT = 50, 12_000, 128, 384

SPARSE, DENSE, DIM = 26, 13, 16
SMALLEST, LARGEST = 10, 1_000_000
"""Rows of the smallest and the largest of the tables, whose sizes are spread evenly on a log scale."""
FLOAT = 4
ADAM = 7
"""Numbers that AdamW reads and writes per parameter: itself, its gradient and two moments, and all but the gradient."""

KINDS = {
    "fused": ("triton",),
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "matmul": ("gemm", "cutlass", "nvjet", "xmma", "cublas"),
    "optimizer": ("adam", "multi_tensor"),
    "copies": ("memcpy", "memset"),
    "lookup": ("embedding", "index", "gather", "scatter", "sort"),
}
"""Words in the names of kernels of a kind; the first that fits counts, the rest are "other"."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    encoder: dict[str, Any]
    """Configuration of the text encoder."""
    products: int
    batch: int
    """Products per step of the tower."""
    steps: int
    """Timed steps of each."""
    rows: int
    """Rows per step of DLRM, in requests of 100."""
    largest: int
    """Rows of DLRM's largest table."""
    windows: int
    """Shoppers per step of the user tower."""


FULL = Sizes(DISTILBERT, 32_768, 2_048, 16, 65_536 // 100 * 100, LARGEST, 512)
ON_CPU = replace(FULL, products=256, batch=64, steps=2)
SMALL = Sizes(
    DISTILBERT | {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 128}, 64, 16, 2, 400, 100, 8
)  # fmt: skip
"""For tests."""


def measure(sizes: Sizes, on_cpu: Sizes, *, seed: int, quick: bool) -> Figures:
    """All figures, on the machine's GPU and processors; `quick` without torch.compile, whose start takes a minute.

    Raises ConfigError where there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError("no GPU that torch can use: run this benchmark where torch.cuda.is_available() is true")
    device = torch.device("cuda")
    found = {
        "tower": tower(device, sizes, compiled=False, seed=seed),
        "user": user(device, sizes, seed),
        "dlrm": dlrm(device, sizes, seed),
    }
    if not quick:
        found["tower.compiled"] = tower(device, sizes, compiled=True, seed=seed)
    figures = {f"{prefix}.{name}": value for prefix, part in found.items() for name, value in part.items()}
    return figures | over_cpu(figures, on_cpu, seed)


def over_cpu(figures: Figures, sizes: Sizes, seed: int) -> Figures:
    """The rates among `figures` over those of the machine's processors."""
    cpu = torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(processors.count())
    try:
        rates = {
            "tower.items_per_s": tower(cpu, sizes, compiled=False, seed=seed)["items_per_s"],
            "user.windows_per_s": user(cpu, sizes, seed)["windows_per_s"],
            "dlrm.rows_per_s": dlrm(cpu, sizes, seed)["rows_per_s"],
        }
    finally:
        torch.set_num_threads(threads)
    return {
        f"{name.partition('.')[0]}.over.cpu": figure(round(figures[name]["value"] / rate["value"], 1), "times")
        for name, rate in rates.items()
    }


def tower(device: torch.device, sizes: Sizes, *, compiled: bool, seed: int) -> Figures:
    """The item tower, see the module's text; where told so, compiled."""
    rng = np.random.default_rng(seed)
    train = ItemTrain(precision=_precision(device), batch_size=sizes.batch)
    options = Options(text="full", train=train)
    items = _products(sizes, rng)
    torch.manual_seed(seed)
    model = ItemTower(
        Shape(
            num_keys=KEYS, num_std_ids=STD_IDS, num_re_tokens=RE_TOKENS, text_width=sizes.encoder["dim"],
            text_encoder="drawn", width=options.width, heads=options.heads, dropout=options.dropout,
            inputs=tuple(options.inputs),
            text=TextShape(layers=sizes.encoder["n_layers"], whole=True, encoder=sizes.encoder),
        )
    ).to(device).train()  # fmt: skip
    optimizer = torch.optim.AdamW(contrast.parameter_groups(model, options), lr=1e-5, fused=True)
    batches = np.array_split(rng.permutation(sizes.products), sizes.products // sizes.batch)

    def drawn(number: int) -> contrast.Drawn:
        rng = np.random.default_rng([seed, number])
        return contrast.draw(items, batches[number % len(batches)], KEYS, options, rng).to(device)

    def steps(count: int) -> None:
        for batch in ahead.made(drawn, range(count), device):
            optimizer.zero_grad()
            contrast.step(model, batch, options)
            optimizer.step()

    with FlopCounterMode(display=False) as counted:
        steps(1)
    if compiled:
        model.compile_parts()
    seconds = _seconds(steps, sizes.steps, device)
    figures = {"items_per_s": figure(round(sizes.batch / seconds, 1), "products/s", goal=ITEMS_GOAL)}
    figures["flops_per_item"] = figure(round(counted.get_total_flops() / sizes.batch / 1e9, 2), "GFLOP")
    if device.type == "cuda":
        peak = next((rate for name, rate in PEAK.items() if name in torch.cuda.get_device_name(device)), None)
        share = counted.get_total_flops() / seconds / peak if peak else float("nan")
        figures["mfu"] = figure(round(share, 4), "ratio", goal=MFU_GOAL)
        figures["memory"] = figure(round(torch.cuda.max_memory_allocated(device) / 2**30, 2), "GiB")
        figures |= _kernels(steps, sizes.steps, seconds)
    return figures


def _products(sizes: Sizes, rng: np.random.Generator) -> ItemInputs:
    """Products with drawn attributes and full titles."""

    def lists(per_item: int, most: int) -> Ragged:
        return Ragged.from_lists(rng.integers(1, most, (sizes.products, per_item)).tolist())

    return ItemInputs(
        std_key=lists(STD_PER_ITEM, KEYS + 1),
        std_id=lists(STD_PER_ITEM, STD_IDS),
        re_key=lists(RE_PER_ITEM, KEYS + 1),
        re_id=lists(RE_PER_ITEM, RE_TOKENS),
        groups=np.arange(sizes.products),
        text_of_item=np.arange(sizes.products),
        state_offsets=np.zeros(sizes.products + 1, np.int64),
        states=np.empty((0, sizes.encoder["dim"]), np.float16),
        title_id=lists(TOKENS, sizes.encoder["vocab_size"]),
    )


def _seconds(steps: Callable[[int], None], count: int, device: torch.device) -> float:
    """Seconds per step of `steps`, which does as many as it is told, after as many that are not timed."""
    steps(count)
    _wait(device)
    started = time.perf_counter()
    steps(count)
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _kernels(steps: Callable[[int], None], count: int, seconds: float) -> Figures:
    """How long kernels run, by kind, beside the `seconds` of a step that nobody watches."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        steps(count)
        torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_type.name == "CUDA":
            kind = _kind(event.key.lower())
            spent[kind] = spent.get(kind, 0.0) + event.self_device_time_total / 1e6
    total = sum(spent.values())
    shares = {f"{kind}.share": figure(round(value / total, 4), "ratio") for kind, value in sorted(spent.items())}
    return {"busy": figure(round(total / count / seconds, 4), "ratio"), **shares}


def _kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def user(device: torch.device, sizes: Sizes, seed: int) -> Figures:
    """The user tower's training step, see the module's text."""
    rng = np.random.default_rng(seed)
    shoppers, length = 4 * sizes.windows, HISTORY + 1
    histories = Histories(
        user_ids=[str(number) for number in range(shoppers)],
        offsets=np.arange(shoppers + 1) * length,
        items=(ITEMS * rng.random(shoppers * length) ** 3).astype(np.int64),
        events=np.ones(shoppers * length, np.int64),
        at=np.arange(shoppers * length),
        contexts=[""] * (shoppers * length),
        profiles=rng.standard_normal((shoppers, 1)).astype(np.float32),
        profile_names=["height_cm"],
        num_items=ITEMS,
        unknown=0,
    )
    train = UserTrain(precision=_precision(device), batch_size=sizes.windows)
    options = UserTower(history=HISTORY, train=train)
    data = windows(histories, histories.offsets[1:], HISTORY, {}, exclude_seen=options.exclude_seen)
    content = unit(rng.standard_normal((ITEMS, WIDTH)).astype(np.float32))
    torch.manual_seed(seed)
    model = user_training.build(data, content, np.zeros((1, CONTEXT), np.float32), options, "drawn")
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def steps(count: int) -> None:
        for number in range(count):
            rows = (number * sizes.windows + np.arange(sizes.windows)) % len(data.users)
            optimizer.zero_grad()
            model(data.batch(rows).to(device), options).backward()
            optimizer.step()

    seconds = _seconds(steps, sizes.steps, device)
    return {"windows_per_s": figure(round(sizes.windows / seconds, 1), "windows/s")}


def _precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """What a step computes in: GPUs have units for bfloat16, of processors few do."""
    return "bfloat16" if device.type == "cuda" else "float32"


def dlrm(device: torch.device, sizes: Sizes, seed: int) -> Figures:
    """DLRM's training step, see the module's text."""
    rng = np.random.default_rng(seed)
    rows = np.geomspace(SMALLEST, sizes.largest, SPARSE).astype(int)
    spec = Spec(
        tables={f"table_{at}": int(count) for at, count in enumerate(rows)},
        sparse=tuple(SparseField(f"sparse_{at}", f"table_{at}") for at in range(SPARSE)),
        varlen=(),
        dense=tuple(f"dense_{at}" for at in range(DENSE)),
    )
    zeros, ones = torch.zeros(DENSE), torch.ones(DENSE)
    scale = DenseScale(low=-4 * ones, high=4 * ones, mean=zeros, std=ones)
    model = DLRM(spec, scale, dim=DIM, bottom=[512, 256], hidden=[512, 256], dropout=0.0, seed=seed)
    training = Training(model, 0.0, 100).to(device).train()
    optimizer = training.optimizer(1e-3, 0.0)
    batches = [_requests(rows, sizes.rows, rng).to(device) for _ in range(4)]

    def steps(count: int) -> None:
        for number in range(count):
            update(training, optimizer, batches[number % len(batches)])

    seconds = _seconds(steps, sizes.steps, device)
    figures = {"rows_per_s": figure(round(sizes.rows / seconds), "rows/s")}
    if device.type == "cuda":
        # The gradient of a table is dense: written as zeros, added to, and read by the update.
        looked_up = 4 * sizes.rows * SPARSE * DIM * FLOAT
        tables = (ADAM + 1) * int(rows.sum()) * DIM * FLOAT
        figures["bandwidth"] = figure(round((looked_up + tables) / seconds / _copy_rate(device), 4), "ratio")
    return figures


def _requests(rows: Iterable[int], count: int, rng: np.random.Generator) -> Batch:
    """`count` rows in requests of 100, whose ids are the likelier the smaller they are."""
    ids = np.stack([(size * rng.random(count) ** 3).astype(np.int64) for size in rows], axis=1)
    requests = count // 100
    sizes = torch.full((requests,), 100)
    return Batch(
        sparse=torch.from_numpy(ids),
        varlen=torch.zeros(count, 0, dtype=torch.long),
        dense=torch.from_numpy(rng.standard_normal((count, DENSE)).astype(np.float32)),
        counts=sizes,
        labels=torch.from_numpy(rng.integers(0, 100, requests)),
        log_q=torch.zeros(count),
        sizes=sizes,
    )


def _copy_rate(device: torch.device) -> float:
    """Bytes/s that a copy within the device's memory reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def steps(count: int) -> None:
        for _ in range(count):
            target.copy_(source)

    seconds = _seconds(steps, 8, device)
    return 2 * len(source) / seconds
