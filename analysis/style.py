"""How each method looks, in every figure and table: label, colour, marker, dash and order."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


@dataclass(frozen=True)
class Style:
    """Colour says the family, the dash its Momo form, the marker the family again, for grey."""

    label: str
    colour: str
    marker: str
    dash: Literal["-", "--"] = "-"


# Okabe and Ito's palette, safe for colour-blind readers; black is AdamW, the usual baseline.
KNOWN = {
    "sgd_momentum": Style("SGD-M", "#CC79A7", "p"),
    "adamw": Style("AdamW", "#000000", "s"),
    "muon_adam": Style("MuonAdam", "#0072B2", "o"),
    "scion": Style("Scion", "#E69F00", "D"),
    "polargrad": Style("PolarGrad", "#009E73", "v"),
    "muonmax": Style("MuonMax", "#D55E00", "^"),
    "muon_adam_momo": Style("MuonAdam-Momo", "#0072B2", "o", "--"),
    "scion_momo": Style("Scion-Momo", "#E69F00", "D", "--"),
    "muonmax_momo": Style("MuonMax-Momo", "#D55E00", "^", "--"),
}
SPARE_COLOURS = ("#56B4E9", "#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#666666")
SPARE_MARKERS = ("h", "d", "P", "*", "8", "H")

RC = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.2,
    "pdf.fonttype": 42,  # TrueType: Type 3 fonts are refused by many journals
    "savefig.bbox": "tight",
    "savefig.dpi": 200,
}


def style(method: str) -> Style:
    """The style of one method; for an unknown one, a style that depends on its name alone."""
    if method in KNOWN:
        return KNOWN[method]
    family = method.removesuffix("_momo")
    if family != method:
        base = style(family)
        return replace(base, label=f"{base.label}-Momo", dash="--")
    digest = zlib.crc32(method.encode())
    return Style(
        label=method,
        colour=SPARE_COLOURS[digest % len(SPARE_COLOURS)],
        marker=SPARE_MARKERS[digest // len(SPARE_COLOURS) % len(SPARE_MARKERS)],
    )


def order(method: str) -> tuple[int, str]:
    """Sort key: the known methods as they stand above, then the others by name."""
    known = list(KNOWN)
    return (known.index(method) if method in KNOWN else len(known), method)


def styles(methods: Iterable[str]) -> list[Style]:
    """The styles of the lines of one figure, no two alike while spare markers last.

    A line that would look like an earlier one (two unknown methods, or one method in two settings)
    gets the next free marker.
    """
    taken: set[tuple[str, str, str]] = set()
    found = []
    for method in methods:
        own = style(method)
        options = [own, *(replace(own, marker=marker) for marker in SPARE_MARKERS)]
        free = next((s for s in options if (s.colour, s.marker, s.dash) not in taken), own)
        taken.add((free.colour, free.marker, free.dash))
        found.append(free)
    return found


def scale_losses(axes: Axes, bottom: float, top: float) -> None:
    """Limits of a loss axis, with some air below ``bottom``; logarithmic where over a decade."""
    if not 0 < bottom < top / 10:
        axes.set_ylim(bottom - 0.05 * (top - bottom), top if bottom < top else None)
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom * (bottom / top) ** 0.05, top)
    if top < 1000 * bottom:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
