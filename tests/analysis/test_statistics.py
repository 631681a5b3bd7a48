"""Intervals and comparisons claim what the seeds show and the grid allows, and no more."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis import compared
from analysis import robustness as r
from analysis.curves import Curve, curves
from analysis.report import _comparisons
from analysis.statistics import compare, corrected, holm, interval, resamples, unpaired_because
from optlab.errors import ConfigError

X = np.arange(-2.0, 2.1, 0.5)
VALLEY = 0.3 + 0.5 * np.abs(X - 0.1)


def curve(losses: np.ndarray, *, method: str = "muonmax_momo", prints: str = "w") -> Curve:
    """A curve of losses (n, S), initial loss 2; seeds are proven by fingerprints unless ''."""
    n, seeds = losses.shape
    none = np.zeros((n, seeds), bool)
    return Curve(
        method=method,
        setting="",
        lr=10.0 ** X[:n],
        seeds=np.arange(seeds),
        run=np.full((n, seeds), "run", object),
        loss=np.minimum(losses, 2.0),
        initial=np.full((n, seeds), 2.0),
        done=~none,
        diverged=none,
        at_chance=none,
        certified=none,
        fingerprints=tuple(f"{prints}{seed}" for seed in range(seeds)) if prints else (),
    )


def shifted(losses: np.ndarray, shifts: list[float], **options) -> Curve:
    """The curve with each seed moved by its shift."""
    return curve(losses[:, None] + np.array(shifts), **options)


class TestInterval:
    @pytest.mark.parametrize("seeds", [2, 3, 5, 6])
    def test_of_a_mean_it_is_the_textbook_interval(self, seeds):
        """The best loss, at a point that is the best of every seed."""
        losses = 0.3 + 0.02 * np.random.default_rng(0).standard_normal(seeds)
        found = interval(shifted(VALLEY - VALLEY.min(), list(losses)), r.best_loss())
        low, high = stats.t.interval(0.95, seeds - 1, losses.mean(), stats.sem(losses))

        assert (found.low, found.high) == pytest.approx((low, high))
        assert (found.seeds, found.level) == (seeds, 0.95)

    def test_with_many_seeds_it_is_that_too_up_to_the_draws(self):
        losses = 0.3 + 0.02 * np.random.default_rng(0).standard_normal(9)
        found = interval(shifted(VALLEY - VALLEY.min(), list(losses)), r.best_loss())
        low, high = stats.t.interval(0.95, 8, losses.mean(), stats.sem(losses))

        assert (found.low, found.high) == pytest.approx((low, high), rel=0.01)

    def test_the_same_data_give_the_same_interval(self):
        noisy = curve(VALLEY[:, None] + 0.05 * np.random.default_rng(1).standard_normal((9, 9)))

        assert interval(noisy, r.width()) == interval(noisy, r.width())

    def test_one_seed_shows_no_noise(self):
        found = interval(curve(VALLEY[:, None]), r.width())

        assert math.isnan(found.low) and math.isnan(found.high)

    def test_a_censored_width_has_no_upper_bound(self):
        found = interval(shifted(np.minimum(VALLEY, 0.3), [0.0, 0.01, -0.01]), r.width())

        assert found.censoring in ("right", "both")
        assert found.high == math.inf

    def test_a_width_that_some_resamples_censor_has_none_either(self):
        losses = np.tile(VALLEY[:, None], 3)
        losses[-1, 0] = losses[:, 0].min() - 0.2  # one seed of three is best at the edge
        losses[-2, 0] = losses[-1, 0]

        assert interval(curve(losses), r.width()).high == math.inf

    def test_it_never_leaves_what_is_possible(self):
        noisy = curve(VALLEY[:, None] + 0.3 * np.random.default_rng(0).random((9, 2)))

        assert interval(noisy, r.width()).low >= 0

    def test_of_a_learning_rate_it_is_taken_in_log_lr(self):
        found = interval(shifted(VALLEY, [0.0, 0.01]), r.best_lr())

        assert (found.value, found.low, found.high) == pytest.approx((1, 10**-0.5, 10**0.5))

    @pytest.mark.parametrize(("seeds", "least"), [(3, 0.88), (5, 0.88)])
    def test_it_covers_the_truth_as_often_as_it_says_and_percentiles_do_not(self, seeds, least):
        """150 simulated sweeps: 95 % up to chance (0.88 is four errors below), not 75 %."""
        rng, metric = np.random.default_rng(0), r.width(0.2)
        truth = metric(curve(VALLEY[:, None])).value
        hits = {"student": 0, "percentile": 0}
        for _ in range(150):
            noise = 0.03 * (rng.standard_normal((9, seeds)) + rng.standard_normal(seeds))
            drawn = curve(VALLEY[:, None] + noise)
            for method in hits:
                found = interval(drawn, metric, method=method)
                hits[method] += found.low <= truth <= found.high

        assert hits["student"] / 150 >= least
        assert hits["percentile"] < hits["student"]
        if seeds == 3:
            assert hits["percentile"] / 150 < 0.85


class TestResamples:
    @pytest.mark.parametrize("seeds", [1, 2, 3, 6])
    def test_few_seeds_are_enumerated(self, seeds):
        weights, chance = resamples(seeds)

        assert len(weights) == math.comb(2 * seeds - 1, seeds)
        assert len(np.unique(weights, axis=0)) == len(weights)
        np.testing.assert_array_equal(weights.sum(axis=1), seeds)
        np.testing.assert_allclose(chance @ weights, np.ones(seeds))
        assert chance.sum() == pytest.approx(1)


class TestComparison:
    def test_pairing_takes_out_what_seeds_share(self):
        """Seeds differ by 0.1, methods by 0.02 in every seed but for 0.001."""
        a = shifted(VALLEY, [0.0, 0.1, 0.2])
        b = shifted(VALLEY + 0.02, [0.001, 0.1, 0.199], method="muon_adam")
        paired = compare(a, b, r.best_loss())
        apart = compare(a, shifted(VALLEY + 0.02, [0.0, 0.1, 0.2], prints=""), r.best_loss())
        low, high = stats.t.interval(0.95, 2, -0.02, stats.sem([-0.021, -0.02, -0.019]))

        assert paired.paired and paired.is_resolved
        assert (paired.low, paired.high) == pytest.approx((low, high))
        assert not apart.paired and not apart.is_resolved

    def test_its_p_value_is_that_of_the_paired_t_test(self):
        a, b = [0.0, 0.01, 0.03, 0.02], [0.02, 0.02, 0.04, 0.05]
        found = compare(shifted(VALLEY, a), shifted(VALLEY, b), r.best_loss())

        assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)

    def test_unpaired_it_is_that_of_welch(self):
        a, b = [0.0, 0.01, 0.03, 0.02], [0.03, 0.05, 0.09]
        found = compare(shifted(VALLEY, a), shifted(VALLEY, b, prints=""), r.best_loss())

        assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)

    @pytest.mark.parametrize(
        ("prints", "reason"),
        [("", "no fingerprints for seed 0"), ("x", "the fingerprints of seed 0 differ")],
    )
    def test_pairing_is_refused_without_proof_and_says_so(self, prints, reason):
        a, b = shifted(VALLEY, [0.0, 0.1]), shifted(VALLEY, [0.0, 0.1], prints=prints)
        found = compare(a, b, r.best_loss())

        assert unpaired_because(a, b) == found.unpaired_because == reason
        assert f"2 seeds, not paired: {reason}" in found.sentence()

    def test_only_common_seeds_are_paired(self, table):
        runs = table({"adamw": {0.1: [0.5, 0.6, 0.7]}, "scion": {0.1: [0.5, 0.6, 0.7]}})
        runs["weights_fingerprint"] = "w" + runs["seed"].astype(str)
        runs["batch_fingerprint"] = "b"
        runs.loc[runs["method"] == "scion", "seed"] += 1
        runs.loc[runs["method"] == "scion", "weights_fingerprint"] = ["w1", "w2", "w3"]
        found = compare(*curves(runs), r.best_loss())

        assert (found.paired, found.seeds) == (True, 2)

    def test_a_resolved_width_is_said_with_its_interval(self):
        """Slopes of 0.5 and 2 nats per decade, so widths of about 0.3 and 0.08."""
        noise = [0.0, 0.001, -0.001, 0.002, 0.0]
        a = curve((0.3 + 0.5 * np.abs(X))[:, None] * (1 + np.array(noise)))
        b = curve((0.3 + 2.0 * np.abs(X))[:, None] * (1 - np.array(noise)), method="muon_adam")
        text = compare(a, b, r.width()).sentence()

        assert text.startswith("MuonMax-Momo's usable width at 5 % is 0.")
        assert "decades larger than MuonAdam's (95 % interval 0." in text
        assert text.endswith(", 5 seeds).")
        assert "decades smaller than MuonMax-Momo's" in compare(b, a, r.width()).sentence()

    def test_a_censored_width_is_at_least_so_much_larger(self):
        noise = [0.0, 0.01, -0.01]
        flat = shifted(np.where(X < 0, VALLEY, 0.3), noise)
        steep = shifted(0.3 + 2.0 * np.abs(X), noise, method="muon_adam")
        found = compare(flat, steep, r.width())

        assert found.is_resolved and found.high == math.inf
        assert 2.05 < found.low < 2.06  # rounded down
        assert "is at least 2 decades larger than MuonAdam's" in found.sentence()
        assert "MuonMax-Momo's is cut by the right edge of its grid" in found.sentence()

    def test_an_end_that_resamples_leave_open_is_said(self):
        """As measured the best point is inside the grid, on a resample it is at its edge."""
        losses = np.array([[0.5, 0.5, 0.2], [0.3, 0.3, 0.3], [0.9, 0.9, 0.9]]) + 0.5
        worse = shifted(1.2 + 0.5 * np.abs(X[:3] - X[1]), [0.0, 0.001, 0.002], method="muon_adam")
        found = compare(curve(losses), worse, r.best_loss())

        assert found.is_resolved and found.low == -math.inf
        assert "3 seeds; some choices of the seeds move the optimum to where" in found.sentence()

    def test_two_censored_widths_are_never_resolved(self):
        noise = [0.0, 0.01, -0.01]
        a, b = (shifted(np.where(left > X, VALLEY, 0.3), noise) for left in (0, 1))
        found = compare(a, b, r.width())

        assert found.p == 1 and found.seeds_needed is None
        assert "is not resolved" in found.sentence() and "cut by the right edge" in found.sentence()

    def test_an_open_question_says_how_many_seeds_would_answer_it(self):
        """Per-seed differences of 0.01 with a standard deviation of 0.02, so d = 0.5."""
        b = shifted(VALLEY, [0.0, 0.0, 0.0], method="muon_adam")
        found = compare(shifted(VALLEY, [0.01, 0.03, -0.01]), b, r.best_loss())
        n = np.arange(2, 100)
        needed = stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1) <= 0.5 * np.sqrt(n)

        assert found.seeds_needed == n[needed.argmax()]
        assert found.sentence().endswith(f"about {found.seeds_needed} seeds would be needed.")

    def test_seeds_that_agree_exactly_prove_no_more_than_their_number(self):
        """No noise to divide by: the chance that all fall on one side is 2^(1-S)."""
        a, b = shifted(VALLEY, [0.0] * 3), shifted(VALLEY + 0.1, [0.0] * 3, method="muon_adam")
        found = compare(a, b, r.best_loss())

        assert found.p == 0.25 and found.seeds_needed == 6
        assert not found.is_resolved
        assert found.sentence().endswith(
            "seeds agree exactly, as by chance they do with p = 0.25, and about 6 would be needed."
        )

    def test_one_seed_resolves_nothing(self):
        a, b = shifted(VALLEY, [0.0]), shifted(VALLEY + 1, [0.0], method="muon_adam")

        assert math.isnan(compare(a, b, r.best_loss()).p)
        assert "1 seed cannot show the noise" in compare(a, b, r.best_loss()).sentence()

    def test_a_metric_that_one_has_not_cannot_be_compared(self):
        a, b = shifted(VALLEY, [0.0, 0.1]), shifted(VALLEY, [0.0, 0.1], method="muon_adam")
        text = compare(a, b, r.misset(1e6)).sentence()

        assert "cannot be compared" in text and "the grid ends too early on the right" in text


class TestHolm:
    def test_it_is_the_step_down_procedure(self):
        found = holm([0.01, 0.04, 0.03, 0.005])

        np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])

    def test_it_never_exceeds_one_and_keeps_a_single_p(self):
        np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
        np.testing.assert_allclose(holm([0.03]), [0.03])
        assert holm([]).shape == (0,)

    def test_many_comparisons_make_each_harder_to_resolve(self):
        a = shifted(VALLEY, [0.0, 0.01, 0.02])
        b = shifted(VALLEY + 0.02, [0.003, 0.01, 0.025], method="muon_adam")
        one = compare(a, b, r.best_loss())
        many = corrected([one] * 20)

        assert one.is_resolved
        assert not any(each.is_resolved for each in many)
        assert "among all comparisons made" in many[0].sentence()

    def test_a_comparison_without_a_test_counts_for_nothing(self):
        a, b = shifted(VALLEY, [0.0, 0.1, 0.2]), shifted(VALLEY + 0.02, [0.0, 0.1, 0.21])
        one = compare(a, b, r.best_loss())
        none = compare(shifted(VALLEY, [0.0]), shifted(VALLEY, [0.0]), r.best_loss())

        assert corrected([one, none])[0].p == one.p


class TestCompared:
    def three(self) -> list[Curve]:
        noise = np.array([0.0, 0.01, -0.01, 0.005])
        return [
            shifted(VALLEY, list(noise), method="adamw"),
            shifted(VALLEY + 0.005, list(-noise), method="scion"),
            shifted(VALLEY + 0.5, list(1.1 * noise), method="muonmax"),
        ]

    def test_bold_are_the_best_and_those_that_no_test_tells_from_it(self):
        assert compared.as_good_as_best(self.three(), r.best_loss()) == {0, 1}

    def test_nothing_is_bold_without_a_test(self):
        alone = [shifted(VALLEY, [0.0]), shifted(VALLEY + 1, [0.0])]

        assert compared.as_good_as_best(alone, r.best_loss()) == set()
        assert compared.as_good_as_best(self.three()[:1], r.best_loss()) == set()

    def test_the_widest_is_the_best_in_width(self):
        """Slopes of 2 and 0.5 nats per decade."""
        noise = [0.0, 0.01]
        both = [shifted(0.3 + slope * np.abs(X), noise) for slope in (2.0, 0.5)]
        found = compared.against_best(both, r.width())

        assert found is not None and found[0] == 1

    def test_the_summary_names_what_is_resolved(self):
        text = "\n".join(compared.summary(self.three()))

        assert (
            "best loss: AdamW has the best, better than MuonMax; not resolved from Scion." in text
        )

    def test_the_summary_says_plainly_where_nothing_is_resolved(self):
        noisy = [shifted(VALLEY, [0.0, 0.3 * i, 0.1]) for i in (1, 2, 3)]
        two, three = ("\n".join(compared.summary(noisy[:n])) for n in (2, 3))

        assert "has the best; no difference to the other is resolved: MuonMax-Momo." in two
        assert "no difference to the others is resolved: MuonMax-Momo, MuonMax-Momo." in three
        assert "for certain" not in three

    def test_each_block_says_which_comparisons_are_corrected_together(self):
        """One pair can be resolved in one block and not in the other."""
        summary = compared.summary(self.three())[0]
        block = " ".join(_comparisons(self.three(), ("adamw", "muonmax"), compared.USABLE).split())

        assert "all methods against its best are corrected together" in summary
        assert "the 9 metrics of this pair are corrected together" in block

    def test_a_pair_is_compared_in_every_metric(self):
        found = compared.pair(self.three(), "adamw", "MuonMax")

        assert {"best loss", "LR sensitivity", "usable width at 5 %"} <= {c.name for c in found}
        assert len(found) == 9

    def test_an_unknown_method_is_refused_with_the_nearest(self):
        with pytest.raises(ConfigError, match="Did you mean 'scion'"):
            compared.pair(self.three(), "adamw", "sciom")

    @pytest.mark.parametrize("text", ["5", "1", "5:drop"])
    def test_a_share_of_the_drop_of_one_or_more_is_refused_with_what_was_meant(self, text):
        with pytest.raises(ConfigError, match=r"Write 0\.05 for 5 %"):
            compared.usable(text)

    @pytest.mark.parametrize("text", ["5:absolute", "1:relative"])
    def test_other_rules_may_lose_more_than_one(self, text):
        assert compared.usable(text).words

    @pytest.mark.parametrize("text", ["", "0", "x", "0.05:drops", "-1"])
    def test_a_width_rule_that_is_none_is_refused(self, text):
        with pytest.raises(ConfigError, match="Expected --width Q"):
            compared.usable(text)


class TestMissingSeeds:
    """What two seeds cannot say where one of them lacks a point, in words that hold."""

    def lacking(self, losses: np.ndarray = VALLEY) -> Curve:
        """Two seeds; the second has no result at a tenth of the best learning rate."""
        whole = shifted(losses, [0.0, 0.1])
        done, best = whole.done.copy(), int(np.argmin(losses))
        done[best - 2, 1] = False
        return replace(whole, done=done, loss=np.where(done, whole.loss, np.nan))

    def test_a_difference_without_bounds_is_not_called_zero(self):
        """A resample of the second seed alone has no loss there."""
        other = shifted(VALLEY + 0.3 * (X < -0.5), [0.0, 0.1], method="muon_adam")
        found = compare(self.lacking(), other, r.misset(0.1))
        text = found.sentence()

        assert math.isinf(found.low) and math.isinf(found.high) and abs(found.difference) > 0.1
        assert "zero as measured" not in text
        assert "MuonMax-Momo lacks seeds at some learning rates" in text

    def test_a_difference_that_is_zero_is_called_so(self):
        a = shifted(VALLEY, [0.0, 0.1])

        assert "it is zero as measured" in compare(a, a, r.misset(0.1)).sentence()

    def test_an_interval_off_its_centre_says_why(self):
        other = shifted(VALLEY + 0.1, [0.0, 0.1], method="muon_adam")
        missing = compare(self.lacking(), other, r.sensitivity())
        whole = compare(shifted(VALLEY, [0.0, 0.2]), other, r.sensitivity())

        assert missing.high - missing.difference > 2 * (missing.difference - missing.low)
        assert "wider on the side that missing seeds leave open" in missing.sentence()
        assert "wider on the side" not in whole.sentence()

    def test_a_method_without_results_has_not_failed_to_learn(self):
        none = shifted(VALLEY, [0.0, 0.1], method="muon_adam")
        empty = np.zeros_like(none.done)
        none = replace(none, done=empty, loss=np.full(none.loss.shape, np.nan))
        text = compare(shifted(VALLEY, [0.0, 0.1]), none, r.best_loss()).sentence()

        assert "MuonAdam has no results so far" in text and "nothing was learned" not in text
