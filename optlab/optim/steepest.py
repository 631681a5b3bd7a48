"""Steepest descent in a norm: Muon, Scion, PolarGrad, MuonMax and their Momo forms, as one step.

A method is a norm per layer, a product norm over layers, a kind of descent and a step-size rule
(arXiv 2510.09827); see conf/optimizer for the named ones.
"""

# torch's own optimizers are built on torch._foreach_*, which torch does not export
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, nearest
from .momentum import CONVEX, FORMS, LOOKAHEAD, MEANS, Form, weights
from .norms import SHAPES, Norm, Shape, Spectral, shape_factor
from .product import MATRIX_ROLES, ProductNorm
from .roles import Assignment, as_matrix, assign
from .sharing import Sharing
from .stepsize import LinearModel, Step, StepSize

Kind = Literal["constrained", "regularized"]
NuclearNorm = Literal["polar", "stale", "frobenius"]
POWER = {"constrained": 1, "regularized": 2}


@dataclass(frozen=True)
class Layers:
    """Parameters that one call of their norm serves: of one norm, role, shape, dtype and device."""

    norm: Norm
    role: str
    x: list[Tensor]

    @property
    def g(self) -> list[Tensor]:
        """Their gradients."""
        return [x.grad for x in self.x if x.grad is not None]

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """(layers, rows, columns)."""
        stacked = tensors[0] if len(tensors) == 1 else torch.stack(list(tensors))
        return stacked.view(len(tensors), *as_matrix(tensors[0].shape))


