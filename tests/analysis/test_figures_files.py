"""Figures as files: fonts that journals accept, the same bytes twice, notes where points are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from analysis import drawing, figures
from analysis.curves import Study, curves
from analysis.drawing import Drawn, draw_all
from optlab.errors import ConfigError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def study(table) -> Study:
    runs = table({"adamw": {0.1: [0.9, 0.8], 1.0: [0.5, 0.4], 10.0: ["diverged", "missing"]}})
    return Study("demo", runs, pd.DataFrame(columns=["run", "step", "val_loss"]), curves(runs))


@pytest.fixture
def drawn(study) -> Drawn:
    return draw_all(study, ["lr_sensitivity"])[0]


def test_a_figure_becomes_pdf_png_and_csv(drawn):
    assert list(drawn.files) == [f"lr_sensitivity.{kind}" for kind in ("pdf", "png", "csv")]
    assert drawn.pdf.startswith(b"%PDF")
    assert drawn.png.startswith(b"\x89PNG")
    assert drawn.csv.startswith(b"method,setting,label,lr,mean")


def test_fonts_of_a_pdf_are_embedded_truetype(drawn):
    assert b"/FontFile2" in drawn.pdf  # an embedded TrueType file
    assert b"/CIDFontType2" in drawn.pdf
    assert b"/Type3" not in drawn.pdf


def test_the_same_data_give_the_same_files(study, drawn):
    assert draw_all(study, ["lr_sensitivity"])[0] == drawn


def test_every_figure_says_what_the_grids_prove(study, monkeypatch):
    words, rendered = [], drawing._rendered

    def seen(figure, frame, kind, metadata):
        words.append((kind, figure.texts[-1].get_text()))
        assert frame.ymin * figure.dpi < figure.texts[-1].get_window_extent().ymin
        return rendered(figure, frame, kind, metadata)

    monkeypatch.setattr(drawing, "_rendered", seen)
    draw_all(study, ["lr_sensitivity"])
    proven = "optimum inside the grid for 1 of 1 curve, usable range not cut off for 0"

    assert words == [(kind, proven) for kind in ("pdf", "png", "svg")]


def test_no_format_cuts_off_long_names(table, monkeypatch):
    """Letters are not equally wide in all resolutions."""
    runs = pd.concat(
        table({"muon_adam_momo": {0.1: [0.9], 1.0: [0.5]}}).assign(setting=f"{'w' * 60}={value}")
        for value in range(3)
    )
    long = Study("demo", runs, pd.DataFrame(columns=["run", "step", "val_loss"]), curves(runs))
    rendered, beyond = drawing._rendered, []

    def seen(figure, frame, kind, metadata):
        before = figure.dpi
        figure.set_dpi(mpl.rcParams["savefig.dpi"])
        figure.draw_without_rendering()
        beyond.append(figure.get_tightbbox().x1 - frame.x1)
        figure.set_dpi(before)
        return rendered(figure, frame, kind, metadata)

    monkeypatch.setattr(drawing, "_rendered", seen)
    draw_all(long, ["lr_sensitivity"])

    assert max(beyond) < 0


def test_what_cannot_be_drawn_is_a_sentence_and_no_file(study):
    lr_sensitivity, heatmap = draw_all(study, ["lr_sensitivity", "heatmap"])

    assert not lr_sensitivity.why_not
    assert heatmap.why_not.startswith("heatmap is not drawn: it needs a second axis")
    assert heatmap.why_not.endswith(".")
    assert heatmap.files == {}


def test_an_unknown_figure_is_refused_before_any_is_drawn(study, monkeypatch):
    monkeypatch.setattr(drawing, "_drawn", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ConfigError, match="no figure 'lr'"):
        draw_all(study, ["lr_sensitivity", "lr"])


def test_a_note_stands_on_its_point(drawn):
    """Circles of the notes and markers of the line, both in the SVG's own coordinates."""
    root = ET.fromstring(drawn.svg)
    texts = {}
    for circle in root.iter(f"{SVG}circle"):
        place = (float(circle.get("cx", "")), float(circle.get("cy", "")))
        texts[circle.findtext(f"{SVG}title")] = place
    (note,) = [text for text in texts if text.startswith("AdamW, lr 1\nloss 0.45 nats")]
    places = [
        (float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in root.iter(f"{SVG}use")
    ]
    nearest = min(np.hypot(x - texts[note][0], y - texts[note][1]) for x, y in places)

    assert note == "AdamW, lr 1\nloss 0.45 nats (0.4 to 0.5 over 2 seeds)"
    assert nearest < 0.1
    assert "AdamW, lr 10\n1 of 1 seeds diverged" in texts


def test_notes_are_in_no_other_format(drawn):
    assert b"over 2 seeds" not in drawn.pdf
    assert b"nats (" not in drawn.png


def test_ids_of_two_figures_on_one_page_never_meet(study):
    both = draw_all(study, ["lr_sensitivity", "coverage"])
    ids = [re.findall(r'\bid="([^"]+)"', each.svg) for each in both]
    used = [re.findall(r'(?:url\(#|href="#)([^")]+)', each.svg) for each in both]

    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    for own, references in zip(ids, used, strict=True):
        assert len(own) == len(set(own))
        assert set(references) <= set(own)


def test_every_figure_says_what_it_is_and_how_to_read_it():
    for name in figures.names():
        draw = figures.find(name)
        assert (draw.__doc__ or "").strip(), name
