"""Data sets: arrays in, a `Task` out. Needs ``pip install "consensus_optax[demo]"``.

A `Task` is a stack of problems with training and test examples of one shape, so that
`consensus_optax.comparison` can train a model on each of them in one program: `arc`,
and the labelled pictures of `digits`, `mnist_5000` and `fashion_mnist`.
`shakespeare` gives `Roles` instead: the texts of many clients, for federated rounds;
splits such as `dirichlet_split` make clients of any data set.
Imports nothing of how rows are reduced.
"""

from consensus_optax.tasks._arc import arc, keeps_size
from consensus_optax.tasks._digits import digits
from consensus_optax.tasks._fashion_mnist import fashion_mnist
from consensus_optax.tasks._mnist_5000 import mnist_5000
from consensus_optax.tasks._noise import flip_labels
from consensus_optax.tasks._objective import Scores, example_losses, scores
from consensus_optax.tasks._shakespeare import (
    Roles,
    Texts,
    draw_windows,
    shakespeare,
)
from consensus_optax.tasks._splits import (
    Split,
    dirichlet_split,
    even_split,
    quantity_split,
    shard_split,
    shift_features,
    split_examples,
)
from consensus_optax.tasks._task import (
    NOT_SCORED,
    Examples,
    Task,
    pad_examples,
    stack_problems,
)

__all__ = [
    "NOT_SCORED",
    "Examples",
    "Roles",
    "Scores",
    "Split",
    "Task",
    "Texts",
    "arc",
    "digits",
    "dirichlet_split",
    "draw_windows",
    "even_split",
    "example_losses",
    "fashion_mnist",
    "flip_labels",
    "keeps_size",
    "mnist_5000",
    "pad_examples",
    "quantity_split",
    "scores",
    "shakespeare",
    "shard_split",
    "shift_features",
    "split_examples",
    "stack_problems",
]
