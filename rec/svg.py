"""Plots as inline SVG for pages that stand alone."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where a plot is drawn: a finished stage draws none
    from matplotlib.figure import Figure


def svg(figure: "Figure") -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "rec", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
