"""The three workloads as torch modules; only what measures torch imports this.

Layers are standard modules called by their parents (what TorchJD's engine asks for);
each model maps (B, ...) to logits with the example axis first. Attention is written out
as in the JAX model: the fused kernel has no rule for ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._workloads import Workload


class Position(nn.Module):
    """Learned positions, a module of their own because they are parameters."""

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(length, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the positions to (B, T, D)."""
        return x + self.table[: x.shape[1]]


class Block(nn.Module):
    """A pre-LN layer with causal attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = map(split, self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, T, T)
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        mixed = scores.masked_fill(~causal, -1e30).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        hidden = functional.gelu(self.up(self.norm_2(x)), approximate="tanh")
        return x + self.down(hidden)


def model(work: Workload) -> nn.Module:
    """The module with the shapes of a workload."""
    torch.manual_seed(0)
    return {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}[work.name](work)


def data(work: Workload) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a workload; images with their channels first."""
    inputs, labels = (torch.from_numpy(np.array(x)) for x in work.batch)
    if work.name == "cnn":
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    return inputs, labels.long()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of every example, (B,): the mean over what it predicts."""
    flat = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none"
    )
    return flat.reshape(labels.shape[0], -1).mean(1)


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over everything that is predicted."""
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def _mlp(work: Workload) -> nn.Module:
    layers: list[nn.Module] = []
    for layer in work.params:
        layers += [nn.Linear(*layer["kernel"].shape), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _cnn(work: Workload) -> nn.Module:
    layers: list[nn.Module] = []
    for index, block in enumerate(work.params["blocks"]):
        *_, m, n = block["kernel"].shape
        stride = 1 if index == 0 else 2
        convolution = nn.Conv2d(m, n, 3, stride, padding=1)
        layers += [convolution, nn.GroupNorm(8, n), nn.ReLU()]
    head: Any = work.params["head"]["kernel"]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(*head.shape))


def _transformer(work: Workload) -> nn.Module:
    params = work.params
    vocabulary, dim = params["embedding"].shape
    heads = 4 if dim >= 64 else 2
    return nn.Sequential(
        nn.Embedding(vocabulary, dim),
        Position(params["positions"].shape[0], dim),
        *(Block(dim, heads) for _ in params["layers"]),
        nn.LayerNorm(dim),
        nn.Linear(dim, vocabulary),
    )


def temporary_bytes(step: Callable[[], Any], output_bytes: int) -> int:
    """What a step holds at the most besides its gradient, as XLA plans it.

    Of what torch's profiler sees given out in one step, and taken back of that: the
    gradient of the step before is not its own.
    """
    step()  # what is made once
    watched = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=watched, profile_memory=True) as seen:
        step()
    events = list(seen.profiler.kineto_results.experimental_event_tree())
    found = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            own = event.extra_fields
            found.append((event.start_time_ns, own.ptr, own.alloc_size))
    held: dict[int, int] = {}
    most = 0
    for _, place, size in sorted(found):
        if size > 0:
            held[place] = size
        else:
            held.pop(place, None)
        most = max(most, sum(held.values()))
    return most - output_bytes
