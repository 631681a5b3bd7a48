"""From a run's config to its model, data, optimizer and schedule: the only place that does so."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from .compiled import compile_model
from .config import Run
from .data.base import Batch, Data, data_folder
from .errors import ConfigError, nearest
from .models.initial import initialize
from .optim.roles import param_groups
from .overrides import check_option
from .paths import CONF
from .team import check_micro_batch
from .train import Parts

T = TypeVar("T")

_DIRECTIVES = ("_target_", "_partial_", "_recursive_", "_convert_", "defaults")


def build(
    run: Run,
    device: torch.device,
    micro_batch: int | None = None,
    *,
    compiles: bool = False,
    data: Data | None = None,
) -> Parts:
    """The parts of a run, its weights and batches decided by its seeds alone.

    ``data``: what ``load_data`` has given for this run, or for one with the same seed and dataset.

    Raises:
        ConfigError: a YAML file has a key that its target does not take, or data are missing; the
            model cannot take a batch in pieces of ``micro_batch``, or not be compiled here.
    """
    check_arguments(run)
    data = data or load_data(run)
    model = _drawn(run).to(device)
    check_micro_batch(model, run.train.batch_size, micro_batch)
    if compiles:
        compile_model(model, device)
    return Parts(
        model,
        data,
        optimizer_of(run)(model),
        part(run, "schedule"),
        device,
        precision=run.train.precision,
        micro_batch=micro_batch,
    )


def _drawn(run: Run) -> nn.Module:
    """The model with its initial weights, drawn on the CPU, whatever the device.

    What is drawn later (dropout) follows from the run's seed, as does the order of the batches.
    """
    options = run.train
    torch.manual_seed(run.seed if options.init_seed is None else options.init_seed)
    model: nn.Module = part(run, "model")
    initialize(model, options.init)
    if options.init_seed is not None:
        torch.manual_seed(run.seed)
    return model


def check(run: Run, micro_batch: int | None = None) -> None:
    """Raise what ``build`` would raise, without weights: the model is made on the meta device."""
    check_arguments(run)
    data = load_data(run)
    inputs, targets = data.train(0)
    model = outline(run)
    check_micro_batch(model, run.train.batch_size, micro_batch)
    try:
        data.loss(model(inputs.to("meta")), targets.to("meta"))
    except RuntimeError as error:
        raise ConfigError(
            f"model={run.choices['model']} cannot take the inputs of "
            f"dataset={run.choices['dataset']}, shape {tuple(inputs.shape)}: {error}"
        ) from error


def load_data(run: Run) -> Data:
    """The data of a run; raises ConfigError where they are missing or damaged."""
    return part(run, "dataset").load(data_folder(), seed=run.seed, batch_size=run.train.batch_size)


def outline(run: Run) -> nn.Module:
    """The model on the meta device; raises what ``build`` would raise but for want of data."""
    check_arguments(run)
    with torch.device("meta"):
        model: nn.Module = part(run, "model")
    optimizer_of(run)(model)
    part(run, "schedule")(0, run.train.steps)
    return model


def problems(runs: Iterable[Run], micro_batch: int | None = None) -> dict[str, str]:
    """What ``check`` has against each of these runs: id to message; empty if nothing."""
    found = {}
    for run in runs:
        try:
            check(run, micro_batch)
        except ConfigError as error:
            found[run.id] = str(error)
    return found


def declared_dataset(name: str) -> Any:
    """The dataset that ``conf/dataset/name.yaml`` declares, nothing loaded."""
    check_option("dataset", name)
    return instantiate(OmegaConf.load(CONF / "dataset" / f"{name}.yaml"), _convert_="all")


def check_arguments(run: Run) -> None:
    """Raise for the first key of a YAML file that its ``_target_`` does not take, or lacks."""
    for group in ("model", "dataset", "optimizer", "schedule"):
        _check_node(run.config[group], f"conf/{group}/{run.choices[group]}.yaml", group)


def _check_node(node: Any, file: str, key: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_node(item, file, f"{key}.{index}")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(node, file, key)
    for name, value in node.items():
        _check_node(value, file, f"{key}.{name}")


def _check_target(node: Mapping[str, Any], file: str, key: str) -> None:
    target = _located(node["_target_"], file, key)
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    given = [name for name in node if name not in _DIRECTIVES]
    for name in given:
        if name not in parameters:
            raise ConfigError(
                f"{file}: {key} has the key '{name}', which {node['_target_']} does not take."
                f"{nearest(name, parameters)} It takes: {', '.join(parameters)}."
            )
    required = [name for name, p in parameters.items() if p.default is p.empty]
    missing = [name for name in required if name not in given]
    if missing and not node.get("_partial_", False):
        raise ConfigError(f"{file}: {key} lacks the key '{missing[0]}' of {node['_target_']}.")


def _located(target: str, file: str, key: str) -> Callable[..., Any]:
    try:
        return get_object(target)
    except Exception as error:  # Hydra raises InstantiationException, imports raise anything
        raise ConfigError(f"{file}: {key}._target_ '{target}' cannot be found: {error}") from error


def part(run: Run, group: str) -> Any:
    """What the section ``group`` of a run's config builds; for an optimizer, what makes it."""
    return _called(lambda: instantiate(dict(run.config[group]), _convert_="all"), run, group)


def optimizer_of(run: Run) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """What makes the run's optimizer for a model."""
    make = part(run, "optimizer")

    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = _called(lambda: make(param_groups(model)), run, "optimizer")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    return made


def _called(make: Callable[[], T], run: Run, group: str) -> T:
    """What ``make`` gives; what it has against the config's values is told with their file."""
    try:
        return make()
    except Exception as error:  # constructors raise anything for values they cannot take
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, ConfigError):
            raise cause from error
        cause = cause or error
        raise ConfigError(
            f"conf/{group}/{run.choices[group]}.yaml cannot be built with these values: "
            f"{type(cause).__name__}: {cause}"
        ) from error


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device=cuda, but no GPU is visible: use runtime.device=cpu.")
    return torch.device(name)


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits that tell initial weights apart."""
    return _digest(*(p.detach() for p in model.parameters()))


def batch_fingerprint(batch: Batch) -> str:
    """16 hex digits that tell batches apart."""
    return _digest(*batch)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
