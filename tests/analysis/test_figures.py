"""Figures: found by their file, drawn from any state of a sweep, with a table of what they show."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis import figures
from analysis.curves import Study, curves
from analysis.figures import design_space, loss_curves, lr_sensitivity
from analysis.layout import CannotDraw
from analysis.robustness import usable_width
from analysis.style import KNOWN, RC, style
from optlab.errors import ConfigError

STATES = {
    "complete": {0.1: [0.5, 0.6], 1.0: [0.2, 0.3], 10.0: [0.9, 0.8]},
    "cliff": {0.1: [0.5, 0.6], 1.0: [0.2, "diverged"], 10.0: ["diverged", "diverged"]},
    "holes": {0.1: [0.5, "missing"], 1.0: ["running", "failed"], 10.0: [0.9, 0.8]},
    "all diverged": {0.1: ["diverged", "diverged"], 1.0: ["diverged", "diverged"]},
    "one learning rate": {0.1: [0.5, 0.6]},
    "one run": {0.1: [0.5]},
    "nothing learned": {0.1: [2.0, 2.0], 1.0: [3.0, 2.0]},
    "two decades of loss": {0.1: [2e-3, 1e-3], 1.0: [1.5, 1.0]},
    "seven decades of loss": {0.1: [1e-8, 1e-7], 1.0: [1.5, 1.0]},
    "zero loss": {0.1: [0.0, 0.0], 1.0: [1.5, 1.0]},
}

BOWL = STATES["complete"]


def study(runs: pd.DataFrame, records: pd.DataFrame | None = None) -> Study:
    if records is None:
        records = pd.DataFrame(columns=["run", "step", "val_loss"])
    return Study("demo", runs, records, curves(runs))


def records_of(runs: pd.DataFrame, losses: list[list[float]]) -> pd.DataFrame:
    """Validation losses at steps 0, 10, 20 ... of each run."""
    return pd.DataFrame(
        [
            {"run": run, "step": 10 * k, "val_loss": loss}
            for run, row in zip(runs["run"], losses, strict=True)
            for k, loss in enumerate(row)
        ]
    )


def drawn(figure: Figure, method: str) -> dict[float, float]:
    """Every point of a method that has a marker, learning rate -> loss."""
    look, axes = style(method), figure.axes[0]
    return {
        float(x): float(y)
        for line in axes.lines
        if line.get_marker() == look.marker and to_hex(line.get_color()) == look.colour.lower()
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


def crosses(figure: Figure) -> dict[float, float]:
    """Every divergence mark, learning rate -> stroke width."""
    axes = figure.axes[0]
    return {
        float(line.get_xdata()[0]): line.get_markeredgewidth()
        for line in axes.lines
        if line.get_marker() == "x"
    }


class TestFind:
    def test_every_file_is_a_figure(self):
        assert {"lr_sensitivity", "loss_curves"} <= set(figures.names())
        assert figures.find("loss_curves") is loss_curves.draw

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(ConfigError, match=r"'lr_sensitivty'. Did you mean 'lr_sensitivity'\?"):
            figures.find("lr_sensitivty")


def many(table, methods: list[str], state: str, settings: Sequence[str] = ("",)) -> pd.DataFrame:
    """A table of runs where every method in every setting has the losses of a state."""
    frames = [
        table(dict.fromkeys(methods, STATES[state])).assign(setting=setting) for setting in settings
    ]
    whole = pd.concat(frames, ignore_index=True)
    return whole.assign(run=[f"{i:012x}" for i in range(len(whole))])


def momo_records(runs: pd.DataFrame) -> pd.DataFrame:
    """Records of every run that has begun; a Momo method's steps stay below their cap at 1."""
    begun = runs.loc[~runs["outcome"].isin(["missing", "queued"])]
    return pd.DataFrame(
        [
            {
                "run": run,
                "step": step,
                "val_loss": 2.0 / (1 + step),
                "lr": lr,
                "step_size": min(lr, 0.5) if method.endswith("_momo") else lr,
            }
            for run, method, lr in zip(begun["run"], begun["method"], begun["lr"], strict=True)
            for step in (0, 10, 20)
        ],
        columns=["run", "step", "val_loss", "lr", "step_size"],
    )


