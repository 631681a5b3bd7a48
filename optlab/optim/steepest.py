"""Steepest descent in a norm: Muon, Scion, PolarGrad, MuonMax and their Momo forms, as one step.

A method is a norm per layer, a product norm over layers, a kind of descent and a step-size rule
(arXiv 2510.09827); see conf/optimizer for the named ones.
"""

# torch's own optimizers are built on torch._foreach_*, which torch does not export
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError, nearest
from .layers import Layers, Ready, State, arranged, ready
from .momentum import CONVEX, FORMS, LOOKAHEAD, MEANS, Form, weights
from .norms import SHAPES, Shape, Spectral, shape_factor
from .product import MATRIX_ROLES, ProductNorm
from .replicas import Hyper, Merged, spread, stacked_state, state_of
from .roles import Assignment, assign
from .sharing import Sharing
from .stepsize import LinearModel, Step, StepSize

Kind = Literal["constrained", "regularized"]
NuclearNorm = Literal["polar", "stale", "frobenius"]
POWER = {"constrained": 1, "regularized": 2}
_ALIGNMENT = 64  # bytes; of all memory that torch allocates, but not of all views
OPTIONS = (
    "momentum",
    "weight_decay",
    "norms",
    "kind",
    "product",
    "step_size",
    "decay_by",
    "momentum_form",
    "nuclear_norm",
    "step_shape",
)
RECORDED = ("age", "intercept", "lower_bound", "step_size", "dual_norm", "capped_steps")


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
        self.replicas: tuple[int, ...] = self.param_groups[0].get("replicas", ())
        self._layers = self._assigned()
        self._last: tuple[list[str], Tensor] = ([], torch.empty(0))  # for ``dual_norms_by_role``
        self._check_momentum_form()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step, after ``loss.backward()``; the closure returns the loss and is called once.

        Parameters without a gradient stay as they are. Leaves ``step_size`` and ``dual_norm``,
        shape (), in the first parameter group, and in ``capped_steps``, shape (), the number of
        steps so far in which a rule that truncates τ at lr took lr itself.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        lr, power = self.lr(), POWER[self.kind]
        layers = self._with_gradient()
        if not layers:
            return loss

        value = self._model_value(loss, layers) if self.step_size.needs_loss else None
        z, d = [], []
        for these, m, z_these in self._dualized(layers):
            z.append(z_these)
            d.extend(self._dual_norms(these, m, z_these))
        dual_norms = torch.cat(d).double()
        if self.replicas:
            dual_norms = dual_norms.mT.contiguous()
        roles = [these.layers.role for these in layers for _ in these.g]
        s = self.product.dualize(dual_norms, roles)
        dual_norm = _dot(dual_norms, s)
        model = LinearModel(value, dual_norm, self.param_groups[0].get("lower_bound"))
        chosen = self.step_size(lr, model, power)
        tau = chosen.tau
        length = tau if power == 1 else tau * dual_norm
        if self.replicas and isinstance(length, Tensor):
            length = length.unsqueeze(-1)
        lengths = length * s

        self._decay(layers, lr if self.decay_by == "lr" else tau)
        sizes = [len(these.g) for these in layers]
        for these, z_these, length in zip(
            layers, z, torch.split_with_sizes(lengths, sizes, -1), strict=True
        ):
            self._descend(these, z_these, length)
        self._record(chosen, dual_norm)
        self._last = roles, dual_norms
        return loss

    @classmethod
    def stacked(
        cls, solos: Sequence[SteepestDescent], parameters: Sequence[Tensor]
    ) -> SteepestDescent:
        """K of them as one, which steps on ``parameters``, (K, ...) each, from their states.

        The closure of its ``step`` returns K losses; ``lr`` of its groups is one or K, (K,).

        Raises:
            ValueError: they differ in more than numbers, or in age.
        """
        options = [{name: getattr(solo, name) for name in OPTIONS} for solo in solos]
        rest = iter(parameters)
        groups = [
            {
                "params": list(islice(rest, len(group["params"]))),
                "names": group["names"],
                "role": group["role"],
                "replicas": (len(solos),),
            }
            for group in solos[0].param_groups
        ]
        whole = cls(groups, float(solos[0].lr()), **options[0])
        whole.sharing = solos[0].sharing
        for name, option in Merged(parameters[0].device)(options).items():
            setattr(whole, name, option)
        whole._gather(solos)
        return whole

    def _gather(self, solos: Sequence[SteepestDescent]) -> None:
        """Take the replicas' states."""
        self._layers = self._assigned()
        device = self._parameters()[0].device
        of_all = zip(*(solo._parameters() for solo in solos), strict=True)
        for x, views in zip(self._parameters(), of_all, strict=True):
            states = [solo.state.get(view, {}) for solo, view in zip(solos, views, strict=True)]
            if state := stacked_state(states, device):
                self.state[x] = state
        for layers in self._layers:
            states = [self.state[x] for x in layers.x if x in self.state]
            for name in ("m", "v"):
                if len(states) == len(layers.x) and all(name in state for state in states):
                    layers.average(name, states)
        groups = [solo.param_groups[0] for solo in solos]
        recorded = [{key: group[key] for key in RECORDED if key in group} for group in groups]
        self.param_groups[0].update(stacked_state(recorded, device))

    def scatter(self, solos: Sequence[SteepestDescent]) -> None:
        """Give the K replicas their states, as views of these."""
        recorded = {key: value for key, value in self.param_groups[0].items() if key in RECORDED}
        roles, dual_norms = self._last
        for index, solo in enumerate(solos):
            for x, view in zip(self._parameters(), solo._parameters(), strict=True):
                if x in self.state:
                    solo.state[view] = state_of(index, self.state[x])
            solo.param_groups[0].update(state_of(index, recorded))
            solo._layers = None  # and with them the averages, which are here
            if roles:
                solo._last = roles, dual_norms[index]

    def dual_norms_by_role(self) -> dict[str, Tensor]:
        """Of the last step: the sum of the layers' dual norms for each role, shape ()."""
        roles, dual_norms = self._last
        of_role: dict[str, list[Tensor]] = {}
        for role, d in zip(roles, dual_norms.unbind(-1), strict=True):
            of_role.setdefault(role, []).append(d)
        return {role: torch.stack(d).sum(0) for role, d in of_role.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may come after steps have been taken."""
        super().add_param_group(param_group)
        self._layers = None

    def _with_gradient(self) -> list[Ready]:
        """The layers that have a gradient, split by the number of gradients so far."""
        if self._layers is None:
            self._layers = self._assigned()
        return [these for layers in self._layers for these in ready(layers, self.state)]

    def _dualized(
        self, layers: Sequence[Ready]
    ) -> Iterator[tuple[Ready, list[Tensor], list[Tensor]]]:
        """The layers, with m and z = dualize(m), as stacks."""
        if self.sharing is None:
            for these in layers:
                m, v = self._average_gradients(these)
                yield these, m, these.layers.dualize(m, v)
            return
        averages = [(these, *self._average_gradients(these)) for these in layers]
        polar = _shared([(these.layers, m) for these, m, _ in averages], self.sharing)
        for index, (these, m, v) in enumerate(averages):
            yield these, m, polar[index] if index in polar else these.layers.dualize(m, v)

    def _average_gradients(self, these: Ready) -> tuple[list[Tensor], list[Tensor] | None]:
        """m and, where the norm needs it, v, as stacks, after this gradient."""
        layers, g, age = these.layers, these.g, these.age
        for state in these.states:
            state["age"] = age + 1
        m = layers.average("m", these.states)
        stacks = m.stacks
        past, new = weights(self.momentum_form, self.momentum, age)
        _accumulate(m.of_each, g, past, new)
        if self.momentum_form in LOOKAHEAD:
            ahead = [m_of_x.clone() for m_of_x in m.of_each]
            _accumulate(ahead, g, past, new)
            stacks = layers.stacks(ahead)
        if layers.norm.beta2 is None:
            return stacks, None
        v = layers.average("v", these.states)
        past, new = weights(self.momentum_form, layers.norm.beta2, age)
        _scale(v.of_each if isinstance(past, Tensor) else v.stacks, past)
        _add_squares(v.of_each, g, new)
        return stacks, v.stacks

    def _dual_norms(self, these: Ready, m: list[Tensor], z: list[Tensor]) -> list[Tensor]:
        """‖m‖_* = ⟨m, z⟩, (layers, *replicas) of a stack, or what ``nuclear_norm`` takes for it."""
        norm = these.layers.norm
        if self.nuclear_norm == "frobenius" and isinstance(norm, Spectral):
            return [norm.frobenius_dual(m_) for m_ in m]
        d = [(m_ * z_).sum((-2, -1)) for m_, z_ in zip(m, z, strict=True)]
        if self.nuclear_norm == "stale" and isinstance(norm, Spectral):
            return [_exchanged(these.states, torch.cat(d))]
        return d

    def _model_value(self, loss: Tensor | None, layers: Sequence[Ready]) -> Tensor:
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

    def _products(self, layers: Sequence[Ready]) -> tuple[Tensor, Tensor]:
        """⟨m, x⟩ with the m of this step, and ⟨g, x⟩, both shape ()."""
        m_x, g_x = [], []
        for these in layers:
            x = self._flat(these.layers.x)
            past, new = weights(self.momentum_form, self.momentum, these.age)
            g_x.append(self._dots(self._flat(these.g), x))
            m_x.append(new * g_x[-1])
            if these.age > 0:
                m = self._flat([state["m"] for state in these.states])
                m_x[-1] += past * self._dots(m, x)
        return _total(m_x), _total(g_x)

    def _flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """As vectors, (*replicas, N)."""
        return [tensor.reshape(*self.replicas, -1) for tensor in tensors]

    def _dots(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """⟨a, b⟩ of each pair, (pairs, *replicas), float64."""
        return torch.stack(list(map(_dot, a, b))).double()

    def _decay(self, layers: Sequence[Ready], step: Hyper) -> None:
        if not isinstance(self.weight_decay, Tensor) and self.weight_decay == 0:
            return
        for these in layers:
            _scale(these.layers.x, 1 - step * self.weight_decay)

    def _descend(self, these: Ready, z: list[Tensor], lengths: Tensor) -> None:
        """x <- x - length z, for each layer; ``z`` is overwritten."""
        layers = these.layers
        parts = zip(
            layers.by_shape(layers.x),
            z,
            torch.split_with_sizes(lengths, layers.counts, -1),
            strict=True,
        )
        for x, z_, length in parts:
            factor = self._shape_after(layers.role, z_)
            length = length if factor == 1.0 else length * factor
            length = length.mT if self.replicas else length
            z_.mul_(length.to(z_.dtype).view(-1, *self.replicas, 1, 1))
            torch._foreach_sub_(x, z_.view(len(x), *x[0].shape).unbind())

    def _shape_after(self, role: str, z: Tensor) -> float:
        if role not in MATRIX_ROLES:
            return 1.0
        return shape_factor(self.step_shape, *z.shape[-2:])

    def lr(self) -> Hyper:
        """The learning rate of all groups."""
        if self.replicas:
            return self.param_groups[0]["lr"]
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise ConfigError(
                f"SteepestDescent takes one lr for all parameter groups, not {sorted(rates)}: the"
                " step is one in a norm of all weights. Set the scales of the norms instead."
            )
        return rates.pop()

    def _record(self, chosen: Step, dual_norm: Tensor) -> None:
        first = self.param_groups[0]
        tau = torch.as_tensor(chosen.tau, dtype=torch.float64)
        first["step_size"] = tau.expand(self.replicas) if self.replicas else tau
        first["dual_norm"] = dual_norm
        if chosen.lower_bound is not None:
            first["lower_bound"] = chosen.lower_bound
        if chosen.capped is not None:
            # not in place: after load_state_dict the count is on the CPU
            first["capped_steps"] = first.get("capped_steps", 0) + chosen.capped

    def _parameters(self) -> list[Tensor]:
        return [x for group in self.param_groups for x in group["params"]]

    def _assigned(self) -> list[Layers]:
        """The parameters, those that one call of their norm can serve together."""
        return arranged(self._parameters(), assign(self.param_groups, self.norms), self.replicas)

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
    averages: Sequence[tuple[Layers, list[Tensor]]], sharing: Sharing
) -> dict[int, list[Tensor]]:
    """Index -> z of the spectral layers, each matrix dualized in one of the processes.

    Matrices of one stack are iterated without regard to each other, so that a piece of it gives
    the bits that the whole gives (on one kind of processor). Stacks that are iterated together are
    small, and may depend on the company: they stay together.
    """
    units: list[tuple[int, list[Tensor]]] = []
    for index, (layers, m) in enumerate(averages):
        if isinstance(layers.norm, Spectral):
            pieces = [m] if len(m) > 1 else [[m_] for m_ in _split(m[0], sharing.world)]
            units += [(index, piece) for piece in pieces]
    if not units:
        return {}

    def compute(number: int) -> list[Tensor]:
        index, m = units[number]
        return averages[index][0].dualize(m, None)

    stacks = [m for _, m in units]
    found = sharing.shared(stacks, [sum(map(_polar_cost, m)) for m in stacks], compute)
    z: dict[int, list[list[Tensor]]] = {}
    for (index, _), of_unit in zip(units, found, strict=True):
        z.setdefault(index, []).append(of_unit)
    return {index: [torch.cat(parts) for parts in zip(*of, strict=True)] for index, of in z.items()}


def _split(m: Tensor, pieces: int) -> Sequence[Tensor]:
    return m.split(-(-len(m) // pieces))


def _polar_cost(m: Tensor) -> float:
    """Of iterating a stack: multiplications, up to a factor."""
    return m.numel() * min(m.shape[-2:])


def _accumulate(m: list[Tensor], g: list[Tensor], past: Hyper, new: Hyper) -> None:
    """m <- past m + new g; in one pass where it is a mean."""
    if isinstance(past, Tensor) or isinstance(new, Tensor):
        _scale(m, past)
        for m_, g_ in zip(m, g, strict=True):
            m_.add_(g_ * _along(new, m_))
    elif past + new == 1:
        torch._foreach_lerp_(m, g, new)
    else:
        torch._foreach_mul_(m, past)
        torch._foreach_add_(m, g, alpha=new)


def _add_squares(v: list[Tensor], g: list[Tensor], new: Hyper) -> None:
    """v <- v + new g²."""
    if isinstance(new, Tensor):
        for v_, g_ in zip(v, g, strict=True):
            v_.add_(g_ * _along(new, v_) * g_)
    else:
        torch._foreach_addcmul_(v, g, g, value=new)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ over the last axis, without a temporary of its size.

    On a CPU the bits depend neither on where the vectors lie in memory nor on the company of other
    replicas, which take turns: both decide in which order a kernel adds.
    """
    if a.dim() == 1:
        return torch.dot(_aligned(a), _aligned(b))
    if a.is_cuda:
        return torch.linalg.vecdot(a, b)
    return torch.stack(list(map(_dot, a.unbind(), b.unbind())))


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum over layers of numbers (layers, *replicas); of each replica in the same order."""
    return torch.cat(list(parts)).movedim(0, -1).contiguous().sum(-1)


def _scale(xs: list[Tensor], factor: Hyper) -> None:
    """x <- factor x; factors (K,) go with the first axis."""
    if isinstance(factor, Tensor) and factor.dim():
        for x in xs:
            x.mul_(_along(factor, x))
    else:
        torch._foreach_mul_(xs, factor)


def _along(value: Hyper, x: Tensor) -> Hyper:
    """``value`` for a product with ``x`` (K, ...)."""
    return spread(value, x.dim() - 1, x.dtype)


def _exchanged(states: Sequence[State], d: Tensor) -> Tensor:
    """The dual norms of the last step, those of this one, ``d``, taking their place."""
    last = [state.get("dual_norm", now) for state, now in zip(states, d, strict=True)]
    for state, now in zip(states, d, strict=True):
        state["dual_norm"] = now
    return torch.stack(last)


def _check_word(name: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise ConfigError(
            f"optimizer.{name} must be one of {', '.join(words)}, not '{word}'."
            f"{nearest(word, words)}"
        )
