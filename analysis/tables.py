"""The robustness table: numbers for machines (CSV), words for people (text, Markdown, LaTeX)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from .certificate import certify
from .compared import USABLE, Usable, as_good_as_best, headline, share_grid
from .curves import Curve
from .robustness import best, lr_sensitivity, usable_width

BOLD = {
    "loss there (seeds)": "best loss",
    "usable width": "usable width",
    "LR sens.": "LR sensitivity",
}
CAPTION = "Bold: not significantly worse than the best (paired over seeds where proven, 5 %, Holm)."
TEX = {
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "~": r"$\sim$",
    "±": r"$\pm$",
    ">=": r"$\geq$",
}


def robustness(curves: Sequence[Curve], rule: Usable = USABLE) -> pd.DataFrame:
    """One row per curve, in full precision; learning rates as such, losses in nats.

    ``width`` is in decades; ``left`` and ``right`` are the ends of the usable interval, ``*_bound``
    what stopped it there (see ``analysis.robustness.usable_width``): where 'edge' or 'hole', the
    width is a lower bound and ``width_censored`` is true. NaN: undefined.
    """
    return pd.DataFrame([_row(curve, rule) for curve in curves])


def _row(curve: Curve, rule: Usable) -> dict[str, object]:
    optimum, width = best(curve), usable_width(curve, rule.q, rule.level)
    nan = math.nan
    return {
        "method": curve.method,
        "label": curve.label,
        "setting": curve.setting,
        "best_lr": optimum.lr if optimum else nan,
        "best_loss": optimum.loss if optimum else nan,
        "best_loss_std": optimum.std if optimum else nan,
        "best_seeds": optimum.seeds if optimum else 0,
        "best_where": optimum.where if optimum else "",
        "initial_loss": curve.ceiling,
        "width_q": rule.q,
        "width_level": rule.level,
        "width": width.decades if width else nan,
        "width_censored": width.censored if width else False,
        "left": width.left.lr if width else nan,
        "left_bound": width.left.bound if width else "",
        "right": width.right.lr if width else nan,
        "right_bound": width.right.bound if width else "",
        "lr_sensitivity": lr_sensitivity(curve),
        "grid_first": float(curve.lr[0]),
        "grid_last": float(curve.lr[-1]),
        "grid_points": len(curve.lr),
        "grid_points_done": int((curve.n > 0).sum()),
        "runs": int(curve.planned.sum()),
        "done": int(curve.n.sum()),
        "diverged": int(curve.diverged.sum()),
        "at_chance": int(curve.at_chance.sum()),
    }


def display(curves: Sequence[Curve], rule: Usable = USABLE) -> pd.DataFrame:
    """The same table as short strings, '-' where a number does not exist."""
    table = robustness(curves, rule)
    form = _form(table["best_loss"]) if len(table) else ".3f"
    rows = [_words(curve, row, form, rule) for curve, row in zip(curves, _rows(table), strict=True)]
    return pd.DataFrame(rows)


def plural(count: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def lr_text(lr: float) -> str:
    """A learning rate with up to 4 significant digits: 0.03162."""
    return f"{lr:.4g}"


def width_text(curve: Curve, rule: Usable = USABLE) -> str:
    """'0.44', or '>= 2.72 (right)' where the grid's edge cuts it, '(hole)' where a hole does.

    '(certified)': nothing ends it on the right, as every larger learning rate repeats the last run.
    """
    width = usable_width(curve, rule.q, rule.level)
    if width is None:
        return "-"
    if not width.censored:
        return f"{width.decades:.2f}"
    sides = {"left": width.left.bound, "right": width.right.bound}
    edges = [name for name, bound in sides.items() if bound == "edge"]
    if "right" in edges and certify(curve, rule).right == "certified":
        edges[edges.index("right")] = "certified"
    where = ["both"] if edges == ["left", "right"] else edges
    holes = ["hole"] if "hole" in sides.values() else []
    return f">= {width.decades:.2f} ({'+'.join(holes + where)})"


def text(curves: Sequence[Curve], rule: Usable = USABLE) -> str:
    """The table in aligned columns, without trailing blanks."""
    table = display(curves, rule)
    cells = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(curves: Sequence[Curve], rule: Usable = USABLE) -> str:
    """The table, in bold what no test tells from the best of its column."""
    table, is_bold = display(curves, rule), bold(curves, rule)
    cells = [list(table.columns), ["---"] * len(table.columns)]
    cells += _marked(table, is_bold, "**{}**".format)
    caption = f"\n{CAPTION}\n" if is_bold else ""
    return "".join(f"| {' | '.join(row)} |\n" for row in cells) + caption


def latex(curves: Sequence[Curve], rule: Usable = USABLE) -> str:
    """A booktabs tabular, to be put into a table environment; bold as in ``markdown``."""
    table, is_bold = display(curves, rule), bold(curves, rule)
    escaped = table.map(_tex)
    lines = [
        *([f"% {CAPTION}".replace("5 %", r"5 \%")] if is_bold else []),
        rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
        r"\toprule",
        _tex_row([_tex(column) for column in table.columns]),
        r"\midrule",
        *map(_tex_row, _marked(escaped, is_bold, r"\textbf{{{}}}".format)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def bold(curves: Sequence[Curve], rule: Usable = USABLE) -> set[tuple[int, str]]:
    """(row, column) of the best of a column and of all that no test tells from it.

    Empty where no test is possible (one seed, one curve). LR sensitivities over different grids do
    not compare, so then none of them is bold.
    """
    found: set[tuple[int, str]] = set()
    for column, name in BOLD.items():
        if curves and (name != "LR sensitivity" or share_grid(curves)):
            found |= {(row, column) for row in as_good_as_best(curves, headline(name, rule))}
    return found


def _marked(
    table: pd.DataFrame, marks: set[tuple[int, str]], mark: Callable[[str], str]
) -> list[list[str]]:
    return [
        [mark(cell) if (i, column) in marks else cell for column, cell in row.items()]
        for i, row in enumerate(_rows(table))
    ]


def _words(curve: Curve, row: dict, form: str, rule: Usable) -> dict[str, str]:
    return {
        "method": row["label"],
        "best lr": _best_lr(row),
        "loss there (seeds)": _loss(row, form),
        "usable width": width_text(curve, rule),
        "diverged": f"{row['diverged']}/{row['done']}",
        "at chance": str(row["at_chance"]),
        "LR sens.": _sensitivity(row),
    }


def _best_lr(row: dict) -> str:
    if not row["best_where"]:
        return "-"
    edge = row["best_where"] in ("left", "right", "both")
    return lr_text(row["best_lr"]) + ("*" if edge else "")


def _loss(row: dict, form: str) -> str:
    if not row["best_where"]:
        return "-"
    std = row["best_loss_std"]
    spread = "-" if math.isnan(std) else f"{std:{form}}"
    return f"{row['best_loss']:{form}} ± {spread} ({row['best_seeds']})"


def _sensitivity(row: dict) -> str:
    if math.isnan(row["lr_sensitivity"]):
        return "-"
    whole = row["grid_points_done"] == row["grid_points"]
    return f"{'' if whole else '~'}{row['lr_sensitivity']:.3f}"


def _form(losses: pd.Series) -> str:
    """Of numbers: three significant digits of the smallest loss, at least 3 decimals; or powers."""
    positive = [loss for loss in losses if loss > 0]
    decimals = max(3, 2 - math.floor(math.log10(min(positive)))) if positive else 3
    return f".{decimals}f" if decimals <= 6 else ".2e"


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex(cell: str) -> str:
    for plain, tex in TEX.items():
        cell = cell.replace(plain, tex)
    return cell
