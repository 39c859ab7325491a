"""What TorchJD offers for several losses; only ``tasks.py`` imports this."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._workloads import Workload

Step = Callable[[], Any]


class _Heads(nn.Module):
    """The model of ``_task_workloads.heads``, with its weights."""

    def __init__(self, params: Any):
        super().__init__()
        names = sorted(name for name in params if name != "trunk")
        self.trunk = _mlp(params["trunk"], last=True)
        self.heads = nn.ModuleList(_mlp(params[name], last=False) for name in names)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.trunk(x)
        return features, [head(features)[:, 0] for head in self.heads]


def _mlp(layers: list[Any], last: bool) -> nn.Sequential:
    modules: list[nn.Module] = []
    for index, layer in enumerate(layers):
        kernel, bias = (_tensor(layer[name]) for name in ("kernel", "bias"))
        dense = nn.Linear(*kernel.shape)
        with torch.no_grad():
            dense.weight.copy_(kernel.T)
            dense.bias.copy_(bias)
        modules.append(dense)
        if last or index < len(layers) - 1:
            modules.append(nn.Tanh())
    return nn.Sequential(*modules)


def _tensor(array: jax.Array) -> Tensor:
    return torch.from_numpy(np.array(array))


def steps(work: Workload) -> Iterator[tuple[str, Step]]:
    """The plain step, ``mtl_backward`` and ``autogram``, both with UPGrad."""
    aggregation = importlib.import_module("torchjd.aggregation")
    backward = importlib.import_module("torchjd.autojac").mtl_backward
    engine_type = importlib.import_module("torchjd.autogram").Engine
    to_jac = getattr(importlib.import_module("torchjd.autojac"), "jac_to_grad", None)
    model = _Heads(work.params)
    x, targets = map(_tensor, work.batch)

    def losses(model: _Heads = model) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        features, outputs = model(x)
        pairs = zip(outputs, targets.unbind(1), strict=True)
        return features, [((output - y) ** 2).mean() for output, y in pairs]

    def plain() -> None:
        torch.stack(losses()[1]).mean().backward()

    rule = aggregation.UPGrad()

    def mtl_backward() -> None:
        features, values = losses()
        if to_jac is None:
            backward(values, features=features, aggregator=rule)
        else:  # since 0.10 rows first, then the rule
            shared = list(model.trunk.parameters())
            backward(values, features=features, shared_params=shared)
            to_jac(shared, rule)

    weighting = aggregation.UPGradWeighting()
    watched = _Heads(work.params)  # the engine's hooks are for its own passes alone
    engine = engine_type(watched.trunk, *watched.heads, batch_dim=None)

    def autogram() -> None:
        values = torch.stack(losses(watched)[1])
        values.backward(weighting(engine.compute_gramian(values)))

    yield "torch: plain", plain
    yield "TorchJD mtl_backward, UPGrad", mtl_backward
    yield "TorchJD autogram, UPGrad", autogram
