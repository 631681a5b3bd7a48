"""How each method looks, in every figure and table: label, colour, marker, dash and order."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from matplotlib.colors import to_hex, to_rgb

Dash = Literal["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Style:
    """Colour says the family, the dash its Momo form, the marker the family again, for grey."""

    label: str
    colour: str
    marker: str
    dash: Dash = "-"


# Okabe and Ito's palette, safe for colour-blind readers; black is AdamW, the usual baseline.
BLACK, SKY, PINK = "#000000", "#56B4E9", "#CC79A7"
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
# Labels of up to 14 letters, so that tables fit a terminal; 'ref.' is the authors' own code.
# Dashes: '--' Momo, '-.' with an estimated lower bound, ':' a variant, or another's code.
KNOWN = {
    "sgd_momentum": Style("SGD-M", PINK, "p"),
    "adamw": Style("AdamW", BLACK, "s"),
    "muon_adam": Style("MuonAdam", BLUE, "o"),
    "scion": Style("Scion", ORANGE, "D"),
    "polargrad": Style("PolarGrad", GREEN, "v"),
    "muonmax": Style("MuonMax", RED, "^"),
    "muon_adam_momo": Style("MuonAdam-Momo", BLUE, "o", "--"),
    "scion_momo": Style("Scion-Momo", ORANGE, "D", "--"),
    "polargrad_momo": Style("PolarGrad-Momo", GREEN, "v", "--"),
    "muonmax_momo": Style("MuonMax-Momo", RED, "^", "--"),
    "muonmax_momo_stale": Style("MuonMax-stale", RED, "^", ":"),
    "scion_constrained": Style("Scion-constr.", ORANGE, "D", ":"),
    "muon_jordan": Style("Muon (Jordan)", BLUE, "h"),
    "muon_moonlight": Style("Moonlight", BLUE, "P"),
    "muon_torch": Style("torch Muon", BLUE, "*"),
    "sgd_steepest": Style("SGD-steepest", PINK, "P", ":"),
    "normalized_sgd": Style("Norm. SGD", PINK, "h", ":"),
    "signsgd": Style("SignSGD", PINK, "*", ":"),
    "ggnc": Style("GGNC", GREEN, "v", ":"),
    "momo": Style("Momo", PINK, "p", "--"),
    "prox_sps": Style("ProxSPS", PINK, "X", "--"),
    "momo_star": Style("Momo*", PINK, "p", "-."),
    "momo_official": Style("Momo (ref.)", PINK, "p", ":"),
    "momo_adam": Style("MomoAdam", BLACK, "s", "--"),
    "momo_adam_star": Style("MomoAdam*", BLACK, "s", "-."),
    "momo_adam_official": Style("MomoAdam-ref.", BLACK, "s", ":"),
    "adam": Style("Adam", SKY, "8"),
    "adam_ada2": Style("Adam (ada2)", SKY, "8", ":"),
    "adam_adainf": Style("Adam (adainf)", SKY, "8", "-."),
    "nadam": Style("NAdam", "#882255", "o", ":"),
    "lion": Style("Lion", "#882255", "H"),
    "rmsprop": Style("RMSprop", "#44AA99", "H", ":"),
    "adagrad": Style("Adagrad", "#44AA99", "H", "-."),
    "adabelief": Style("AdaBelief", "#332288", "X"),
    "adabound": Style("AdaBound", "#332288", "X", ":"),
}
SPARE_COLOURS = (SKY, "#882255", "#44AA99", "#332288", "#999933", "#AA4499", "#666666")
SPARE_MARKERS = ("h", "P", "*", "8", "H")  # of '<', '>' and 'd' figures make marks of their own
OWN_MARKERS = ("h", "P", "*", "s", "D", "v", "^", "p")  # of methods that are not known
OWN_DASHES: tuple[Dash, ...] = ("-", ":", "-.")
ROUND = "ohH8"  # markers that look alike at the size of a figure
LIGHTNESS = (30.0, 72.0)  # CIE L* of the darkest and the lightest setting of a method

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
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",  # looks the same on machines without our fonts
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
        marker=OWN_MARKERS[digest // len(SPARE_COLOURS) % len(OWN_MARKERS)],
    )


def order(method: str) -> tuple[int, str]:
    """Sort key: the known methods as they stand above, then the others by name."""
    known = list(KNOWN)
    return (known.index(method) if method in KNOWN else len(known), method)


def styles(lines: Iterable[tuple[str, str]]) -> list[Style]:
    """The styles of the lines (method, setting) of one figure, no two alike.

    The settings of one method keep its hue and its dash: they run from dark to light, in the order
    of their numbers, and change their marker. An unknown method differs from every other one in
    marker or dash, and in colour as far as there are any: of two that would look alike, the later
    one changes. Its Momo form follows it.
    """
    lines = list(lines)
    found: dict[int, Style] = {}
    of_family: dict[str, Style] = {}
    for i in sorted(range(len(lines)), key=lambda i: _family(lines[i][0]) in KNOWN, reverse=True):
        method, setting = lines[i]
        settings = [s for m, s in lines if m == method]
        family = _family(method)
        own = _of_setting(style(method), setting, settings)
        if family in KNOWN or len(settings) > 1:
            found[i] = _first_free(_options(own), found.values()) or own
            continue
        if family in of_family:
            own = replace(of_family[family], label=own.label, dash=own.dash)
        found[i] = _apart(own, [s for j, s in found.items() if _family(lines[j][0]) != family])
        of_family.setdefault(family, found[i])
    return [found[i] for i in range(len(lines))]


def natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key of a text by its words and numbers: 'width=8' before 'width=16', 'b' after 'a'."""
    words = re.split(r"(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)", text)
    return [(1, float(word), "") if i % 2 else (0, 0.0, word) for i, word in enumerate(words)]


