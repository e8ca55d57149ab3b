"""Learning curves of a run: what every epoch reported, as JSON and as a page with a plot a metric."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from rec import artifact
from rec.svg import svg

JSON, PAGE = "learning.json", "learning.html"

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Learning curves of $name</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2833; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #d5d8dc; text-align: right; }
.scroll { overflow-x: auto; } svg { max-width: 100%; height: auto; }
</style></head><body><h1>Learning curves of $name</h1>
$plot
<div class="scroll"><table><tr>$head</tr>$rows</table></div>
</body></html>
""")


def write(folder: Path, name: str, history: Sequence[dict[str, float]]) -> None:
    """Write JSON and PAGE of the epochs of the run `name`, oldest first, into `folder`."""
    artifact.write_json(folder / JSON, {"epochs": list(history)})
    draft = folder / f".{PAGE}"
    draft.write_text(page(name, history), encoding="utf-8")
    draft.replace(folder / PAGE)  # who reads it while it is drawn anew reads the one before


def page(name: str, history: Sequence[dict[str, float]]) -> str:
    """The page; the same history gives the same text."""
    metrics = list(dict.fromkeys(metric for epoch in history for metric in epoch))
    rows = [
        f"<tr><td>{number}</td>{''.join(f'<td>{_shown(epoch.get(metric))}</td>' for metric in metrics)}</tr>"
        for number, epoch in enumerate(history, start=1)
    ]
    return _PAGE.substitute(
        name=escape(name),
        plot=_plot(metrics, history),
        head="".join(f"<th>{escape(metric)}</th>" for metric in ("epoch", *metrics)),
        rows="".join(rows),
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _plot(metrics: Sequence[str], history: Sequence[dict[str, float]]) -> str:
    from matplotlib.figure import Figure  # half a second, and most processes that know this module draw nothing

    figure = Figure(figsize=(10, 2.2 * len(metrics)), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics, strict=True):
        axes.plot(epochs, [epoch.get(metric, float("nan")) for epoch in history], marker=".", color="#1b4f72")
        axes.set_ylabel(metric.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.set_xlabel("epoch")
    return svg(figure)
