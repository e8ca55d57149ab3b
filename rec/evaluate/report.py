"""The report as one self-contained HTML page: tables with intervals, plots as inline SVG. Same report, same bytes."""

from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from rec.evaluate.curves import by_bin, reliability
from rec.evaluate.figures import FEW
from rec.evaluate.slices import HISTORY, history_name
from rec.svg import svg

SYSTEMS = {
    "final": "final list",
    "retrieval": "retrieval",
    "category_popular": "same-category popular",
    "popular": "popular",
    "random": "random vectors",
    "shuffled": "final list, targets shuffled",
    "shuffled_retrieval": "retrieval, targets shuffled",
}
SOURCES = {
    "ann": "search by the user vector",
    "item": "item-to-item",
    "cooccurrence": "co-occurrence",
    "popular": "popular",
}
PROVENANCE = {"all": "all users", "cold_users": "history hidden"}
COLOURS = {
    "final": "#1b4f72",
    "retrieval": "#2e86c1",
    "category_popular": "#b9770e",
    "popular": "#e59866",
    "random": "#b2babb",
    "shuffled": "#7d6608",
    "shuffled_retrieval": "#b7950b",
}
SLICES = {
    "all": "all users",
    "warm_items": "target with training events",
    "cold_items": "target without training events",
    "same_moment": "last known event at the target's timestamp",
    "earlier": "last known event before the target's timestamp",
    "cold_users": "history hidden",
    "popularity:1": "target in the rarest quarter",
    "popularity:2": "target in the second rarest quarter",
    "popularity:3": "target in the second most popular quarter",
    "popularity:4": "target in the most popular quarter",
}
BY_HISTORY = {"cold_users": "hidden"} | {
    name: name.removeprefix("history:") for name in (history_name(low, high) for low, high in HISTORY)
}
BY_POPULARITY = {"cold_items": "none"} | {f"popularity:{n}": f"quarter {n}" for n in range(1, 5)}
IN_BINS = (BY_HISTORY.keys() | BY_POPULARITY.keys()) - {"cold_users", "cold_items"}
DRAWN = ("final", "retrieval", "popular")
"""Systems of the plots by history and popularity."""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evaluation of $recipe</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2833; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #d5d8dc; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
small { color: #5f6a6a; display: block; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.worse { color: #b03a2e; } .scroll { overflow-x: auto; }
</style></head><body>
<h1>Evaluation of $recipe</h1>
<p>Each user's last event is hidden and ranked among all items that were candidates at that moment. $users
All events before it in the file are known: for $same_moment users the last of them has the target's own timestamp
(part of the same basket, where a source stamps days), and the slices below report them apart.
Seen items are $seen. The final list is the $candidates candidates of all sources, reranked; a target outside counts
as missed. Intervals are 95 % bootstrap intervals over users.</p>
<p>The catalogue has $items items, of which $warm have training events. Slices of fewer than $few users are marked:
their intervals are themselves unsure.</p>
<figure>$plot</figure>
<h2>By what is known of the user, and by how popular the target is</h2>
<p>Each quarter of popularity holds about a quarter of the training events: its products have at most $quartiles of
them each, in the last one more. Hollow: fewer than $few users.</p>
<figure>$bins</figure>
<h2>The first 10 items of all lists</h2>
<p>Coverage: share of the catalogue that is in anybody's list. Gini: how unequally the places are shared out, 0 for
equally. Similarity: mean cosine between two items of a list by their frozen vectors.</p>
$lists
<h2>Calibration</h2>
<p>The probability that a candidate is the next choice, for requests whose target is a candidate: the ranker's as it is
served, and a softmax of retrieval's scores over the candidates; tenths of the candidates by probability. A tenth
without any hit is at the lower edge. $ece</p>
<figure>$reliability</figure>
$tables
<h2>Final list minus the others, all users</h2>
<p>Paired over the same users; red where the interval is not above zero.</p>
$differences
<h2>Where the $candidates candidates come from</h2>
<p>Share of the candidates and of the targets among them that each source found, those that no other found, and the
share of users whose target is a candidate (recall) when the source is left out. A candidate may come from several.</p>
$provenance
<p><small>Seed $seed. report.json beside this page holds every figure.</small></p>
</body></html>
""")


def page(report: dict[str, Any]) -> str:
    """HTML of a report as `rec.evaluate.stage.evaluate` makes it."""
    found = {name: part for name, part in report["slices"].items() if part["users"]}
    counts = report["users"]
    left_out = counts["left_out_target_seen"] + counts["left_out_target_not_launched"]
    tables = "".join(
        f"<h2>{escape(label(name))} ({part['users']:,} users{', too few to say much' if part['few'] else ''})</h2>"
        f"{_table(part['figures'])}"
        for name, part in found.items()
    )
    return _PAGE.substitute(
        recipe=escape(report["recipe"]),
        users=f"{counts['tested']:,} of {counts['testable']:,} testable users are tested; "
        f"{left_out:,} were left out because their target was no candidate.",
        same_moment=f"{report['slices']['same_moment']['users']:,}",
        seen="no candidates" if report["exclude_seen"] else "candidates too",
        candidates=report["candidates"],
        few=FEW,
        quartiles=", ".join(f"{bound:,}" for bound in report["popularity_quartiles"]),
        bins=_bins(report["slices"], _ndcg(report["cutoffs"])),
        lists=_lists(report["lists@10"]),
        ece=_ece(report["calibration"]),
        reliability=_reliability(report["calibration"]),
        items=f"{report['items']['catalogue']:,}",
        warm=f"{report['items']['with_training_events']:,}",
        plot=_plot({n: p for n, p in found.items() if n not in IN_BINS}, _ndcg(report["cutoffs"])),
        tables=tables,
        differences=_table(found["all"]["differences"], marked=True) if "all" in found else "",
        provenance="".join(_provenance(label, report["provenance"][part]) for part, label in PROVENANCE.items()),
        seed=report["seed"],
    )


def _provenance(users: str, found: dict[str, Any]) -> str:
    """Sources as rows."""
    head = "".join(f"<th>{name}</th>" for name in ("candidates", "hits", "hits alone", "recall without"))
    rows = []
    for source, figures in found["sources"].items():
        cells = "".join(f"<td>{figures[name]:.1%}</td>" for name in ("candidates", "hits", "hits_alone"))
        without = f"{figures['recall_without']:.4f}" if "recall_without" in figures else ""
        rows.append(f"<tr><td>{SOURCES[source]}</td>{cells}<td>{without}</td></tr>")
    return (
        f"<h3>{users}: recall {found['recall']:.4f}</h3>"
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def label(name: str) -> str:
    """The readable name of a slice."""
    return SLICES.get(name, name.replace("group:", "planted: ").replace("history:", "events known: "))


def _ndcg(cutoffs: Sequence[int]) -> str:
    return f"ndcg@{min((k for k in cutoffs if k >= 10), default=max(cutoffs))}"


def _bins(parts: dict[str, Any], metric: str) -> str:
    """Inline SVG: the metric by history length and by popularity of the target."""
    panels = {"known events": BY_HISTORY, "training events of the target": BY_POPULARITY}
    shown = {
        axis: {text: parts[name] for name, text in names.items() if parts[name]["users"]}
        for axis, names in panels.items()
    }
    systems = {name: (SYSTEMS[name], COLOURS[name]) for name in DRAWN}
    return by_bin({axis: bins for axis, bins in shown.items() if bins}, systems, metric)


def _lists(found: dict[str, Any]) -> str:
    """Systems as rows; the similarity with its interval, where any list has two items."""
    rows = []
    for system, values in found.items():
        alike = _cell(values["similarity"], False) if "similarity" in values else "<td></td>"
        cells = f"<td>{values['coverage']:.1%}</td><td>{values['gini']:.4f}</td>{alike}"
        rows.append(f"<tr><td>{SYSTEMS[system]}</td>{cells}</tr>")
    head = "<tr><th></th><th>coverage</th><th>gini</th><th>similarity</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _ece(found: dict[str, Any]) -> str:
    """The mean gap of each system, in words."""
    said = [
        f"{SYSTEMS[system]}: ECE {values['ece']:.5f} over {values['requests']:,} requests"
        for system, values in found.items()
        if values["requests"]
    ]
    return "; ".join(said) + "." if said else "No request has its target among its candidates."


def _reliability(found: dict[str, Any]) -> str:
    bins = {system: values["bins"] for system, values in found.items() if values["bins"]}
    return reliability(bins, {name: (SYSTEMS[name], COLOURS[name]) for name in bins}) if bins else ""


def _table(figures: dict[str, dict[str, Any]], *, marked: bool = False) -> str:
    """Systems as rows, metrics as columns."""
    systems = [name for name in SYSTEMS if name in figures]
    metrics = list(figures[systems[0]])
    head = "".join(f"<th>{escape(metric)}</th>" for metric in metrics)
    rows = []
    for system in systems:
        cells = "".join(_cell(figures[system][metric], marked) for metric in metrics)
        rows.append(f"<tr><td>{SYSTEMS[system]}</td>{cells}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(figure: dict[str, Any], marked: bool) -> str:
    low, high = figure["ci95"]
    worse = ' class="worse"' if marked and low <= 0 else ""
    return f"<td{worse}>{figure['value']:.4f}<small>{low:.4f} … {high:.4f}</small></td>"


def _plot(found: dict[str, Any], metric: str) -> str:
    """Inline SVG: the metric of every system in every slice, with intervals."""
    if not found:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.75 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(SYSTEMS)
    for place, system in enumerate(SYSTEMS):
        having = [(row, part["figures"]) for row, part in enumerate(found.values()) if system in part["figures"]]
        values = [figures[system][metric] for _, figures in having]
        axes.barh(
            [row + place * height for row, _ in having],
            [value["value"] for value in values],
            height,
            xerr=[
                [max(value["value"] - value["ci95"][0], 0) for value in values],
                [max(value["ci95"][1] - value["value"], 0) for value in values],
            ],
            error_kw={"lw": 1},
            color=COLOURS[system],
            label=SYSTEMS[system],
        )
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(found))], [label(name) for name in found])
    axes.invert_yaxis()
    axes.set_xlabel(metric.upper())
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
