"""One look per method, the same everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures.coverage import LOOKS
from analysis.style import KNOWN, LIGHTNESS, lightness, natural, order, shades, style, styles

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


# How people without one kind of cone see linear RGB (Machado, Oliveira and Fernandes 2009,
# severity 1), and a grey printer, which keeps the luminance.
VISIONS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])
VISIBLE = 12.0  # CIE76 distance that nobody overlooks between two lines


def luminance(colour: str) -> float:
    """0 to 1, as a grey printer sees it (ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as it is seen."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1)
    root = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z)]
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def distance(one: str, other: str, vision: str) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


@pytest.mark.parametrize("method", [name for name in KNOWN if name.endswith("_momo")])
def test_a_momo_form_is_its_base_method_dashed(method):
    base, momo = style(method.removesuffix("_momo")), style(method)

    assert (momo.colour, momo.marker) == (base.colour, base.marker)
    assert (base.dash, momo.dash) == ("-", "--")
    assert momo.label == f"{base.label}-Momo"


def test_without_colour_marker_and_dash_still_tell_the_known_methods_apart():
    looks = [style(method) for method in KNOWN]

    assert len({(look.marker, look.dash) for look in looks}) == len(KNOWN)


def test_every_colour_is_dark_enough_for_white_paper():
    assert max(luminance(style(method).colour) for method in KNOWN) < 0.7


@given(NAMES)
def test_the_style_of_an_unknown_method_depends_on_its_name_alone(name):
    assert style(name) == style(name)
    assert style(f"{name}_momo").dash == "--"
    assert style(f"{name}_momo").colour == style(name).colour


@pytest.mark.parametrize("vision", VISIONS)
def test_two_known_methods_differ_in_shape_or_visibly_in_colour_to_every_reader(vision):
    for one, other in itertools.combinations(map(style, KNOWN), 2):
        if (one.marker, one.dash) == (other.marker, other.dash):
            assert distance(one.colour, other.colour, vision) > VISIBLE, (one, other)


@pytest.mark.parametrize("vision", VISIONS)
def test_neighbouring_settings_of_a_method_differ_visibly_to_every_reader(vision):
    for colour in {look.colour for look in KNOWN.values()}:
        for one, other in itertools.pairwise(shades(colour, 4)):
            assert distance(one, other, vision) > VISIBLE, (colour, one, other)


def test_states_of_a_run_differ_in_lightness_or_in_hatch():
    for (one, hatch), (other, other_hatch) in itertools.combinations(LOOKS.values(), 2):
        assert hatch != other_hatch or distance(one, other, "grey") > VISIBLE, (one, other)


@given(st.lists(NAMES, min_size=2, max_size=30, unique=True))
def test_no_two_lines_of_a_figure_look_alike(names):
    looks = styles((name, "") for name in [*KNOWN, *names])

    for one, other in itertools.combinations(looks, 2):
        assert (one.colour, one.marker, one.dash) != (other.colour, other.marker, other.dash)


@given(st.lists(NAMES, min_size=2, max_size=8, unique=True))
def test_unknown_methods_differ_in_marker_or_dash_for_grey(names):
    """From each other and from known ones; round markers look alike."""
    names = [name.removesuffix("_momo") + "x" for name in names]
    looks = styles((name, "") for name in dict.fromkeys([*names, "adam", "muon_jordan", "scion"]))
    shapes = {("o" if s.marker in "ohH8" else s.marker, s.dash) for s in looks[:-3]}
    known = {("o" if s.marker in "ohH8" else s.marker, s.dash) for s in looks[-3:]}

    assert len(shapes) == len(looks) - 3
    assert not shapes & known


def test_a_few_unknown_methods_differ_in_colour_too():
    for names in (["A", "B"], ["Lion-X", "Foo & Bar_%"], ["a", "b", "c", "d", "e"]):
        assert len({look.colour for look in styles((name, "") for name in names)}) == len(names)


def test_the_momo_form_of_an_unknown_method_that_had_to_change_follows_it():
    """'A' and 'B' have one colour by their names alone."""
    assert style("A").colour == style("B").colour
    b, momo = styles((name, "") for name in ("A", "B", "B_momo"))[1:]

    assert (momo.colour, momo.marker, momo.dash) == (b.colour, b.marker, "--")
    assert b.colour != style("A").colour


def test_settings_of_a_method_run_from_dark_to_light_and_change_their_marker():
    settings = ["width=16", "width=128", "width=8"]
    looks = styles(("scion", setting) for setting in settings)
    by_width = [looks[2], looks[0], looks[1]]

    light = [lightness(look.colour) for look in by_width]
    assert light == pytest.approx(np.linspace(*LIGHTNESS, 3), abs=1)
    assert len({look.marker for look in looks}) == 3
    assert {look.dash for look in looks} == {"-"}


def test_a_momo_form_in_the_same_settings_keeps_their_colours():
    lines = [(m, s) for m in ("scion", "scion_momo") for s in ("width=8", "width=16")]
    looks = styles(lines)

    assert [look.colour for look in looks[:2]] == [look.colour for look in looks[2:]]
    assert [look.dash for look in looks] == ["-", "-", "--", "--"]


def test_one_shade_is_the_colour_itself():
    assert shades("#0072B2", 1) == ["#0072B2"]


def test_numbers_in_words_sort_as_numbers():
    words = ["width=128", "width=16", "depth=2", "lr=1e-3", "lr=0.1", "width=8"]

    assert sorted(words, key=natural) == [
        *("depth=2", "lr=1e-3", "lr=0.1", "width=8", "width=16", "width=128")
    ]


def test_known_methods_come_first_and_in_their_own_order():
    names = ["aaa", *reversed(KNOWN)]

    assert sorted(names, key=order) == [*KNOWN, "aaa"]
