"""What Opacus does for private gradients; only ``privacy.py`` imports this.

Ghost clipping (fast gradient clipping, two backward passes) and gradients of all
examples in memory. A step leaves the noisy gradient in the ``grad`` fields and updates
nothing, as the others'.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks import _torch_models
from benchmarks._workloads import Workload

Step = Callable[[], Any]


def steps(work: Workload, clip: float, noise: float) -> Iterator[tuple[str, Step]]:
    """(name, step) of torch's plain step and Opacus's private ones."""
    model = _torch_models.model(work)
    inputs, labels = _torch_models.data(work)

    def plain() -> None:
        model.zero_grad()
        _torch_models.mean_loss(model(inputs), labels).backward()

    yield "torch: plain", plain
    yield "Opacus, ghost clipping", _ghost(work, clip, noise)
    yield "Opacus, gradients in memory", _in_memory(work, clip, noise)


def _ghost(work: Workload, clip: float, noise: float) -> Step:
    """Norms from factors of layers, then a backward pass of weighted losses."""
    inputs, labels = _torch_models.data(work)
    wrapped = importlib.import_module(
        "opacus.grad_sample.grad_sample_module_fast_gradient_clipping"
    ).GradSampleModuleFastGradientClipping
    module = wrapped(
        _torch_models.model(work),
        max_grad_norm=clip,
        use_ghost_clipping=True,
        loss_reduction="mean",
    )
    optimizer = importlib.import_module(
        "opacus.optimizers.optimizer_fast_gradient_clipping"
    ).DPOptimizerFastGradientClipping(
        torch.optim.SGD(module.parameters(), lr=0.0), **_options(work, clip, noise)
    )
    utils = importlib.import_module("opacus.utils.fast_gradient_clipping_utils")
    criterion = utils.DPLossFastGradientClipping(
        module, optimizer, nn.CrossEntropyLoss(), loss_reduction="mean"
    )

    def step() -> None:
        optimizer.zero_grad()
        logits = module(inputs)
        sequences = logits.shape if logits.ndim > 2 else None
        flat = logits.flatten(0, -2), labels.flatten()
        criterion(*flat, shape=sequences).backward()
        optimizer.pre_step()

    return step


def _in_memory(work: Workload, clip: float, noise: float) -> Step:
    """Gradients of all examples, then clipped and added up."""
    inputs, labels = _torch_models.data(work)
    opacus = importlib.import_module("opacus")
    module = opacus.GradSampleModule(_torch_models.model(work), loss_reduction="mean")
    optimizer = importlib.import_module("opacus.optimizers").DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.0), **_options(work, clip, noise)
    )

    def step() -> None:
        optimizer.zero_grad()
        _torch_models.losses(module(inputs), labels).mean().backward()
        optimizer.pre_step()

    return step


def _options(work: Workload, clip: float, noise: float) -> dict[str, Any]:
    return {
        "noise_multiplier": noise,
        "max_grad_norm": clip,
        "expected_batch_size": work.batch_size,
        "loss_reduction": "mean",
    }
