"""K models of one kind as one: their parameters on a leading axis, one forward pass for all.

Shapes: K replicas, B samples of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Function = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> ()
States = dict[str, Tensor]  # of random generators, by device type

# Between linear layers: what acts on every entry, or sample, for itself.
_POINTWISE = (nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Flatten)


class Generators:
    """The random states of the replicas: what each draws is what it would draw alone."""

    def __init__(self, states: Sequence[States], device: torch.device) -> None:
        self.states, self._on_gpu = list(states), device.type == "cuda"

    def apart(self, draw: Callable[[int], Tensor]) -> list[Tensor]:
        """``draw(k)`` for each replica k, the global generator being in the state of its own."""
        before, drawn = self._get(), []
        for k, state in enumerate(self.states):
            self._set(state)
            drawn.append(draw(k))
            self.states[k] = {**state, **self._get()}
        self._set(before)
        return drawn

    def _get(self) -> States:
        if self._on_gpu:
            return {"cuda": torch.cuda.get_rng_state()}
        return {"cpu": torch.get_rng_state()}

    def _set(self, state: States) -> None:
        if self._on_gpu:
            torch.cuda.set_rng_state(state["cuda"])
        else:
            torch.set_rng_state(state["cpu"])


class StackedModel:
    """The models of K replicas; ``parameters`` and ``buffers`` are theirs, (K, ...) by name.

    The models' own parameters and buffers become views of these, and so go on showing what is
    trained. The forward pass is the models' own: by ``vmap``, or, where linear layers are all that
    has weights, with the replicas in the batch of everything but these (``fold``), which is faster.
    """

    def __init__(
        self, models: Sequence[nn.Module], generators: Generators, *, fold: bool = True
    ) -> None:
        self.count = len(models)
        self.parameters = _stacked([dict(model.named_parameters()) for model in models])
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        for x, solo in zip(self.parameters.values(), models[0].parameters(), strict=True):
            x.requires_grad_(solo.requires_grad)
        self._template = _without_weights(models[0])
        self._draw_apart(generators)
        self.folded = fold and _foldable(self._template)
        if self.folded:
            _fold(self._template, self.parameters, self.count)

    def train(self, training: bool) -> None:
        """As ``nn.Module.train``."""
        self._template.train(training)

    def outputs(self, inputs: Tensor, *, shared: bool = False) -> Tensor:
        """Outputs (K, B, ...) of inputs (K, B, ...), or of inputs (B, ...) that all share."""
        if not self.folded:
            one = vmap(self._one, in_dims=(0, 0, None if shared else 0))
            with _Attention():
                return one(self.parameters, self.buffers, inputs)
        if shared:
            inputs = inputs.expand(self.count, *inputs.shape)
        return self._template(inputs.flatten(0, 1)).unflatten(0, (self.count, -1))

    def _one(self, parameters: Any, buffers: Any, inputs: Tensor) -> Tensor:
        return functional_call(self._template, (parameters, buffers), (inputs,))

    def _draw_apart(self, generators: Generators) -> None:
        for module in list(self._template.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, _Dropout(child.p, generators))


def each(function: Function, outputs: Tensor, targets: Tensor, *, shared: bool = False) -> Tensor:
    """``function`` of each replica's outputs (K, B, ...) and targets, (K, B, ...) or shared; (K,).

    With ``shared`` the targets, (B, ...), are those of all. On a CPU the replicas take turns, which
    gives the bits of runs alone, for about as much; a GPU would wait for the launch of K kernels.
    """
    if outputs.is_cuda:
        return vmap(function, in_dims=(0, None if shared else 0))(outputs, targets)
    of_each = [targets] * len(outputs) if shared else targets.unbind()
    return torch.stack(list(map(function, outputs.unbind(), of_each)))


def _stacked(of_models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """By name, (K, ...); the tensors given become views."""
    together = {}
    for name in of_models[0]:
        ours = [tensors[name] for tensors in of_models]
        together[name] = torch.stack([x.detach() for x in ours])
        for x, view in zip(ours, together[name].unbind(), strict=True):
            x.data = view
    return together


def _without_weights(model: nn.Module) -> nn.Module:
    """The structure of ``model``, tied weights still tied, without the memory of its weights."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(x): _emptied(x) for x in tensors}
    return copy.deepcopy(model, memo)


