"""From the table of runs to files and to the text that says what they show."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from optlab.errors import ConfigError
from optlab.store import write_bytes

from . import checks, compared, full_table, page, tables
from . import figures as drawings
from .certificate import certify
from .certificate import table as certificates
from .compared import USABLE, Usable
from .curves import Curve, Study, curves, is_certified, is_diverged, is_done
from .drawing import draw_all
from .outcomes import Final, with_final
from .robustness import Optimum, best, usable_width
from .stages import Stages, split
from .stages import text as second_text
from .tables import lr_text, plural

WRAP = 100  # columns of a terminal
LAST = Final()
PAGE = "report.html"
ALWAYS_SAID = ("failed", "running", "missing")  # of a sweep's runs, also where there are none


def analyse(
    runs: pd.DataFrame,
    records: pd.DataFrame,
    *,
    name: str,
    out: Path,
    figures: Sequence[str],
    command: str | None = None,
    compare: Sequence[str] = (),
    final: Final = LAST,
    notes: Sequence[str] = (),
    launches: bool = True,
    width: Usable = USABLE,
    runs_folder: Path | None = None,
    extension: str = "",
    stages: Stages | None = None,
    lr: str = "",
    remote: page.Remote | None = None,
) -> str:
    """Write the figures and the robustness table of a sweep into ``out``; return what to print.

    ``figures``: names of files in ``analysis/figures`` (none: ``lr_sensitivity``); each becomes
    NAME.{pdf,png,csv}. The last line of the text is the path of the first one that could be drawn;
    a sentence says why another could not. Where no run is done yet only the table and the page are
    written. ``command``: the words after ``python launch.py -m`` that launch the sweep
    (``sweeps=NAME``); ``launches`` is false for a table that is no sweep of ours. ``compare``: two
    methods to say all differences of, or of one metric, named third. ``final``: which number of a
    run is its final metric. ``notes``: sentences to begin with. ``width``: what a usable learning
    rate may lose. ``runs_folder``: the run store, which the page links to. ``extension``: as for
    ``certificate``. ``stages``: of a sweep in two. ``lr``: learning rates whose loss curves to
    draw, instead of the best ones, as in the command. ``remote``: of runs that stand in W&B.
    Raises ConfigError for an unknown figure, a table of runs that cannot be read as curves, or a
    folder that cannot be written.
    """
    chosen = list(figures) or ["lr_sensitivity"]
    chosen += ["loss_curves"] if lr and "loss_curves" not in chosen else []
    for figure in chosen:
        drawings.find(figure)
    checks.check_units(runs)
    runs = with_final(runs, records, final)
    first, second = split(runs, stages)
    axes = stages.axes if stages else ()
    found = curves(first)
    lrs = compared.chosen(found, lr)
    study = Study(name, runs, records, found, width.q, width.level, second, axes, lrs)
    launch = f"python launch.py -m {command or f'sweeps={name}'}" if launches else ""
    parts = [_noted(coverage(study, launch), [*notes, *checks.notes(runs, study.curves)])]
    if compare:
        parts += [_comparisons(study.curves, compare, width)]
    if study.curves:
        _write_tables(study.curves, out, width)
        parts.append(tables.text(study.curves, width))
    if second:
        parts.append("\n".join(map(_wrapped, second_text(second, axes))))
    if not is_done(runs).any():
        hint = f" To launch it: {launch}" if launch else ""
        words = {"Coverage": parts[0]}
        _write(out / PAGE, page.html(study, [], words, launch=launch, out=out, remote=remote))
        return "\n\n".join([*parts, f"There is nothing to analyse yet.{hint}"])
    drawn = draw_all(study, chosen)
    for each in drawn:
        for file, content in each.files.items():
            _write(out / file, content)
    certified = certificate(study.curves, extension, width)
    defined = _definitions(study.curves, final, width)
    resolved = _resolved(study, width)
    words = {"Coverage": parts[0], "Certificate": "\n\n".join([certified, *resolved])}
    words["Definitions"] = defined
    content = page.html(
        study, drawn, words, launch=launch, out=out, runs_folder=runs_folder, remote=remote
    )
    _write(out / PAGE, content)
    shown = [each.name for each in drawn if not each.why_not]
    absent = [_wrapped(each.why_not) for each in drawn if each.why_not]
    parts += [certified, *resolved, defined, "\n".join([*absent, _written(shown, out)])]
    return "\n\n".join(parts) + (f"\n{out / shown[0]}.png" if shown else f"\n{out / PAGE}")


def _noted(text: str, notes: Sequence[str]) -> str:
    return "\n".join([text, *(_wrapped(f"  {note}") for note in notes)])


def _comparisons(curves: Sequence[Curve], names: Sequence[str], width: Usable) -> str:
    """Every metric of two curves, a sentence each; one for all where a curve has no results."""
    a, b, *claim = names
    both = [compared.named(curves, name) for name in (a, b)]
    without = [curve.label for curve in both if not curve.done.any()]
    if without:
        has = "has" if len(without) == 1 else "have"
        return _wrapped(
            f"{both[0].label} and {both[1].label} cannot be compared yet: "
            f"{' and '.join(without)} {has} no results so far."
        )
    found = (
        compared.claim(both[0], both[1], claim[0], width)
        if claim
        else compared.pair(curves, a, b, width)
    )
    first = found[0]
    how = "paired over seeds" if first.paired else f"not paired: {first.unpaired_because}"
    corrected = (
        "one claim by itself, nothing is corrected"
        if claim
        else f"the {len(found)} metrics of this pair are corrected together, by Holm, apart from "
        "the comparisons with the best, below"
    )
    head = f"{first.a} and {first.b} ({plural(first.seeds, 'seed')}, {how}; {corrected}):"
    return "\n".join([_wrapped(head), *(_wrapped(f"  {c.sentence()}") for c in found)])


def _resolved(study: Study, width: Usable) -> list[str]:
    """Differences within one problem; several problems have no common best."""
    problems = study.runs[["model", "dataset", "steps"]].drop_duplicates()
    lines = compared.summary(study.curves, width) if len(problems) == 1 else []
    return ["\n".join(_wrapped(line) for line in lines)] if lines else []


def coverage(study: Study, launch: str) -> str:
    """How many runs are done, where the holes are, and the command that fills them."""
    drawn = is_certified(study.runs)
    runs, total = study.runs.loc[~drawn], int((~drawn).sum())
    if not total:
        return f"{study.name}: the sweep has no runs."
    counts = runs["outcome"].value_counts()
    done, diverged = int(is_done(runs).sum()), int(is_diverged(runs).sum())
    unfinished = [
        f"{counts.get(outcome, 0)} {outcome}"
        for outcome in ("failed", "lost", "preempted", "running", "queued", "missing")
        if outcome in ALWAYS_SAID or outcome in counts
    ]
    head = (
        f"{study.name}: {done} of {total} runs done ({diverged} of them diverged), "
        f"{', '.join(unfinished)}{f', {drawn.sum()} certified' if drawn.any() else ''}."
    )
    lines = [head, *_failures(runs), *_non_finite(runs)]
    every = [*study.curves, *study.second]
    holes = [_holes(curve) for curve in every if not curve.done[curve.run != ""].all()]
    if holes and done:
        lines += [*holes, *([f"Launch again to fill the holes: {launch}"] if launch else [])]
    return "\n".join(lines)


def certificate(curves: Sequence[Curve], extension: str = "", width: Usable = USABLE) -> str:
    """Whether each optimum is certainly inside its grid, and what cuts a usable width.

    ``extension``: what to say, where something is cut, of how the grids grow, which they do by
    ``USABLE`` whatever ``width`` is.
    """
    optima = [(curve, best(curve)) for curve in curves]
    inside = sum(optimum is not None and optimum.where == "interior" for _, optimum in optima)
    head = f"The best learning rate is inside the grid for {inside} of {len(curves)} curves."
    lines, certificates = [], [certify(curve, width) for curve in curves]
    for (curve, optimum), found in zip(optima, certificates, strict=True):
        words = _warning(curve, optimum, width) or "".join(f"{each}. " for each in found.sentences)
        lines += [f"  {curve.label}: {words.strip()}"] if words else []
    cut = [found for found in certificates if found.left_censored or found.right_censored]
    by = "" if width == USABLE else f" (the grids grow by another basin: {USABLE.words})"
    lines += [f"{extension}{by}"] if cut and extension else []
    return "\n".join([head, *(_wrapped(line) for line in lines)])


def _warning(curve: Curve, optimum: Optimum | None, width: Usable) -> str:
    grid = f"({lr_text(curve.lr[0])} to {lr_text(curve.lr[-1])})"
    if optimum is None:
        return "every run diverged, no best lr." if curve.done.any() else "no results yet."
    found = f"best lr {lr_text(optimum.lr)}"
    return {
        "interior": ""
        if usable_width(curve, width.q, width.level)
        else f"{found}, but no loss below the initial one.",
        "left": f"{found} is the first of its grid {grid}: a smaller one may be better.",
        "right": f"{found} is the last of its grid {grid}: a larger one may be better.",
        "both": f"{found} is the only point of its grid.",
        "hole": f"{found} lies beside a point without results, which may be better.",
    }[optimum.where]


def _failures(runs: pd.DataFrame) -> list[str]:
    causes = [
        (word, cause, n)
        for word in ("failed", "lost")
        for cause, n in runs.loc[runs["outcome"] == word, "cause"].value_counts().items()
    ]
    return [_wrapped(f"  {word} ({n}): {cause or 'no cause given'}") for word, cause, n in causes]


def _non_finite(runs: pd.DataFrame) -> list[str]:
    odd = runs.loc[(runs["outcome"] == "finished") & is_diverged(runs), "run"]
    if odd.empty:
        return []
    return [
        _wrapped(
            f"  {len(odd)} finished with a non-finite final loss, counted as diverged: "
            f"{', '.join(odd)}"
        )
    ]


def _holes(curve: Curve) -> str:
    lacking = curve.planned - curve.n
    points = [
        f"lr {lr_text(lr)} ({'gap' if n == 0 else f'{k} of {n + k} seeds lacking'})"
        for lr, n, k in zip(curve.lr, curve.n, lacking, strict=True)
        if k
    ]
    where = "everywhere" if not curve.done.any() else ", ".join(points)
    return _wrapped(f"  {curve.label} lacks {lacking.sum()} of {curve.planned.sum()} runs: {where}")


def _definitions(curves: Sequence[Curve], final: Final, width: Usable) -> str:
    grids = {(curve.lr[0], curve.lr[-1], len(curve.lr)) for curve in curves}
    apart = " The grids differ, so it does not compare across methods." if len(grids) > 1 else ""
    return "\n".join(
        [
            *([f"final loss: {final}."] if final.count else []),
            "best lr: '*': on the edge of the method's grid.",
            _wrapped(
                f"usable width: decades of lr around the best one where the seed mean stays within "
                f"{width.words}; '>=': cut by the "
                "grid's edge on the side named, or by a hole; '(certified)': without end, since "
                "every larger lr repeats the last run bit by bit."
            ),
            "diverged runs count with their initial loss, as do finished runs that end above it.",
            _wrapped(
                "LR sens.: mean over the method's grid of loss - best loss (arXiv 2309.14322); "
                "'~': over the points that have results." + apart
            ),
        ]
    )


def _written(chosen: Sequence[str], out: Path) -> str:
    files = [*(f"{figure}.{{pdf,png,csv}}" for figure in chosen), "robustness.{csv,md,tex}", PAGE]
    return _wrapped(f"Written to {out}: {', '.join(files)}")


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, WRAP, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _write_tables(curves: Sequence[Curve], out: Path, width: Usable) -> None:
    _write(
        out / "robustness.csv", full_table.robustness(curves, width).to_csv(index=False).encode()
    )
    _write(out / "certificate.csv", certificates(curves, width).to_csv(index=False).encode())
    _write(out / "robustness.md", tables.markdown(curves, width).encode())
    _write(out / "robustness.tex", tables.latex(curves, width).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path} ({os.strerror(error.errno or 0)}). Make it writable, or choose "
            "another folder: python -m analysis SWEEP --out DIR."
        ) from error
