"""What torch offers for the same work; only ``peers.py`` imports this.

Every step leaves its result in the ``grad`` fields, as a torch user would have it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import data as torch_data

from benchmarks import _torch_models
from benchmarks._workloads import Workload

Step = Callable[[], Any]


def steps(work: Workload) -> Iterator[tuple[str, Step | str]]:
    """(name, step) of all that is installed; (name, reason) of what is not."""
    model = _torch_models.model(work)
    inputs, labels = _torch_models.data(work)
    yield "torch: plain", lambda: _plain(model, inputs, labels)
    yield "torch: loop, min/max", lambda: _loop(model, inputs, labels)
    yield "torch: vmap(grad), min/max", _functional(model, inputs, labels)
    for name, make in {
        "TorchJD autogram, UPGrad": _autogram("UPGradWeighting"),
        "TorchJD autogram, mean": _autogram("MeanWeighting"),
        "GAF package, rows of one example": _gaf,
    }.items():
        try:
            yield name, make(_torch_models.model(work), inputs, labels)
        except ImportError as error:
            yield name, str(error).partition("\n")[0]


def _plain(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """One ordinary backward pass."""
    model.zero_grad()
    _torch_models.mean_loss(model(inputs), labels).backward()


def _loop(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    """One backward pass for every example, running minimum and maximum."""
    params = list(model.parameters())
    low: list[Tensor] = []
    high: list[Tensor] = []
    for index in range(inputs.shape[0]):
        one = slice(index, index + 1)
        model.zero_grad()
        _torch_models.mean_loss(model(inputs[one]), labels[one]).backward()
        grads = [param.grad for param in params]
        if index == 0:
            low, high = [g.clone() for g in grads], [g.clone() for g in grads]
        else:
            low = [torch.minimum(x, g) for x, g in zip(low, grads, strict=True)]
            high = [torch.maximum(x, g) for x, g in zip(high, grads, strict=True)]
    for param, x, y in zip(params, low, high, strict=True):
        param.grad = _agreed(x, y)


def _functional(model: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """``torch.func.vmap(grad)``, then amin and amax."""
    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, params, (x[None],))
        return _torch_models.mean_loss(logits, y[None])

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def step() -> dict[str, Tensor]:
        grads = rows(params, inputs, labels)
        return {name: _agreed(g.amin(0), g.amax(0)) for name, g in grads.items()}

    return step


def _agreed(low: Tensor, high: Tensor) -> Tensor:
    """The smaller in magnitude where all have one sign, else 0."""
    return torch.where(low > 0, low, torch.where(high < 0, high, 0))


def _autogram(weighting_name: str) -> Callable[..., Step]:
    """TorchJD's documented use: Gramian, weights, one weighted backward pass."""

    def make(model: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
        engine_type = importlib.import_module("torchjd.autogram").Engine
        aggregation = importlib.import_module("torchjd.aggregation")
        weighting = getattr(aggregation, weighting_name)()
        engine = engine_type(model, batch_dim=0)

        def step() -> None:
            model.zero_grad()
            losses = _torch_models.losses(model(inputs), labels)
            weights = weighting(engine.compute_gramian(losses))
            losses.backward(weights)

        return step

    return make


class _ClassesSecond(nn.Module):
    """Logits as the GAF package's own accuracy wants them: (B, classes, ...)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).movedim(-1, 1)


def _gaf(model: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    """The package's training step with one example in every microbatch."""
    step_gaf = importlib.import_module("gradient_agreement_filtering").step_GAF
    wrapped = _ClassesSecond(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.0)
    examples = torch_data.TensorDataset(inputs, labels)
    rows = [torch_data.Subset(examples, [index]) for index in range(len(examples))]
    return lambda: step_gaf(
        wrapped,
        optimizer,
        nn.functional.cross_entropy,
        rows,
        wandb=False,
        verbose=False,
        cos_distance_thresh=0.97,
    )