SHAPES = {  # methods and settings of a sweep
    "one method": (["adamw_momo"], ("",)),
    "two methods": (["adamw", "my_own_momo"], ("",)),
    "settings": (["scion", "scion_momo"], ("model.width=8", "model.width=16", "model.width=32")),
    "thirty methods": ([f"method_{i}_momo" for i in range(22)] + list(KNOWN)[:8], ("",)),
}
TRIED = [(shape, state) for shape in SHAPES for state in STATES if shape in list(SHAPES)[1:2]] + [
    *(("one method", "one run"), ("settings", "holes"), ("settings", "cliff")),
    *(("thirty methods", "cliff"), ("thirty methods", "holes")),
]


@pytest.mark.parametrize("name", figures.names())
@pytest.mark.parametrize(("shape", "state"), TRIED)
def test_every_figure_of_every_sweep_is_readable_or_a_sentence(table, name, shape, state):
    methods, settings = SHAPES[shape]
    runs = many(table, methods, state, settings)
    try:
        with mpl.rc_context(RC):
            figure, points = figures.find(name)(study(runs, momo_records(runs)))
            figure.draw_without_rendering()
    except CannotDraw as reason:
        assert len(str(reason).split()) > 5
        return

    assert isinstance(points, pd.DataFrame)
    assert not points.columns.has_duplicates
    titles = {figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)}
    assert any("demo" in words for words in titles)
    labels = [figure.get_supxlabel(), *(axes.get_xlabel() for axes in figure.axes)]
    assert any(labels)
    assert overlaps(figure) == []
    assert legends_over_data(figure) == []


def test_every_figure_says_in_a_sentence_that_an_empty_sweep_is_empty(table):
    runs = table({"adamw": {0.1: [0.5]}}).iloc[:0]
    for name in figures.names():
        with pytest.raises(CannotDraw):
            figures.find(name)(study(runs))


