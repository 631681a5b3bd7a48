"""Averages of gradients: the forms of momentum, as weights of the past and of the newest."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .replicas import Hyper

Form = Literal[
    "ema_first", "ema_zero", "ema_unbiased", "nesterov", "heavy_ball", "heavy_ball_nesterov"
]
FORMS = ("ema_first", "ema_zero", "ema_unbiased", "nesterov", "heavy_ball", "heavy_ball_nesterov")
MEANS = ("ema_first", "ema_unbiased")  # their weights sum to 1, as the linear model of Momo needs
CONVEX = ("ema_first", "ema_zero", "ema_unbiased", "nesterov")  # no factor 1 / (1 - momentum)
LOOKAHEAD = ("nesterov", "heavy_ball_nesterov")  # average once more with the newest, for the step


class Weights(NamedTuple):
    """m <- past m + new g."""

    past: Hyper
    new: Hyper


def weights(form: Form, beta: Hyper, age: int) -> Weights:
    """The weights after ``age`` earlier gradients; m is zero before the first.

    ``ema_first`` starts at the first gradient (arXiv 2510.09827), ``ema_zero`` and ``nesterov`` at
    zero (K. Jordan, torch.optim.Muon), ``ema_unbiased`` is the average from zero divided by
    1 - beta^t (Adam's), and the heavy ball is a sum, from zero (Moonlight, arXiv 2502.16982).
    """
    if form in ("heavy_ball", "heavy_ball_nesterov"):
        return Weights(beta, 1.0)
    if form == "ema_first" and age == 0:
        return Weights(0.0, 1.0)
    if form == "ema_unbiased":
        new = (1 - beta) / (1 - beta ** (age + 1))
        return Weights(1 - new, new)
    return Weights(beta, 1 - beta)
