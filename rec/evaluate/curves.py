"""Two plots of the report as inline SVG: a metric over bins of users, and predicted against observed rates."""

from collections.abc import Mapping
from typing import Any

from rec.svg import svg

Systems = Mapping[str, tuple[str, str]]
"""System -> its readable name and its colour."""


def by_bin(panels: Mapping[str, Mapping[str, Any]], systems: Systems, metric: str) -> str:
    """A panel for each axis: the slices, by the text of their bin, with intervals; few users make a hollow mark."""
    if not panels:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (axis, bins) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for place, (system, (label, colour)) in enumerate(systems.items()):
            found = [part["figures"][system][metric] for part in bins.values()]
            spots = [row + 0.16 * (place - (len(systems) - 1) / 2) for row in range(len(bins))]
            for spot, value in zip(spots, found, strict=True):
                axes.plot([spot, spot], value["ci95"], color=colour, lw=1.5)
            for few, face in ((False, colour), (True, "white")):
                rows = [row for row, part in enumerate(bins.values()) if part["few"] == few]
                axes.plot(
                    [spots[row] for row in rows],
                    [found[row]["value"] for row in rows],
                    "o",
                    color=colour,
                    markerfacecolor=face,
                    label=None if few else label,
                )
        axes.set_xticks(
            range(len(bins)), [f"{text}\n{part['users']:,} users" for text, part in bins.items()], fontsize=8
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel(metric.upper())
    first.legend(frameon=False, fontsize=8)
    return svg(figure)


def reliability(bins: Mapping[str, list[dict[str, Any]]], systems: Systems) -> str:
    """Observed rate over predicted probability of each bin, on logarithmic axes; on the line both are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    predicted = [each["predicted"] for found in bins.values() for each in found if each["predicted"] > 0]
    rates = [each["rate"] for found in bins.values() for each in found if each["rate"] > 0]
    floor = min([*predicted, *rates]) / 2
    axes.plot([floor, 1], [floor, 1], color="#909497", lw=1, ls="--", label="calibrated")
    for system, found in bins.items():
        label, colour = systems[system]
        seen = [each for each in found if each["predicted"] > 0]
        spots = [each["predicted"] for each in seen]
        axes.plot(spots, [max(each["rate"], floor) for each in seen], "o-", color=colour, label=label, markersize=4)
        for spot, each in zip(spots, seen, strict=True):
            axes.plot([spot, spot], [max(bound, floor) for bound in each["ci95"]], color=colour, lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("mean predicted probability")
    axes.set_ylabel("rate of hits")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
