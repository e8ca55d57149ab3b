"""Benchmarks as one JSON object of figures, and as a page with plots.

    {"benchmark", "quick", "machine", "versions", "commit", "figures": {NAME: {value, ci95, goal, unit}}}

`ci95` is null for a figure that was taken once, `goal` is null where nothing is to be reached.
"""

import json
import os
import platform
import subprocess
from html import escape
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure

from rec import postgres, processors
from rec.config import Config
from rec.enrich import oamine
from rec.errors import ConfigError
from rec.evaluate.bootstrap import interval, resampled_means
from rec.svg import svg

VERSIONS = ("numpy", "pyarrow", "ray", "torch", "transformers")
SCORES = ("precision", "recall", "f1")
SHORT = {"ndcg@10": "n10", "recall@10": "r10", "recall@100": "r100"}
TITLES, QUICK_TITLES = 4, 1
"""Titles of each OA-Mine category that are asked."""
SLICES = {"all": "", "warm_items": "warm.", "cold_items": "cold.", "cold_users": "cold_users."}

Figures = dict[str, dict[str, Any]]


def retrieval(config: Config) -> Figures:
    """Figures of an evaluated recipe: every system on all users and the main slices, and what the final list gains.

    The gains are paired differences on the same users; their goal is an interval above 0.
    """
    report = json.loads((config.at("evaluation") / "report.json").read_text(encoding="utf-8"))
    recipe = config.name.removesuffix("-quick")
    figures: Figures = {}
    for part, prefix in SLICES.items():
        for system, values in report["slices"][part]["figures"].items():
            for metric in [metric for metric in SHORT if metric in values]:
                figures[f"{recipe}.{prefix}{system}.{SHORT[metric]}"] = figure(**values[metric], unit="ratio")
    for system, values in report["slices"]["all"]["differences"].items():
        if "ndcg@10" in values:
            figures[f"{recipe}.final.minus.{system}.n10"] = figure(**values["ndcg@10"], goal=0.0, unit="difference")
    for system, found in report["lists@10"].items():
        figures[f"{recipe}.{system}.coverage10"] = figure(value=found["coverage"], unit="ratio")
    return figures


def extraction(config: Config, *, quick: bool, test: bool) -> Figures:
    """How well the engine reads attributes out of OA-Mine titles: micro scores with intervals over titles.

    `test`: of the test split, which is otherwise not read.
    """
    per_category = QUICK_TITLES if quick else TITLES
    counts, seconds = oamine.counts(Path(config.source.folder) / oamine.FILE, config.enrich, per_category, test=test)
    figures = micro("oamine.llm", counts, resamples=config.evaluate.bootstrap, seed=config.seed)
    return {**figures, "oamine.llm.seconds_per_title": figure(round(seconds, 2), "s")}


def micro(name: str, counts: np.ndarray, *, resamples: int, seed: int, f1_goal: float | None = None) -> Figures:
    """Micro scores with intervals over titles, strictly and as published, of decisions int64[titles, 4]."""
    figures: Figures = {}
    drawn = resampled_means(counts.astype(np.float64), resamples, seed)
    for prefix, columns in ((name, oamine.STRICT), (f"{name}.published", oamine.PUBLISHED)):
        bounds = interval(scores(drawn[:, columns])).round(4).tolist()
        values = scores(counts.sum(axis=0)[None, columns])[0].round(4).tolist()
        for score, value, low, high in zip(SCORES, values, *bounds, strict=True):
            figures[f"{prefix}.{score}"] = figure(value, "ratio", [low, high], f1_goal if score == "f1" else None)
    return figures


def scores(counts: np.ndarray) -> np.ndarray:
    """float64[N, 3] in the order of SCORES, of counts [N, 3] of correct, predicted and gold values."""
    correct, predicted, gold = counts.T.astype(np.float64)
    return np.stack([correct / np.maximum(low, 1e-9) for low in (predicted, gold, (predicted + gold) / 2)], axis=1)


def figure(
    value: float | None, unit: str, ci95: list[float] | None = None, goal: float | None = None
) -> dict[str, Any]:
    """One figure of the JSON object."""
    return {"value": value, "ci95": ci95, "goal": goal, "unit": unit}


def refuse_others(why: str) -> None:
    """Raise ConfigError, with the reason `why`, where jobs would work on a database or cluster that others use."""
    for variable in (postgres.URL_VARIABLE, "RAY_ADDRESS"):
        if variable in os.environ:
            raise ConfigError(f"{variable} is set, and the benchmark {why}: unset it")


