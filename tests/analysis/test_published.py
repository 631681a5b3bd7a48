"""Our results against published ones: what agrees, what does not, and our committed records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from analysis.published import LEAST, compare, main, read_ours, read_published, report
from optlab.errors import ConfigError
from optlab.paths import ROOT

BY_SETTING = "stepback_records_final_seedmean.csv"
BY_SEED = "stepback_runs_per_seed.csv"


@dataclass(frozen=True)
class Record:
    """A committed record, and the published table that it must agree with.

    ``results/records/FOLDER/FOLDER.csv`` is what ``python -m analysis SWEEP --export`` wrote, and
    ``deviations.csv`` beside it (columns method, lr, why) explains every setting that differs.
    """

    folder: str
    table: str
    experiment: str
    score: str


RECORDS = [
    Record("momo_mnist_mlp", BY_SETTING, "mnist_mlp", "accuracy"),
    Record("momo_synthetic_small", BY_SEED, "synthetic_small", "final_loss"),
]


def absent(path: Path) -> None:
    """Skip, or fail where OPTLAB_REQUIRE_DATA=1."""
    give_up = pytest.fail if os.environ.get("OPTLAB_REQUIRE_DATA") == "1" else pytest.skip
    give_up(f"no {path}: set OPTLAB_DATA")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.folder)
def test_our_record_agrees_with_the_published_one_but_for_what_is_explained(record: Record) -> None:
    ours = ROOT / "results" / "records" / record.folder / f"{record.folder}.csv"
    published = Path(os.environ.get("OPTLAB_DATA", "")) / "published_curves" / record.table
    if not published.exists():
        absent(published)

    found = compare(
        read_ours(ours, record.score),
        read_published(published, record.experiment, record.score),
    )
    listed = ours.with_name("deviations.csv")
    explained = pd.read_csv(listed) if listed.exists() else pd.DataFrame(columns=["method", "lr"])
    apart = {(each.method, each.lr) for each in found if not each.agrees}

    assert apart == set(zip(explained["method"], explained["lr"], strict=True)), report(found)
    assert explained.get("why", pd.Series(dtype=str)).notna().all()


class Tables:
    """A published table, and ours, of one method and one learning rate."""

    def __init__(self, folder: Path) -> None:
        self.published, self.ours = folder / "published.csv", folder / "ours.csv"
        self.theirs(0.9, 0.001)
        self.mine(0.9, 0.9, 0.9)

    def theirs(self, mean: float, std: float, failed: int = 0) -> None:
        row = {"experiment": "e", "optimizer": "sgd-m", "lr": 0.1, "final_val_score": mean}
        rest = {"final_val_score_std": std, "failed": failed}
        pd.DataFrame([{**row, **rest}]).to_csv(self.published, index=False)

    def mine(self, *scores: float, outcome: str = "finished", lr: float = 0.1) -> None:
        rows = [
            {"run": str(seed), "method": "sgd_momentum", "lr": lr, "seed": seed, "accuracy": score}
            for seed, score in enumerate(scores)
        ]
        pd.DataFrame(rows).assign(outcome=outcome).to_csv(self.ours, index=False)

    def agree(self, useless: float | None = None) -> bool:
        (found,) = compare(
            read_ours(self.ours, useless=useless),
            read_published(self.published, "e", useless=useless),
        )
        return found.agrees


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


@pytest.mark.parametrize(("std", "allowed"), [(0.01, 0.03), (0.0, LEAST), (0.0009, LEAST)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_means_agree_within_three_standard_deviations_or_the_least(
    tables: Tables, std: float, allowed: float, sign: int
) -> None:
    tables.theirs(0.9, std)
    tables.mine(*(0.9 + sign * 0.98 * allowed + noise for noise in (-0.1, 0, 0.1)))
    assert tables.agree()
    tables.mine(*(0.9 + sign * 1.02 * allowed + noise for noise in (-0.1, 0, 0.1)))
    assert not tables.agree()


def test_one_diverged_seed_is_a_failed_setting(tables: Tables) -> None:
    tables.mine(0.9, 0.9, float("nan"), outcome="diverged")
    assert not tables.agree()
    tables.theirs(float("nan"), 0.0, failed=1)
    assert tables.agree()


def test_a_published_failure_that_works_here_is_a_difference(tables: Tables) -> None:
    tables.theirs(float("nan"), 0.0, failed=1)

    assert not tables.agree()


def test_two_useless_settings_agree_however_far_apart(tables: Tables) -> None:
    tables.theirs(0.098, 0.0, failed=1)
    tables.mine(0.11, 0.12, 0.13)
    assert not tables.agree()
    assert tables.agree(useless=0.15)


def test_seeds_of_a_published_table_are_averaged(tables: Tables) -> None:
    row = {"experiment": "e", "optimizer": "sgd-m", "lr": 0.1, "failed": 0}
    rows = [{**row, "seed": seed, "final_val_score": 0.9 + 0.01 * seed} for seed in range(3)]
    pd.DataFrame(rows).to_csv(tables.published, index=False)
    result = read_published(tables.published, "e")["sgd_momentum", 0.1]

    assert (result.mean, result.std) == pytest.approx((0.91, 0.01))


def test_of_a_loss_what_is_not_below_the_useless_one_failed(tables: Tables) -> None:
    table = pd.read_csv(tables.ours).rename(columns={"accuracy": "final_loss"})
    table.to_csv(tables.ours, index=False)
    read = {bound: read_ours(tables.ours, "final_loss", bound) for bound in (0.89, 0.91)}

    assert [result["sgd_momentum", 0.1].failed for result in read.values()] == [True, False]


def test_what_cannot_be_compared_is_refused(tables: Tables) -> None:
    with pytest.raises(ConfigError, match=r"no experiment 'f'.* It has: e\."):
        read_published(tables.published, "f")
    tables.mine(0.9, lr=0.3)
    with pytest.raises(ConfigError, match=r"no run of sgd_momentum at lr=0\.1"):
        tables.agree()
    tables.mine(0.9, outcome="running")
    with pytest.raises(ConfigError, match="1 runs are not done"):
        tables.agree()


def test_the_command_prints_what_differs(tables: Tables, capsys) -> None:
    tables.mine(0.5, 0.5, 0.5)
    words = [str(tables.ours), str(tables.published), "--experiment", "e"]

    assert main(words) == 1
    assert capsys.readouterr().out == (
        "0 of 1 settings agree.\nsgd_momentum lr=0.1: 0.5 ± 0 here, 0.9 ± 0.001 published; -0.4"
        " where 0.003 is allowed.\n"
    )
    tables.mine(0.9, 0.9, 0.9)
    assert main(words) == 0