def words_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is drawn level or upright, and where it stands."""
    texts = set(figure.findobj(Text))
    for axes in figure.axes:
        for k, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = axes.bbox.intervalx if k == 0 else axes.bbox.intervaly
            for label in axis.get_ticklabels(which="both"):
                middle = label.get_window_extent().get_points().mean(axis=0)[k]
                if not low - 1 <= middle <= high + 1:  # a tick beyond the limits is never drawn
                    texts.discard(label)
    return [
        (text.get_text(), text.get_window_extent())
        for text in texts
        if text.get_visible() and text.get_text().strip() and text.get_rotation() in (0, 90)
    ]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel."""
    shown = words_of(figure)
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(shown, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def legends_over_data(figure: Figure) -> list[str]:
    """Legends that reach into axes; those within a panel of several settings stand in its air."""
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [
        legend.get_texts()[0].get_text()
        for legend in legends
        if legend is not None
        for axes in figure.axes
        if len(figure.axes) < 3 and legend.get_window_extent().overlaps(axes.bbox)
    ]


class TestLrSensitivity:
    def test_the_table_holds_exactly_what_is_drawn(self, table):
        figure, points = lr_sensitivity.draw(study(table({"adamw": STATES["complete"]})))

        assert drawn(figure, "adamw") == pytest.approx(
            dict(zip(points["lr"], points["mean"], strict=True))
        )
        np.testing.assert_allclose(points["mean"], [0.55, 0.25, 0.85])
        np.testing.assert_allclose(points["low"], [0.5, 0.2, 0.8])
        np.testing.assert_allclose(points["high"], [0.6, 0.3, 0.9])
        assert list(points["best"]) == [False, True, False]

    def test_divergence_is_marked_at_the_ceiling_and_never_dropped(self, table):
        figure, points = lr_sensitivity.draw(study(table({"adamw": STATES["cliff"]})))
        marks = crosses(figure)

        assert marks == {1.0: lr_sensitivity.SOME, 10.0: lr_sensitivity.EVERY}
        assert list(points["seeds_diverged"]) == [0, 1, 2]
        np.testing.assert_allclose(points["mean"], [0.55, 1.1, 2.0])
        assert figure.axes[0].get_ylim()[1] == 2.0

    def test_rows_of_crosses_keep_methods_apart(self, table):
        figure, _ = lr_sensitivity.draw(
            study(table({"adamw": STATES["all diverged"], "scion": STATES["all diverged"]}))
        )
        figure.draw_without_rendering()
        marks = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
        heights = {line.get_transform().transform((0.1, 1.0))[1] for line in marks}

        assert len(marks) == 4
        assert len(heights) == 2

    def test_a_gap_is_no_point_and_breaks_the_line(self, table):
        figure, points = lr_sensitivity.draw(study(table({"adamw": STATES["holes"]})))
        (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]

        assert set(drawn(figure, "adamw")) == {0.1, 10.0}
        np.testing.assert_array_equal(np.isnan(line.get_ydata()), [False, True, False])
        assert list(points["seeds_done"]) == [1, 0, 2]

    def test_a_point_with_missing_seeds_is_hollow(self, table):
        figure, _ = lr_sensitivity.draw(study(table({"adamw": STATES["holes"]})))
        marked = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
        faces = {float(line.get_xdata()[0]): line.get_markerfacecolor() for line in marked}

        assert faces == {0.1: "white", 10.0: style("adamw").colour}

    @pytest.mark.parametrize(
        ("losses", "marker"), [([0.1, 0.5, 0.5], "<"), ([0.5, 0.5, 0.1], ">"), ([0.5], "d")]
    )
    def test_an_optimum_on_the_edge_points_outwards(self, table, losses, marker):
        runs = table({"adamw": {10.0**i: [loss] for i, loss in enumerate(losses)}})
        figure, points = lr_sensitivity.draw(study(runs))
        marks = [line for line in figure.axes[0].lines if line.get_marker() == marker]

        assert [line.get_xdata()[0] for line in marks] == list(points["lr"][points["best"]])

    def test_an_optimum_inside_has_no_arrow(self, table):
        figure, points = lr_sensitivity.draw(study(table({"adamw": STATES["complete"]})))

        assert not {line.get_marker() for line in figure.axes[0].lines} & {"<", ">", "d"}
        assert set(points["best_where"]) == {"", "interior"}

    @pytest.mark.parametrize(
        ("state", "scale"),
        [("complete", "linear"), ("two decades of loss", "log"), ("zero loss", "linear")],
    )
    def test_the_loss_axis_is_logarithmic_where_the_drop_spans_a_decade(self, table, state, scale):
        figure, _ = lr_sensitivity.draw(study(table({"adamw": STATES[state]})))

        assert figure.axes[0].get_yscale() == scale
        assert figure.axes[0].get_xscale() == "log"

    def test_losses_beyond_the_ceiling_do_not_stretch_the_axis(self, table):
        figure, _ = lr_sensitivity.draw(study(table({"adamw": {0.1: [0.5], 1.0: [1e5]}})))

        assert figure.axes[0].get_ylim()[1] == 2.0

    def test_there_is_one_line_per_initial_loss(self, table):
        runs = table({"adamw": {0.1: [0.5]}, "scion": {0.1: [0.5]}, "muonmax": {0.1: [0.5]}})
        runs["dataset"] = ["digits", "digits", "python_docs"]
        runs["initial_loss"] = [2.3, 2.301, 5.5]
        figure, _ = lr_sensitivity.draw(study(runs))
        levels = [line.get_ydata()[0] for line in figure.axes[0].lines if line.is_dashed()]

        assert sorted(levels) == [2.301, 5.5]

    def test_the_legend_explains_only_the_marks_in_use(self, table):
        def legend(state: str) -> list[str]:
            figure, _ = lr_sensitivity.draw(study(table({"adamw": STATES[state]})))
            return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

        usual = ["AdamW", "initial loss (ceiling)"]
        band, edge = "min to max over seeds", "best at the grid's edge"
        usable = "usable: within 5% of the drop"
        assert legend("complete") == [*usual, band, usable]
        assert legend("cliff") == [
            *(*usual, band, "all seeds diverged", "some seeds diverged", edge, usable)
        ]
        assert legend("holes") == [*usual, band, "seeds missing", edge, usable]
        assert legend("one run") == [*usual, edge, usable]
        assert legend("all diverged") == [*usual, band, "all seeds diverged"]

    def test_certified_points_are_drawn_counted_and_told_apart(self, table):
        runs = table({"momo": {0.1: [0.5], 1.0: [0.5], 10.0: [0.5]}})
        runs["certified_by"] = ["", "", runs["run"][1]]
        figure, points = lr_sensitivity.draw(study(runs))
        (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "."]

        assert list(dots.get_xdata()) == [10.0]
        assert list(points["seeds_certified"]) == [0, 0, 1]
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert "certified: repeats a smaller lr" in texts

    def test_a_momo_form_is_told_from_its_method_in_the_bars_too(self, table):
        losses = {0.1: [0.5], 1.0: [0.2], 10.0: [0.6]}
        figure, _ = lr_sensitivity.draw(study(table({"scion": losses, "scion_momo": losses})))
        bars = [line for line in figure.axes[1].lines if len(np.ravel(line.get_xdata())) == 2]

        assert len(bars) == 2 and bars[0].get_color() == bars[1].get_color()
        assert [bar.is_dashed() for bar in bars] == [False, True]

    def test_an_edge_that_cuts_is_marked_beside_the_best_point_not_under_it(self, table):
        figure, _ = lr_sensitivity.draw(study(table({"scion": {0.1: [0.9], 1.0: [0.2]}})))
        figure.draw_without_rendering()
        (arrow,) = [line for line in figure.axes[1].lines if line.get_marker() == ">"]
        (best_point,) = [line for line in figure.axes[1].lines if line.get_marker() == "D"]
        places = [
            line.get_transform().transform(line.get_xydata())[0] for line in (arrow, best_point)
        ]
        apart = 72 / figure.dpi * (places[0] - places[1])

        assert apart[0] > best_point.get_markersize() / 2 + arrow.get_markersize() / 2
        assert apart[1] == pytest.approx(0)

    def test_the_usable_learning_rates_are_barred_below(self, table):
        runs = table({"adamw": {0.1: [1.9], 1.0: [0.5], 10.0: [0.5]}})
        figure, points = lr_sensitivity.draw(study(runs))
        bar, *_ = figure.axes[1].lines
        width = usable_width(curves(runs)[0])

        assert list(bar.get_xdata()) == [width.left.lr, width.right.lr]
        assert list(points["usable"]) == [False, True, True]
        assert set(points["usable_right_bound"]) == {"edge"}
        assert ">" in {line.get_marker() for line in figure.axes[1].lines}

    def test_more_lines_than_a_panel_holds_become_small_multiples(self, table):
        names = [f"method_{i:02d}" for i in range(lr_sensitivity.MANY + 1)]
        figure, points = lr_sensitivity.draw(study(table(dict.fromkeys(names, BOWL))))

        assert [axes.get_title(loc="left") for axes in figure.axes] == names
        shaded = [len(axes.patches) for axes in figure.axes]
        assert shaded == [1] * len(names)
        assert set(points["method"]) == set(names)

    def test_settings_of_a_method_share_its_panel(self, table):
        settings = [f"width={width}" for width in (8, 16, 32)]
        methods = [f"method_{i}" for i in range(5)]
        runs = many(table, methods, "complete", settings)
        figure, _ = lr_sensitivity.draw(study(runs))

        assert len(figure.axes) == 5
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert set(texts) == set(settings)

    def test_long_settings_are_titles_that_leave_each_other_room(self, table):
        words = "optimizer.kind=regularized optimizer.product=Euclidean norms=spectral_ada"
        runs = many(table, ["muonmax_momo"], "cliff", [f"{words}{i}" for i in range(20)])
        with mpl.rc_context(RC):
            figure, _ = lr_sensitivity.draw(study(runs))
            figure.draw_without_rendering()
            titles = [box for text, box in words_of(figure) if words[:20] in text]

        assert len(titles) == len(figure.axes) == 20
        assert overlaps(figure) == []
        boxes = itertools.product(titles, figure.axes)
        assert not [axes for title, axes in boxes if title.overlaps(axes.bbox)]

    def test_too_many_lines_are_a_sentence_that_says_what_to_do(self, table):
        runs = many(table, ["scion"], "one run", [f"a={i}" for i in range(61)])
        with pytest.raises(CannotDraw, match=r"61 panels; choose among them .*design_space"):
            lr_sensitivity.draw(study(runs))


class TestLossCurves:
    def test_the_best_learning_rate_is_averaged_over_seeds(self, table):
        runs = table({"adamw": {0.1: [0.5, 0.7], 1.0: [0.9, 0.9]}})
        losses = [[2.0, 1.0, 0.5], [2.0, 1.2, 0.7], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]]
        figure, points = loss_curves.draw(study(runs, records_of(runs, losses)))
        (line,) = figure.axes[0].lines

        assert set(points["lr"]) == {0.1}
        assert list(points["step"]) == [0, 10, 20]
        np.testing.assert_allclose(points["mean"], [2.0, 1.1, 0.6])
        np.testing.assert_allclose(points["low"], [2.0, 1.0, 0.5])
        np.testing.assert_allclose(points["high"], [2.0, 1.2, 0.7])
        np.testing.assert_allclose(line.get_ydata(), points["mean"])
        assert line.get_label() == "AdamW, lr 0.1"

    def test_chosen_learning_rates_get_a_line_each(self, table):
        runs = table({"adamw": {0.03162: [0.5], 1.0: [0.9]}, "scion": {0.1: [0.7], 1.0: [0.6]}})
        found = study(runs, records_of(runs, [[2.0, each] for each in (0.5, 0.9, 0.7, 0.6)]))
        figure, points = loss_curves.draw(replace(found, lrs=(10**-1.5, 1.0)))
        looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
        last = points.loc[points["step"] == 10]

        assert list(zip(last["method"], last["lr"], last["mean"], strict=True)) == [
            ("adamw", 0.03162, 0.5),
            ("adamw", 1.0, 0.9),
            ("scion", 1.0, 0.6),
        ]
        assert len(set(looks)) == 3
        assert "at the chosen learning rates" in figure.axes[0].get_title()

    def test_runs_that_are_not_done_do_not_enter(self, table):
        runs = table({"adamw": {0.1: [0.5, "running"]}})
        _, points = loss_curves.draw(study(runs, records_of(runs, [[2.0, 0.5], [2.0, 1.9]])))

        np.testing.assert_allclose(points["mean"], [2.0, 0.5])

    def test_steps_that_a_seed_did_not_evaluate_are_left_out(self, table):
        runs = table({"adamw": {0.1: [0.5, 0.7]}})
        _, points = loss_curves.draw(
            study(runs, records_of(runs, [[2.0, 1.0, 0.5], [2.0, np.nan, 0.7]]))
        )

        assert list(points["step"]) == [0, 20]

    def test_without_evaluations_there_is_a_sentence_instead_of_empty_axes(self, table):
        with pytest.raises(CannotDraw, match=r"needs the evaluations of the runs .*--records FILE"):
            loss_curves.draw(study(table({"adamw": {0.1: [0.5]}})))