def shades(colour: str, n: int) -> list[str]:
    """``n`` colours of the same hue, from dark to light in equal steps of CIE lightness."""
    if n == 1:
        return [colour]
    low, high = LIGHTNESS
    return [_of_lightness(colour, low + (high - low) * i / (n - 1)) for i in range(n)]


def lightness(colour: str) -> float:
    """CIE L*, 0 (black) to 100 (white): what is left of a colour in a grey print."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def _of_setting(own: Style, setting: str, settings: Sequence[str]) -> Style:
    known = sorted(set(settings), key=natural)
    if len(known) == 1:
        return own
    i = known.index(setting)
    markers = [own.marker, *(marker for marker in SPARE_MARKERS if marker != own.marker)]
    return replace(own, colour=shades(own.colour, len(known))[i], marker=markers[i % len(markers)])


def _family(method: str) -> str:
    return method if method in KNOWN else method.removesuffix("_momo")


def _shape(look: Style) -> tuple[str, str]:
    """What a grey print leaves of a look."""
    return ("o" if look.marker in ROUND else look.marker, look.dash)


def _apart(own: Style, others: Sequence[Style]) -> Style:
    """A look with a shape that no other one has, if possible in a colour of its own."""
    shapes, colours = {_shape(s) for s in others}, {s.colour for s in others}
    dashes = OWN_DASHES if own.dash in OWN_DASHES else (own.dash,)
    by_shape = [
        replace(own, colour=colour, marker=marker, dash=dash)
        for dash, marker, colour in itertools.product(
            dashes, _from(OWN_MARKERS, own.marker), _from(SPARE_COLOURS, own.colour)
        )
    ]
    apart = [s for s in by_shape if _shape(s) not in shapes]
    best = next((s for s in apart if s.colour not in colours), apart[0] if apart else None)
    return best or _first_free(_options(own), others) or own


def _from(cycle: Sequence[str], first: str) -> Sequence[str]:
    """The cycle, beginning with one of its members."""
    i = cycle.index(first)
    return [*cycle[i:], *cycle[:i]]


def _first_free(options: Iterable[Style], others: Iterable[Style]) -> Style | None:
    taken = {(s.colour, s.marker, s.dash) for s in others}
    return next((s for s in options if (s.colour, s.marker, s.dash) not in taken), None)


def _options(own: Style) -> Iterable[Style]:
    yield own
    for colour, marker in itertools.product((own.colour, *SPARE_COLOURS), SPARE_MARKERS):
        yield replace(own, colour=colour, marker=marker)


def _of_lightness(colour: str, target: float) -> str:
    """The colour mixed with black (share -1) or white (share 1) until it has that CIE L*."""
    low, high = -1.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        low, high = (share, high) if lightness(_mixed(colour, share)) < target else (low, share)
    return _mixed(colour, (low + high) / 2)


def _mixed(colour: str, share: float) -> str:
    end = 1.0 if share > 0 else 0.0
    red, green, blue = (c + abs(share) * (end - c) for c in to_rgb(colour))
    return to_hex((red, green, blue))