def _emptied(x: Tensor) -> Tensor:
    empty = x.detach().new_empty(0)
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def _foldable(model: nn.Module) -> bool:
    """Whether all weights are in linear layers, and nothing else looks across samples.

    ``stack.py`` checks what this cannot see, the code of the forward passes, by its results.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False)) + list(module.buffers(recurse=False))
        is_leaf = next(module.children(), None) is None
        if type(module) is nn.Linear:
            continue
        if own or (is_leaf and not isinstance(module, _POINTWISE)):
            return False
    return True


def _fold(model: nn.Module, parameters: Mapping[str, Tensor], count: int) -> None:
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            folded = _Linear(count, parameters[f"{path}.weight"], parameters.get(f"{path}.bias"))
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, folded)


class _Linear(nn.Module):
    """K linear layers on samples (K B, ..., in), the first B being the first's."""

    def __init__(self, count: int, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._count, self._of_all = count, (weight, bias)  # a tuple: not parameters of this module

    def forward(self, x: Tensor) -> Tensor:
        of_each = x.reshape(self._count, -1, x.shape[-1])
        y: Tensor = _Affine.apply(*_cast(of_each, *self._of_all))  # type: ignore[assignment]
        return y.view(*x.shape[:-1], -1)


def _cast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast would make of the arguments of ``F.linear``; it does not know ``_Affine``."""
    device = next(x.device.type for x in tensors if x is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if x is None else x.to(dtype) for x in tensors]


class _Affine(torch.autograd.Function):
    """x Wᵀ + b of each replica: x (K, N, in), W (K, out, in), b (K, out) or None.

    Its gradient is written out so that each product is the one that ``F.linear`` computes, and
    gives its bits; autograd's own transposes the one for W.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            torch.bmm(g, weight) if needs_x else None,
            torch.bmm(g.mT, x) if needs_weight else None,
            g.sum(1) if needs_bias else None,
        )


class _Attention(TorchFunctionMode):
    """Within it, attention takes the replicas as further samples; ``vmap`` takes one by one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= _PLAIN:
            return _Attend.apply(*args, kwargs)
        return func(*args, **kwargs)


_PLAIN = {"is_causal", "scale", "enable_gqa"}  # arguments that are the same for all samples


class _OnlyStacked(torch.autograd.Function):
    """What exists for the replicas of a stack, which ``vmap`` takes together, and nowhere else."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        raise AssertionError("only replicas of a stack, which vmap takes together, come here")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del ctx, inputs, output


class _Attend(_OnlyStacked):
    """Attention of queries, keys and values (K, B, heads, T, width) under ``vmap``."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, q: Tensor, k: Tensor, v: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, int]:
        q, k, v = (
            x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((q, k, v), in_dims, strict=False)
        )
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, **kwargs)
        return y.unflatten(0, (info.batch_size, -1)), 0


class _Dropout(nn.Module):
    """Dropout in which every replica draws from its own generator."""

    def __init__(self, p: float, generators: Generators) -> None:
        super().__init__()
        self.p, self._generators = p, generators

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return _DropApart.apply(x, self.p, self._generators)  # type: ignore[no-any-return]


class _DropApart(_OnlyStacked):
    """``F.dropout`` of each replica under ``vmap``."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, p: float, generators: Generators
    ) -> tuple[Tensor, int]:
        del info
        x_of = x.movedim(in_dims[0] or 0, 0)
        return torch.stack(generators.apart(lambda k: F.dropout(x_of[k], p))), 0