class SteepestDescent(torch.optim.Optimizer):
    """x <- (1 - τ wd) x - τ ‖m‖_*^(power - 1) s z, with z the layers' dualized momenta.

    Args:
        params: from ``optlab.optim.roles.param_groups(model)``.
        lr: what is swept; the cap of τ. One for all groups.
        momentum: weight of the past in the average m of the gradients.
        weight_decay: decoupled. 1.0 is the constrained form of Scion (Frank-Wolfe): weights that
            start in the unit ball of the norm stay there.
        norms: a norm for every parameter.
        kind: ``constrained``, steps of length τ (like the sign of a gradient), or ``regularized``,
            of length τ ‖m‖_* (like a gradient).
        product: how the layers share the step.
        step_size: τ.
        decay_by: weights shrink by ``step`` τ times weight_decay, or by ``lr`` (after the schedule)
            times weight_decay, the authors' form, which spoils Momo's plateau at large lr.
        momentum_form: how the average starts and what is dualized, see ``momentum.weights``; v
            is averaged like m.
        nuclear_norm: the dual norm of spectral layers, from the ``polar`` factor at hand, from the
            last step's (``stale``), or the ``frobenius`` norm instead (arXiv 2510.09827).
        step_shape: a factor on the steps of matrices, after the norm (see ``norms.shape_factor``);
            ``Spectral.shape`` is in the norm, where it acts on the dual norm too.

    Raises:
        ConfigError: a value, or a combination of values, that makes no sense.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        *,
        norms: Assignment,
        kind: Kind,
        product: ProductNorm,
        step_size: StepSize,
        decay_by: Literal["lr", "step"] = "step",
        momentum_form: Form = "ema_first",
        nuclear_norm: NuclearNorm = "polar",
        step_shape: Shape = "one",
    ) -> None:
        _check_word("kind", kind, tuple(POWER))
        _check_word("decay_by", decay_by, ("lr", "step"))
        _check_word("momentum_form", momentum_form, FORMS)
        _check_word("nuclear_norm", nuclear_norm, ("polar", "stale", "frobenius"))
        _check_word("step_shape", step_shape, SHAPES)
        if not 0 <= momentum < 1:
            raise ConfigError(f"optimizer.momentum must be in [0, 1), not {momentum}.")
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise ConfigError(f"optimizer.weight_decay must be at least 0, not {weight_decay}.")
        self.momentum = momentum
        self.momentum_form: Form = momentum_form
        self.weight_decay, self.decay_by = weight_decay, decay_by
        self.norms, self.kind, self.product, self.step_size = norms, kind, product, step_size
        self.nuclear_norm = nuclear_norm
        self.step_shape: Shape = step_shape
        self.sharing: Sharing | None = None  # of polar factors, among processes that step alike
        super().__init__(params, {"lr": lr})
        self._layers = self._assigned()
        self._check_momentum_form()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step, after ``loss.backward()``; the closure returns the loss and is called once.

        Parameters without a gradient stay as they are. Leaves ``step_size`` and ``dual_norm``,
        shape (), in the first parameter group, and in ``capped_steps``, shape (), the number of
        steps so far in which a rule that truncates τ at lr took lr itself.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        lr, power = self._lr(), POWER[self.kind]
        layers = list(self._with_gradient())
        if not layers:
            return loss

        value = self._model_value(loss, layers) if self.step_size.needs_loss else None
        z, d = [], []
        for these, m, z_these in self._dualized(layers):
            z.append(z_these)
            d.append(self._dual_norms(these, m, z_these))
        dual_norms = torch.cat(d)
        s = self.product.dualize(dual_norms, [these.role for these in layers for _ in these.x])
        dual_norm = dual_norms @ s
        model = LinearModel(value, dual_norm, self.param_groups[0].get("lower_bound"))
        chosen = self.step_size(lr, model, power)
        tau = chosen.tau
        lengths = tau * dual_norm ** (power - 1) * s

        self._decay(layers, lr if self.decay_by == "lr" else tau)
        sizes = [len(these.x) for these in layers]
        for these, z_these, length in zip(layers, z, lengths.split(sizes), strict=True):
            _descend(these.x, z_these, length * self._shape_after(these))
        self._record(chosen, dual_norm)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may come after steps have been taken."""
        super().add_param_group(param_group)
        self._layers = None

    def _with_gradient(self) -> Iterator[Layers]:
        """The layers that have a gradient, split by the number of gradients so far."""
        if self._layers is None:
            self._layers = self._assigned()
        for layers in self._layers:
            ages: dict[int, list[Tensor]] = {}
            for x in layers.x:
                if x.grad is not None:
                    ages.setdefault(self.state[x].get("age", 0), []).append(x)
            for x in ages.values():
                yield Layers(layers.norm, layers.role, x)

    def _dualized(self, layers: Sequence[Layers]) -> Iterator[tuple[Layers, Tensor, Tensor]]:
        """The layers, with m and z = dualize(m)."""
        if self.sharing is None:
            for these in layers:
                m, v = self._average_gradients(these)
                yield these, m, these.norm.dualize(m, v)
            return
        averages = [(these, *self._average_gradients(these)) for these in layers]
        polar = _shared(averages, self.sharing)
        for index, (these, m, v) in enumerate(averages):
            yield these, m, polar[index] if index in polar else these.norm.dualize(m, v)

    def _average_gradients(self, layers: Layers) -> tuple[Tensor, Tensor | None]:
        """m and, where the norm needs it, v, both (layers, rows, columns), after this gradient."""
        states = [self.state[x] for x in layers.x]
        age, g = states[0].get("age", 0), layers.g
        for state, x in zip(states, layers.x, strict=True):
            if age == 0:
                state["m"] = torch.zeros_like(x, memory_format=torch.contiguous_format)
            state["age"] = age + 1
        m = [state["m"] for state in states]
        past, new = weights(self.momentum_form, self.momentum, age)
        _accumulate(m, g, past, new)
        v = self._second_moment(layers, age)
        if self.momentum_form in LOOKAHEAD:
            m = [m_of_x.clone() for m_of_x in m]
            _accumulate(m, g, past, new)
        return layers.stack(m), v

    def _second_moment(self, layers: Layers, age: int) -> Tensor | None:
        if layers.norm.beta2 is None:
            return None
        if age == 0:
            for x in layers.x:
                zeros = torch.zeros_like(x, memory_format=torch.contiguous_format)
                self.state[x]["v"] = zeros
        v = [self.state[x]["v"] for x in layers.x]
        past, new = weights(self.momentum_form, layers.norm.beta2, age)
        torch._foreach_mul_(v, past)
        torch._foreach_addcmul_(v, layers.g, layers.g, value=new)
        return layers.stack(v)

    def _dual_norms(self, layers: Layers, m: Tensor, z: Tensor) -> Tensor:
        """‖m‖_* = ⟨m, z⟩ of each layer, (layers,), or what ``nuclear_norm`` takes for it."""
        if self.nuclear_norm == "frobenius" and isinstance(layers.norm, Spectral):
            return layers.norm.frobenius_dual(m).double()
        d = (m * z).sum((-2, -1)).double()
        if self.nuclear_norm == "stale" and isinstance(layers.norm, Spectral):
            last = [self.state[x].get("dual_norm", now) for x, now in zip(layers.x, d, strict=True)]
            for x, now in zip(layers.x, d.to(m.dtype), strict=True):
                self.state[x]["dual_norm"] = now  # in the dtype that load_state_dict gives it
            return torch.stack([d_last.double() for d_last in last])
        return d

    def _model_value(self, loss: Tensor | None, layers: Sequence[Layers]) -> Tensor:
        """f̄(x_t), shape (): past losses linearized where they were taken, averaged like m.

        f̄(x) = mean of f_i + ⟨g_i, x - x_i⟩ = c + ⟨m, x⟩, so the state is one number, c.
        """
        if loss is None:
            raise ConfigError(
                f"{type(self.step_size).__name__} needs the loss, and step() got no closure: call"
                " optimizer.step(lambda: loss) after loss.backward()."
            )
        first = self.param_groups[0]
        age = first.get("age", 0)
        past, new = weights(self.momentum_form, self.momentum, age)
        m_x, g_x = self._products(layers)
        c = new * (loss.detach().double() - g_x)
        if age > 0:
            c = c + past * first["intercept"].to(c.device)
        first["age"], first["intercept"] = age + 1, c
        return c + m_x

    def _products(self, layers: Sequence[Layers]) -> tuple[Tensor, Tensor]:
        """⟨m, x⟩ with the m of this step, and ⟨g, x⟩, both shape ()."""
        m_x, g_x = [], []
        for these in layers:
            age = self.state[these.x[0]].get("age", 0)
            past, new = weights(self.momentum_form, self.momentum, age)
            for x, g in zip(these.x, these.g, strict=True):
                g_x.append(_dot(g, x))
                now = new * g_x[-1]
                m_x.append(now + past * _dot(self.state[x]["m"], x) if age > 0 else now)
        return torch.stack(m_x).sum(), torch.stack(g_x).sum()

    def _decay(self, layers: Sequence[Layers], step: float | Tensor) -> None:
        if self.weight_decay == 0:
            return
        for these in layers:
            torch._foreach_mul_(these.x, 1 - step * self.weight_decay)

    def _shape_after(self, layers: Layers) -> float:
        if layers.role not in MATRIX_ROLES:
            return 1.0
        return shape_factor(self.step_shape, *as_matrix(layers.x[0].shape))

    def _lr(self) -> float:
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise ConfigError(
                f"SteepestDescent takes one lr for all parameter groups, not {sorted(rates)}: the"
                " step is one in a norm of all weights. Set the scales of the norms instead."
            )
        return rates.pop()

    def _record(self, chosen: Step, dual_norm: Tensor) -> None:
        first = self.param_groups[0]
        first["step_size"] = torch.as_tensor(chosen.tau, dtype=torch.float64)
        first["dual_norm"] = dual_norm
        if chosen.lower_bound is not None:
            first["lower_bound"] = chosen.lower_bound
        if chosen.capped is not None:
            # not in place: after load_state_dict the count is on the CPU
            first["capped_steps"] = first.get("capped_steps", 0) + chosen.capped

    def _assigned(self) -> list[Layers]:
        """The parameters, those that one call of their norm can serve together."""
        parameters = [x for group in self.param_groups for x in group["params"]]
        cards = assign(self.param_groups, self.norms)
        found: dict[tuple[object, ...], Layers] = {}
        for x, card in zip(parameters, cards, strict=True):
            key = (card.norm, card.role, x.shape, x.dtype, x.device)
            found.setdefault(key, Layers(card.norm, card.role, [])).x.append(x)
        return list(found.values())

    def _check_momentum_form(self) -> None:
        """Raise where a sum of gradients, or a mean with weights below 1, would change the step."""
        form = self.momentum_form
        if self.step_size.needs_loss and form not in MEANS:
            raise ConfigError(
                f"{type(self.step_size).__name__} needs momentum_form {' or '.join(MEANS)}, not"
                f" '{form}': m must be a mean of gradients to be the slope of a linear model."
            )
        reason = self._scale_dependence()
        if reason and form not in CONVEX:
            raise ConfigError(
                f"momentum_form '{form}' multiplies m by up to 1 / (1 - momentum) ="
                f" {1 / (1 - self.momentum):g}, and the step depends on the size of m: {reason}."
                f" Take one of {', '.join(CONVEX)}."
            )

    def _scale_dependence(self) -> str:
        """Why the step depends on the size of m; '' if it depends on its direction alone."""
        if self.kind == "regularized":
            return "kind is regularized"
        if self.step_size.needs_dual_norm:
            return f"step_size is {type(self.step_size).__name__}"
        adaptive = [layers.norm for layers in self._layers or () if layers.norm.beta2 is not None]
        return f"{type(adaptive[0]).__name__} divides m by the root of v" if adaptive else ""


