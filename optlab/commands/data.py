"""``python -m optlab data prepare NAME``: the files of a dataset, made to exist."""

from __future__ import annotations

import argparse

HELP = "the data that runs need"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    prepare = actions.add_parser("prepare", help="download, tokenize and verify")
    prepare.add_argument("name", metavar="NAME", help="a file of conf/dataset/, such as mnist")


def run(args: argparse.Namespace) -> int:
    from ..build import declared_dataset
    from ..data.base import data_folder
    from ..data.prepare import prepare
    from ..data.tokenize import prepare_tokens
    from ..data.tokens import TokenShards

    def echo(line: str) -> None:
        print(line, flush=True)

    dataset = declared_dataset(args.name)
    if isinstance(dataset, TokenShards):
        prepare_tokens(args.name, dataset, data_folder(), echo)
    else:
        prepare(args.name, dataset, data_folder(), echo)
    return 0
