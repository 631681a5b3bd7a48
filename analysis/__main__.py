"""``python -m analysis SWEEP``: figures and robustness table of a sweep, from the store alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from optlab.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Print the analysis of a sweep. Exit codes: 0 done, also where runs are lacking; 1 error."""
    try:
        args = _parser().parse_intermixed_args(arguments)
    except SystemExit as end:  # argparse ends with 2, which elsewhere is no code of ours
        return min(1, int(end.code or 0))
    try:
        if args.export and (args.csv or args.from_wandb):
            raise ConfigError("--export FILE writes the runs of a sweep in the store: name one.")
        source = _of_table if args.csv else _of_wandb if args.from_wandb else _of_sweep
        print(source(args), flush=True)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _of_wandb(args: argparse.Namespace) -> str:
    from optlab.config import compose_run

    from .sweeps import analyse_wandb

    overrides = [word for word in [args.sweep, *args.overrides] if word]
    if args.group is None or any("=" not in word for word in overrides):
        raise ConfigError("--from-wandb ENTITY/PROJECT needs --group SWEEP, and no sweep beside.")
    settings = compose_run(overrides)[1]
    return analyse_wandb(
        args.from_wandb,
        args.group,
        settings,
        args.out,
        **_how(args),
    )


def _compared(args: argparse.Namespace) -> list[str]:
    if args.claim and not args.compare:
        raise ConfigError("--claim METRIC says what of two methods to compare: give --compare A B.")
    return [*args.compare, *([args.claim] if args.claim else [])]


def _of_sweep(args: argparse.Namespace) -> str:
    # after parsing: --help need not wait for pandas, matplotlib and Hydra
    from optlab.sweep import from_arguments, known_sweeps

    from .sweeps import analyse_sweep

    given = [option for option, default in ONLY_CSV.items() if getattr(args, option) != default]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} says how to read a table: it goes with --csv FILE."
        )
    if args.group is not None:
        raise ConfigError("--group names a sweep in W&B: it goes with --from-wandb.")
    if not args.sweep:
        raise ConfigError(
            "Expected a sweep, such as python -m analysis demo, or a table with --csv FILE. "
            f"sweeps/ has: {', '.join(known_sweeps())}."
        )
    first = args.sweep if "=" in args.sweep else f"sweeps={args.sweep}"
    sweep = from_arguments([first, *args.overrides])
    return analyse_sweep(sweep, args.out, export=args.export, **_how(args))


def _of_table(args: argparse.Namespace) -> str:
    from .sources import Source, pairs
    from .sweeps import analyse_csv

    if args.sweep:
        twice = (
            f" An option takes one NAME=VALUE; repeat it for another: --columns {args.sweep}, or "
            f"--where {args.sweep}."
        )
        raise ConfigError(
            f"Expected a sweep or --csv FILE, found both: '{args.sweep}'."
            f"{twice if '=' in args.sweep else ''}"
        )
    source = Source(
        path=args.csv,
        records=args.records,
        columns=dict(pairs(args.columns, "--columns")),
        where=pairs(args.where, "--where"),
        setting=args.setting,
        metric=args.metric,
        higher_is_better=args.higher_is_better,
        perfect=args.perfect,
        initial=args.initial,
        unit=args.unit,
    )
    return analyse_csv(source, args.out, **_how(args))


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The options of every source."""
    figures = [name for name in (args.figures or "").split(",") if name]
    return {
        "compare": _compared(args),
        "final": args.final,
        "width": args.width,
        "figures": figures,
        "lr": args.lr,
    }


# what --csv alone reads, and the defaults
ONLY_CSV = {
    "records": None,
    "columns": [],
    "where": [],
    "setting": [],
    "metric": "final_loss",
    "higher_is_better": False,
    "perfect": 1.0,
    "initial": None,
    "unit": "nats",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Draw the figures and the robustness table of a sweep from the run store, as "
        "far as its runs exist, or of a table from anywhere; nothing is trained.",
    )
    # optional to argparse, so that its absence is answered with the list of sweeps
    parser.add_argument(
        "sweep", metavar="SWEEP", nargs="?", default="", help="a file of sweeps/, such as demo"
    )
    parser.add_argument(
        "overrides", nargs="*", help="as given to launch.py, such as optimizer=scion,muonmax"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write into (default: results/SWEEP; of a table, results/FILE in the "
        "current folder)",
    )
    parser.add_argument(
        "--from-wandb", metavar="ENTITY/PROJECT", help="read the runs from W&B instead of the store"
    )
    parser.add_argument("--group", metavar="SWEEP", help="with --from-wandb: which runs")
    parser.add_argument(
        "--compare",
        nargs=2,
        default=[],
        metavar=("A", "B"),
        help="say every difference between two methods, with its uncertainty",
    )
    parser.add_argument(
        "--claim",
        metavar="METRIC",
        help="with --compare: this metric alone ('best loss', 'usable width', 'LR sensitivity'), "
        "chosen before the results were seen, so that nothing is corrected",
    )
    parser.add_argument(
        "--final",
        default="last",
        metavar="last|mean:k",
        help="final loss of a run: its last full evaluation, or the mean of its last k",
    )
    parser.add_argument(
        "--width",
        default="0.05",
        metavar="Q[:LEVEL]",
        help="what a usable learning rate may lose: a share of the loss drop (0.05, 0.05:drop), of "
        "the best loss (0.05:relative), or so much of the metric (0.01:absolute)",
    )
    parser.add_argument(
        "--figures",
        metavar="NAME,...",
        help="files of analysis/figures to draw (default: those that the sweep names)",
    )
    parser.add_argument(
        "--lr",
        default="",
        metavar="LR,...",
        help="learning rates whose loss curves to draw (default: each method's best)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="also write a sweep's runs, a row each, as a table that --csv FILE reads as the same",
    )
    _add_csv(parser.add_argument_group("a table from elsewhere (docs/analysis.md)"))
    return parser


def _add_csv(group: argparse._ArgumentGroup) -> None:
    def add(option: str, text: str, **options: object) -> None:
        default = ONLY_CSV.get(option.removeprefix("--").replace("-", "_"))
        group.add_argument(option, default=default, help=text, **options)  # type: ignore[arg-type]

    pair = {"action": "append", "metavar": "NAME=VALUE"}
    add("--csv", "one row per run: method, lr, final_loss, initial_loss ...", type=Path)
    add("--records", "one row per evaluation: run, step, val_loss ...", type=Path)
    add("--columns", "read the column VALUE as NAME, such as method=optimizer", **pair)
    add("--where", "keep the rows whose column NAME is VALUE", **pair)
    add("--setting", "a column that tells curves of one method apart", action="append")
    add("--metric", "column of the final metric (default: final_loss)")
    add("--higher-is-better", "as of an accuracy", action="store_true")
    add("--perfect", "best value of such a metric (default: 1)", type=float)
    add("--initial", "metric before the first step, where no column says it", type=float)
    add("--unit", "of the metric (default: nats)")


if __name__ == "__main__":
    sys.exit(main())
