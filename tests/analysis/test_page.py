"""report.html as a document: complete, escaped, self-contained, its links relative."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from analysis import page
from analysis.curves import Study, curves
from analysis.drawing import Drawn, draw_all

LAUNCH = "python launch.py -m sweeps=demo"
WORDS = {"Coverage": "demo: 3 of 4 runs done.", "Certificate": "The best is inside <the grid>."}
VOID = {"meta", "link", "input", "br", "img"}


class Document(HTMLParser):
    """Tags, texts of table cells, and links; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @property
    def links(self) -> list[str]:
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a" and "href" in attrs]


@pytest.fixture
def study(table) -> Study:
    runs = table({"adamw": {0.1: [0.9, 0.8], 1.0: ["failed", "missing"]}, "<b>": {0.1: [0.5]}})
    runs.loc[2, "cause"] = "no <memory> & no disk"
    records = pd.DataFrame({"run": runs["run"][:1], "step": 10, "val_loss": 0.9, "seconds": 12.34})
    return Study("demo", runs, records, curves(runs))


def html(study: Study, out: Path, drawn: list[Drawn] | None = None, **more) -> str:
    return page.html(study, drawn or [], WORDS, launch=LAUNCH, out=out, **more).decode()


def test_every_run_stands_in_the_list_with_its_outcome(study, tmp_path):
    text = html(study, tmp_path)
    outcomes = [
        attrs["data-outcome"] for _, attrs in Document(text).tags if "data-outcome" in attrs
    ]

    assert outcomes == ["finished", "finished", "failed", "missing", "finished"]
    for run in study.runs["run"]:
        assert run in text
    assert "12.3</td>" in text  # seconds
    assert LAUNCH in text


def test_names_and_causes_are_escaped(study, tmp_path):
    text = html(study, tmp_path)

    assert "<b>" not in text
    assert "no &lt;memory&gt; &amp; no disk" in text
    assert "inside &lt;the grid&gt;" in text


def test_a_run_that_finished_without_a_finite_loss_is_listed_as_diverged(table, tmp_path):
    runs = table({"adamw": {0.1: [float("nan")]}})
    text = html(Study("demo", runs, pd.DataFrame(columns=["run"]), curves(runs)), tmp_path)

    assert 'data-outcome="diverged"' in text


def test_nothing_is_loaded_from_anywhere(study, tmp_path):
    drawn = draw_all(study, ["lr_sensitivity", "coverage"])
    document = Document(html(study, tmp_path, drawn))
    loaded = [
        attrs.get(name)
        for tag, attrs in document.tags
        for name in ("src", "href", "xlink:href", "data", "action")
        if name in attrs and tag != "a"
    ]

    assert [url for url in loaded if not str(url).startswith(("#", "data:"))] == []
    policy = next(
        attrs["content"]
        for tag, attrs in document.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in str(policy)


def test_a_figure_is_shown_with_its_files_or_its_sentence(study, tmp_path):
    text = html(study, tmp_path, draw_all(study, ["lr_sensitivity", "heatmap"]))

    assert text.count("<svg") == 1
    assert "heatmap is not drawn: it needs a second axis" in text
    links = Document(text).links
    assert {"lr_sensitivity.pdf", "lr_sensitivity.png", "lr_sensitivity.csv"} <= set(links)
    assert "heatmap.pdf" not in links


def test_logs_are_linked_relative_to_the_page_and_only_where_they_are(study, tmp_path):
    out, store = tmp_path / "results" / "demo", tmp_path / "my runs"
    first, second = study.runs["run"][:2]
    for run in (first, second):
        (store / run).mkdir(parents=True)
    (store / first / "log.txt").write_text("trained\n")
    links = Document(html(study, out, runs_folder=store)).links

    assert f"../../my%20runs/{first}/log.txt" in links
    assert [link for link in links if "my%20runs" in link] == [
        f"../../my%20runs/{first}",
        f"../../my%20runs/{first}/log.txt",
        f"../../my%20runs/{second}",
    ]


def test_a_published_run_is_linked_to_its_mirror(study, tmp_path):
    store = tmp_path / "runs"
    first, second = study.runs["run"][:2]
    for run, url in ((first, "https://example.org/p/runs/x"), (second, "javascript:alert(1)")):
        (store / run).mkdir(parents=True)
        (store / run / "wandb.json").write_text(json.dumps({"a project": {"url": url}}))
    links = Document(html(study, tmp_path, runs_folder=store)).links

    assert "https://example.org/p/runs/x" in links
    assert not any(link.startswith("javascript") for link in links)


def test_provenance_counts_what_made_the_numbers(study, tmp_path):
    store = tmp_path / "runs"
    for run, dirty in zip(study.runs["run"][:3], (None, None, "0123456789ab"), strict=True):
        (store / run).mkdir(parents=True)
        meta = {
            "commit": "c0ffee",
            "dirty": dirty,
            "device": "A100",
            "host": "node1",
            "versions": {"torch": "2.9"},
            "started": "2025-01-01T00:00:00+00:00",
        }
        (store / run / "meta.json").write_text(json.dumps(meta))
    (store / study.runs["run"][3]).mkdir()
    (store / study.runs["run"][3] / "meta.json").write_text('{"commit": ')  # torn
    rows = re.findall(
        r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td class="n">(\d+)</td></tr>',
        html(study, tmp_path, runs_folder=store),
    )

    assert ("commit", "c0ffee", "2") in rows
    assert ("commit", "c0ffee, with uncommitted changes (0123456789ab)", "1") in rows
    assert ("device", "A100", "3") in rows
    assert ("torch", "2.9", "3") in rows


def test_an_empty_sweep_is_a_page_that_says_so(table, tmp_path):
    runs = table({"adamw": {0.1: [0.5]}}).iloc[:0]
    text = html(Study("demo", runs, pd.DataFrame(columns=["run"]), []), tmp_path)

    Document(text)
    assert "The sweep has no runs." in text


def test_three_thousand_runs_stay_below_two_megabytes(table, tmp_path):
    lrs = [10 ** (k / 4 - 4) for k in range(20)]
    runs = table({f"method_{i}": {lr: [0.5] * 5 for lr in lrs} for i in range(30)})
    study = Study("demo", runs, pd.DataFrame(columns=["run"]), curves(runs))
    text = html(study, tmp_path, draw_all(study, ["coverage"]))

    assert text.count("<tr data-outcome") == 3000
    assert len(text) < 2e6
