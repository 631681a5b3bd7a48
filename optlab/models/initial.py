"""Initial weights as an axis: what replaces those that a model draws for itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..optim.roles import param_groups
from .gpt import STD, TO_RESIDUAL


@torch.no_grad()
def initialize(model: nn.Module, how: str) -> None:
    """Draw the weights of ``model`` anew; parameters of role ``vector`` (gains, biases) stay.

    ``default``: the model's own stay.
    ``gpt2``: normal with standard deviation 0.02, what writes to the residual stream of a
    transformer with 0.02 / sqrt(number of such matrices) (GPT-2, section 2.3).
    ``orthogonal``: orthonormal rows or columns (arXiv 1312.6120); embeddings stay.
    ``mup``: normal, scaled to spectral norm sqrt(rows / columns) (arXiv 2310.17813, condition 1);
    rows of embeddings to root mean square 1. Where the token embedding is the head too, rows have
    length 1, lest the first logits be of the order of sqrt(width).

    A convolution is the matrix (out, in k k); queries, keys and values in one are three matrices.
    """
    if how == "default":
        return
    weights = list(_weights(model))
    residual = sum(name.endswith(TO_RESIDUAL) for _, name, _ in weights)
    tied = all(role != "head" for role, _, _ in weights)
    for role, name, weight in weights:
        if how == "gpt2":
            scale = 1 / math.sqrt(residual) if name.endswith(TO_RESIDUAL) else 1.0
            nn.init.normal_(weight, std=STD * scale)
        elif role != "embedding":
            for matrix in weight.chunk(3 if name.endswith("qkv.weight") else 1):
                nn.init.orthogonal_(matrix) if how == "orthogonal" else _spectral_(matrix)
        elif how == "mup":
            _rows_(weight, length=1.0 if tied else math.sqrt(weight.shape[1]))


def _weights(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Role, name and value of all parameters but vectors."""
    for group in param_groups(model):
        if group["role"] != "vector":
            for name, weight in zip(group["names"], group["params"], strict=True):
                yield group["role"], name, weight


def _spectral_(weight: Tensor) -> None:
    nn.init.normal_(weight)
    matrix = weight.flatten(1)
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    norm = torch.linalg.eigvalsh(gram)[-1].sqrt()
    weight.mul_(math.sqrt(rows / columns) / norm)


def _rows_(weight: Tensor, *, length: float) -> None:
    nn.init.normal_(weight)
    weight.mul_(length / weight.norm(dim=1, keepdim=True))
