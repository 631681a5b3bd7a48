"""From a study to the files of its figures: PDF and PNG, the CSV of what is drawn, inline SVG."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, Transform

from . import figures, style
from .certificate import summary
from .compared import Usable
from .curves import Study
from .layout import CannotDraw

MARGIN = 0.08  # inches around what is drawn
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
DROPPED = (f"{SVG}metadata", f"{SVG}style")  # nobody reads the one, the other styles the whole page


@dataclass(frozen=True)
class Drawn:
    """A figure in every format, or the sentence that says why there is none."""

    name: str
    pdf: bytes = b""
    png: bytes = b""
    csv: bytes = b""
    svg: str = ""  # an element for an HTML page, with the figure's notes to hover over
    why_not: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """File name -> content; empty where nothing was drawn."""
        kinds = {"pdf": self.pdf, "png": self.png, "csv": self.csv}
        return {} if self.why_not else {f"{self.name}.{kind}": kinds[kind] for kind in kinds}


def draw_all(study: Study, names: Sequence[str]) -> list[Drawn]:
    """Draw the figures of these names. Raises ConfigError where there is none of that name."""
    draws = [(name, figures.find(name)) for name in names]
    proven = summary(study.curves, Usable(study.q, study.level))
    return [_drawn(study, name, draw, proven) for name, draw in draws]


def _drawn(study: Study, name: str, draw: figures.Draw, proven: str) -> Drawn:
    with mpl.rc_context({**style.RC, "svg.hashsalt": name}):  # pyright: ignore[reportArgumentType]
        try:
            figure, table = draw(study)
        except CannotDraw as reason:
            return Drawn(name, why_not=f"{name} is not drawn: {reason}.")
        # letters are a little wider or narrower in another resolution: measured as the PNG has them
        figure.set_dpi(mpl.rcParams["savefig.dpi"])
        figure.draw_without_rendering()  # lays out, for the borders of all formats and the notes
        _write_below(figure, proven)
        frame = figure.get_tightbbox().padded(MARGIN)
        # without their dates, the same data give the same files
        return Drawn(
            name,
            pdf=_rendered(figure, frame, "pdf", {"CreationDate": None}),
            png=_rendered(figure, frame, "png", {}),
            csv=table.to_csv(index=False).encode(),
            svg=_inline(figure, frame, name),
        )


def _write_below(figure: Figure, words: str) -> None:
    """A line in small grey letters under all that is drawn, from its left border."""
    around = figure.get_tightbbox()
    x, y = around.x0 / figure.get_figwidth(), (around.y0 - MARGIN) / figure.get_figheight()
    figure.text(x, y, words, fontsize=6, color="0.45", ha="left", va="top")


def _rendered(figure: Figure, frame: Bbox, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, bbox_inches=frame)
    return buffer.getvalue()


def _inline(figure: Figure, frame: Bbox, name: str) -> str:
    """The figure as an SVG element, its ids made its own, and a circle for each of its notes."""
    notes = list(_notes(figure, frame))  # before rendering in another resolution moves them
    ET.register_namespace("", SVG[1:-1])
    ET.register_namespace("xlink", XLINK[1 : XLINK.index("}")])
    root = ET.fromstring(_rendered(figure, frame, "svg", {"Date": None}))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in DROPPED]:
            parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _own(key, value, f"{name}-"))
    svg = ET.tostring(root, encoding="unicode")
    circles = "".join(
        f'<circle class="note" cx="{x:.1f}" cy="{y:.1f}" r="5">'
        f"<title>{escape(text)}</title></circle>"
        for x, y, text in notes
    )
    return svg.replace("</svg>", f"{circles}</svg>")


def _own(key: str, value: str, prefix: str) -> str:
    """An attribute with its id, or the ids that it refers to, prefixed: pages hold many figures."""
    if key == "id":
        return prefix + value
    if key == XLINK:
        return value.replace("#", f"#{prefix}", 1)
    return value.replace("url(#", f"url(#{prefix}")


def _notes(figure: Figure, frame: Bbox) -> Iterator[tuple[float, float, str]]:
    """Place in the SVG, in points from its upper left corner, and words of each note."""
    for axes in figure.axes:
        for text in axes.texts:
            if isinstance(text, Annotation) and not text.get_visible():
                system = text.xycoords
                to_pixels = system if isinstance(system, Transform) else axes.transData
                x, y = to_pixels.transform(text.xy) / figure.dpi
                yield 72 * (x - frame.x0), 72 * (frame.y1 - y), text.get_text()