def _shared(
    averages: Sequence[tuple[Layers, Tensor, Tensor | None]], sharing: Sharing
) -> dict[int, Tensor]:
    """Index -> z of the spectral layers, each matrix dualized in one of the processes.

    Matrices of one stack are iterated without regard to each other, so that a piece of a stack
    gives the bits that the whole gives (on one kind of processor).
    """
    pieces = [
        (index, piece)
        for index, (these, m, _) in enumerate(averages)
        if isinstance(these.norm, Spectral)
        for piece in m.split(-(-len(m) // sharing.world))
    ]
    if not pieces:
        return {}

    def compute(chosen: Sequence[int]) -> list[Tensor]:
        mine = [pieces[i] for i in chosen]
        return [averages[index][0].norm.dualize(m, None) for index, m in mine]

    z: dict[int, list[Tensor]] = {}
    stacks = [piece for _, piece in pieces]
    found = sharing.shared(stacks, [_polar_cost(m) for m in stacks], compute)
    for (index, _), z_piece in zip(pieces, found, strict=True):
        z.setdefault(index, []).append(z_piece)
    return {index: torch.cat(of_index) for index, of_index in z.items()}


def _polar_cost(m: Tensor) -> float:
    """Of iterating a stack, in products of numbers, up to a factor."""
    short, long = sorted(m.shape[-2:])
    return len(m) * short**2 * long


def _accumulate(m: list[Tensor], g: list[Tensor], past: float, new: float) -> None:
    """m <- past m + new g; in one pass where it is a mean."""
    if past + new == 1:
        torch._foreach_lerp_(m, g, new)
    else:
        torch._foreach_mul_(m, past)
        torch._foreach_add_(m, g, alpha=new)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ in float64, shape (), without a temporary of their size."""
    return torch.dot(a.reshape(-1), b.reshape(-1)).double()


def _descend(x: list[Tensor], z: Tensor, length: Tensor) -> None:
    """x <- x - length z, for each layer; ``z`` is overwritten."""
    z.mul_(length.to(z.dtype).view(-1, 1, 1))
    torch._foreach_sub_(x, z.view(len(x), *x[0].shape).unbind())


def _check_word(name: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ConfigError(
            f"optimizer.{name} must be one of {', '.join(words)}, not '{word}'."
            f"{nearest(word, words)}"
        )