def envelope(name: str, figures: Figures, *, quick: bool) -> dict[str, Any]:
    """The benchmark's JSON object."""
    return {
        "benchmark": name,
        "quick": quick,
        "machine": {
            "cpus": processors.count(),
            "processor": platform.processor() or platform.machine(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in VERSIONS},
        },
        "commit": _commit(),
        "figures": figures,
    }


def _commit() -> str | None:
    """The commit of the checkout this module lies in, with `+` when files differ from it; None outside of one."""
    folder = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("+" if found[1] else "")


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Benchmark $name</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2833; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #d5d8dc; text-align: right; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
</style></head><body><h1>Benchmark $name$quick</h1>
<p>$machine<br>commit $commit</p>
$curves
$plots
$profile
<table><tr><th>figure</th><th>value</th><th>95 % interval</th><th>goal</th><th>unit</th></tr>$rows</table>
$unmapped
</body></html>
""")


def page(result: dict[str, Any]) -> str:
    """HTML of a benchmark's JSON object: a plot per unit, and all figures as a table."""
    figures: Figures = result["figures"]
    units = sorted({figure["unit"] for figure in figures.values()})
    machine = {**result["machine"], **result["versions"]}
    rows = []
    for name, figure in figures.items():
        goal = "" if figure["goal"] is None else f"{figure['goal']:.4g}"
        cells = (escape(name), f"{figure['value']:.4g}", _bounds(figure["ci95"]), goal, escape(figure["unit"]))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return _PAGE.substitute(
        name=escape(result["benchmark"]),
        quick=" (quick)" if result["quick"] else "",
        machine=escape(", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)),
        commit=escape(str(result["commit"])),
        plots="".join(
            f"<h2>{escape(unit)}</h2>{_plot({n: f for n, f in figures.items() if f['unit'] == unit}, unit)}"
            for unit in units
        ),
        rows="".join(rows),
        curves="".join(f"<h2>{escape(name)}</h2>{_curve(*xy)}" for name, xy in result.get("curves", {}).items()),
        profile=_profile(result["profile"]) if "profile" in result else "",
        unmapped=_unmapped(result["unmapped"]) if "unmapped" in result else "",
    )


def _profile(profile: dict[str, Any]) -> str:
    """Where `serving --profile` found the time to go."""
    taken = [(kind, f"{each['cpu_ms']:.2f} ms", each["share"]) for kind, each in profile["processes"].items()]
    tables = [_shares("CPU time for an answer, by process", taken)]
    for mode in ("gil", "wall"):
        for what in ("layers", "stages", "threads", "functions") if mode in profile else ():
            tables.append(_shares(f"{mode}: {what}", [(key, "", share) for key, share in profile[mode][what].items()]))
    return "".join(tables) + "".join(f"<p>{escape(each)}</p>" for each in profile["left_out"])


def _shares(title: str, rows: list[tuple[str, str, float]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{value}</td><td>{share:.1%}</td></tr>" for name, value, share in rows
    )
    return f"<h2>{escape(title)}</h2><table>{cells}</table>"


def _unmapped(values: list[dict[str, Any]]) -> str:
    """The attribute values without an STD value, which `extraction` has beside its figures."""
    if not values:
        return "<h2>values without an STD value</h2><p>none: every given value is mapped</p>"
    rows = [f"<tr><td>{escape(v['key'])}</td><td>{escape(v['value'])}</td><td>{v['count']}</td></tr>" for v in values]
    head = "<tr><th>key</th><th>value</th><th>products</th></tr>"
    return f"<h2>values without an STD value</h2><table>{head}{''.join(rows)}</table>"


def _curve(x: list[float], y: list[float]) -> str:
    plot = Figure(figsize=(10, 2.4), layout="constrained")
    axes = plot.add_subplot()
    axes.plot(x, y, color="#1b4f72")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return svg(plot)


def _bounds(ci95: list[float] | None) -> str:
    return "" if ci95 is None else f"{ci95[0]:.4g} … {ci95[1]:.4g}"


def _plot(figures: Figures, unit: str) -> str:
    """Values with intervals as dots, goals as crosses."""
    plot = Figure(figsize=(10, 0.8 + 0.22 * len(figures)), layout="constrained")
    axes = plot.add_subplot()
    for row, figure in enumerate(figures.values()):
        low, high = figure["ci95"] or (figure["value"], figure["value"])
        axes.plot([low, high], [row, row], color="#2e86c1")
        axes.plot(figure["value"], row, "o", color="#1b4f72", markersize=4)
        if figure["goal"] is not None:
            axes.plot(figure["goal"], row, "x", color="#b03a2e")
    axes.set_yticks(range(len(figures)), list(figures), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
    return svg(plot)