def test_the_design_space_draws_no_two_lines_alike(table):
    """Without norms a method would look like the next one."""
    runs = table({"adamw": STATES["complete"], "scion": STATES["complete"]})

    with pytest.raises(CannotDraw, match="tells lines apart by their norms"):
        design_space.draw(study(runs))


def test_the_design_space_has_a_panel_per_setting_and_a_line_per_norms(table):
    frames = []
    for norms in ("spectral_linf", "spectral_ada2"):
        for product in ("Max", "Hybrid"):
            frame = table({"muonmax": STATES["complete"], "muonmax_momo": STATES["complete"]})
            setting = f"optimizer.product={product}"
            runs = frame["run"] + norms + product
            frames.append(frame.assign(norms=norms, setting=setting, run=runs))
    figure, points = design_space.draw(study(pd.concat(frames, ignore_index=True)))

    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["product=Hybrid", "product=Max"]
    for axes in panels:
        lines = [line for line in axes.lines if line.get_label() != "initial loss"][:-1]
        assert len(lines) == 4  # two norms, with and without Momo
        assert {line.get_linestyle() for line in lines} == {"-", "--"}
        assert len({line.get_color() for line in lines}) == 2
    assert set(points["panel"]) == {"optimizer.product=Hybrid", "optimizer.product=Max"}
    assert len(points) == 8 * len(set(points["lr"]))
