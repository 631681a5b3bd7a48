"""One look per method, the same everywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.style import KNOWN, order, style, styles

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


def luminance(colour: str) -> float:
    """0 to 1, as a grey printer sees it (ITU-R BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


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


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_no_two_lines_of_a_figure_look_alike(names):
    looks = styles([*KNOWN, *names])

    for one, other in itertools.combinations(looks, 2):
        assert (one.colour, one.marker, one.dash) != (other.colour, other.marker, other.dash)


def test_a_method_in_two_settings_keeps_its_colour_and_changes_its_marker():
    first, second = styles(["adamw", "adamw"])

    assert first == style("adamw")
    assert second.colour == first.colour
    assert second.marker != first.marker


def test_known_methods_come_first_and_in_their_own_order():
    names = ["aaa", *reversed(KNOWN)]

    assert sorted(names, key=order) == [*KNOWN, "aaa"]
