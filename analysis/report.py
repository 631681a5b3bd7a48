"""From the table of runs to files and to the text that says what they show."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from optlab.errors import ConfigError
from optlab.store import write_bytes

from . import figures as drawings
from . import style, tables
from .certificate import certify
from .curves import Curve, Study, curves, is_certified, is_diverged, is_done
from .robustness import Optimum, best, usable_width
from .tables import lr_text

WRAP = 100  # columns of a terminal


def analyse(
    runs: pd.DataFrame,
    records: pd.DataFrame,
    *,
    name: str,
    out: Path,
    figures: Sequence[str],
    command: str | None = None,
    extension: str = "",
) -> str:
    """Write the figures and the robustness table of a sweep into ``out``; return what to print.

    ``figures``: names of files in ``analysis/figures`` (none: ``lr_sensitivity``); each becomes
    NAME.{pdf,png,csv}. The last line of the text is the path of the first one. Where no run is done
    yet only the table is written. ``command``: the words after ``python launch.py -m`` that launch
    the sweep (``sweeps=NAME``). ``extension``: as for ``certificate``. Raises ConfigError for
    an unknown figure, a table of runs that cannot be read as curves, or a folder that cannot be
    written.
    """
    chosen = list(figures) or ["lr_sensitivity"]
    draws = [drawings.find(figure) for figure in chosen]
    study = Study(name, runs, records, curves(runs))
    launch = f"python launch.py -m {command or f'sweeps={name}'}"
    parts = [coverage(study, launch)]
    if study.curves:
        _write_tables(study.curves, out)
        parts.append(tables.text(study.curves))
    if not is_done(runs).any():
        return "\n\n".join([*parts, f"There is nothing to analyse yet. To launch it: {launch}"])
    for figure, draw in zip(chosen, draws, strict=True):
        _write_figure(study, draw, out / figure)
    parts += [
        certificate(study.curves, extension),
        _definitions(study.curves),
        _written(chosen, out),
    ]
    return "\n\n".join(parts) + f"\n{out / chosen[0]}.png"


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
        for outcome in ("failed", "preempted", "running", "missing")
        if outcome != "preempted" or outcome in counts
    ]
    head = (
        f"{study.name}: {done} of {total} runs done ({diverged} of them diverged), "
        f"{', '.join(unfinished)}{f', {drawn.sum()} certified' if drawn.any() else ''}."
    )
    lines = [head, *_failures(runs), *_non_finite(runs)]
    holes = [_holes(curve) for curve in study.curves if not curve.done[curve.run != ""].all()]
    if holes and done:
        lines += [*holes, f"Launch again to fill the holes: {launch}"]
    return "\n".join(lines)


def certificate(curves: Sequence[Curve], extension: str = "") -> str:
    """Whether each optimum is certainly inside its grid, and what cuts a usable width.

    ``extension``: what to say, where something is cut, of how the grids grow.
    """
    optima = [(curve, best(curve)) for curve in curves]
    inside = sum(optimum is not None and optimum.where == "interior" for _, optimum in optima)
    head = f"The best learning rate is inside the grid for {inside} of {len(curves)} curves."
    lines, certificates = [], [certify(curve) for curve in curves]
    for (curve, optimum), found in zip(optima, certificates, strict=True):
        words = _warning(curve, optimum) or "".join(f"{each}. " for each in found.sentences)
        lines += [f"  {curve.label}: {words.strip()}"] if words else []
    cut = [found for found in certificates if found.left_censored or found.right_censored]
    lines += [extension] if cut and extension else []
    return "\n".join([head, *(_wrapped(line) for line in lines)])


def _warning(curve: Curve, optimum: Optimum | None) -> str:
    grid = f"({lr_text(curve.lr[0])} to {lr_text(curve.lr[-1])})"
    if optimum is None:
        return "every run diverged, no best lr." if curve.done.any() else "no results yet."
    found = f"best lr {lr_text(optimum.lr)}"
    return {
        "interior": "" if usable_width(curve) else f"{found}, but no loss below the initial one.",
        "left": f"{found} is the first of its grid {grid}: a smaller one may be better.",
        "right": f"{found} is the last of its grid {grid}: a larger one may be better.",
        "both": f"{found} is the only point of its grid.",
        "hole": f"{found} lies beside a point without results, which may be better.",
    }[optimum.where]


def _failures(runs: pd.DataFrame) -> list[str]:
    causes = runs.loc[runs["outcome"] == "failed", "cause"].value_counts()
    return [_wrapped(f"  failed ({n}): {cause or 'no cause given'}") for cause, n in causes.items()]


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


def _definitions(curves: Sequence[Curve]) -> str:
    grids = {(curve.lr[0], curve.lr[-1], len(curve.lr)) for curve in curves}
    apart = " The grids differ, so it does not compare across methods." if len(grids) > 1 else ""
    return "\n".join(
        [
            "best lr: '*': on the edge of the method's grid.",
            _wrapped(
                f"usable width: decades of lr around the best one where the seed mean stays within "
                f"{tables.WIDTH_Q:.0%} of the loss drop (initial loss - best); '>=': cut by the "
                "grid's edge on the side named, or by a hole."
            ),
            "diverged runs count with their initial loss, as do finished runs that end above it.",
            _wrapped(
                "LR sens.: mean over the method's grid of loss - best loss (arXiv 2309.14322); "
                "'~': over the points that have results." + apart
            ),
        ]
    )


def _written(chosen: Sequence[str], out: Path) -> str:
    files = [*(f"{figure}.{{pdf,png,csv}}" for figure in chosen), "robustness.{csv,md,tex}"]
    return _wrapped(f"Written to {out}: {', '.join(files)}")


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, WRAP, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _write_tables(curves: Sequence[Curve], out: Path) -> None:
    _write(out / "robustness.csv", tables.robustness(curves).to_csv(index=False).encode())
    _write(out / "robustness.md", tables.markdown(curves).encode())
    _write(out / "robustness.tex", tables.latex(curves).encode())


def _write_figure(study: Study, draw: drawings.Draw, stem: Path) -> None:
    with mpl.rc_context(style.RC):  # pyright: ignore[reportArgumentType]  # keys typed as literals
        figure, table = draw(study)
        # without its date, the same data give the same file
        pdf = _rendered(figure, "pdf", {"CreationDate": None})
        png = _rendered(figure, "png", {})
    for suffix, content in (
        ("pdf", pdf),
        ("png", png),
        ("csv", table.to_csv(index=False).encode()),
    ):
        _write(stem.with_name(f"{stem.name}.{suffix}"), content)


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path} ({os.strerror(error.errno or 0)}). Make it writable, or choose "
            "another folder: python -m analysis SWEEP --out DIR."
        ) from error
