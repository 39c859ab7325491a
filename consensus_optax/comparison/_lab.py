"""The models, the data and the compiled programs that all rules share."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import consensus_optax as co
from consensus_optax import tasks, training
from consensus_optax.comparison._threads import in_thread

# Compiling is most of a short run. On a CPU level 1 takes two thirds of the time, for
# steps no slower; level 0 a third, for steps of twice the time.
TIMED, NOT_TIMED = "1", "0"

WATCH = (
    "consensus_ratio",
    "accepted",
    "consensus_ready",
    "steps_without_consensus",
)  # what a rule's state may tell

Rule = Any  # a reducer, or None for the plain mean gradient


class Lab:
    """One model for each of K problems and S seeds: leaves have leading axes (K, S).

    Random keys come from a problem's name and the seed's number alone: a problem is
    trained in the same way whatever other problems are trained beside it.
    """

    def __init__(
        self,
        task: tasks.Task,
        *,
        seeds: int,
        learning_rate: float,
        width: int,
        depth: int,
    ):
        """Puts the data on the device and makes the starting weights."""

        def make(rngs: nnx.Rngs) -> training.SmallCNN:
            return training.SmallCNN(
                task.train.inputs.shape[-1],
                task.num_classes,
                width=width,
                depth=depth,
                per_cell=task.train.targets.ndim > 2,
                rngs=rngs,
            )

        self._task = task
        self._train = jax.tree.map(jnp.asarray, task.train)
        self._test = jax.tree.map(jnp.asarray, task.test)
        self._learning_rate = learning_rate
        self._apply, _ = training.functional(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        keys = jnp.stack([_keys(problem, seeds) for problem in task.problems])
        self._data_keys = keys[..., 0]  # (K, S)
        init = jax.jit(lambda keys: training.init_many(make, keys)).lower(keys[..., 1])
        self._params = in_thread(lambda: _compiled(init, NOT_TIMED)(keys[..., 1]))

    def start(self, rule: Rule) -> training.Fit:
        """The starting weights, and a fresh state of the rule and of Adam."""
        start = lambda params: training.start(params, self._optimizer(rule))
        return jax.jit(jax.vmap(jax.vmap(start)))(self._params)

    def trace(
        self, rule: Rule, fit: training.Fit, most_steps: int
    ) -> Callable[[], Callable[[training.Fit, int], Any]]:
        """A program that trains all models for some steps, not yet compiled.

        One program does for any number of steps, so that a shorter last round does not
        cost another compilation.

        Args:
          rule: a reducer or None.
          fit: a state of the right shapes.
          most_steps: up to how many steps one call may do.

        Returns:
          ``compile()``, which may run in any thread and returns ``run(fit, steps)``;
          that returns the next state and the metrics of every step, arrays of shape
          (K, S, steps).
        """
        optimizer = self._optimizer(rule)
        if rule is None:
            step = training.mean_step(self._mean_loss, optimizer)
        else:
            step = training.row_step(
                self._loss, optimizer, group_size=self._task.group_size, watch=WATCH
            )

        def train(
            fit: training.Fit,
            train: tasks.Examples,
            _: tasks.Examples,
            key: jax.Array,
            num_steps: jax.Array,
        ) -> Any:
            step_at = jax.jit(lambda fit: step(fit, *self._batch(train, key, fit.step)))
            _, metrics = jax.eval_shape(step_at, fit)
            logs = jax.tree.map(
                lambda x: jnp.zeros((most_steps, *x.shape), x.dtype), metrics
            )

            def body(number: jax.Array, carry: Any) -> Any:
                fit, metrics = step_at(carry[0])
                put = lambda log, x: log.at[number].set(x)
                return fit, jax.tree.map(put, carry[1], metrics)

            return jax.lax.fori_loop(0, num_steps, body, (fit, logs))

        data = (self._train, self._test, self._data_keys)
        lowered = jax.jit(self._over_models(train, None)).lower(fit, *data, 1)

        def compile_it() -> Callable[[training.Fit, int], Any]:
            program = _compiled(lowered, TIMED)

            def run(fit: training.Fit, num_steps: int) -> Any:
                fit, logs = jax.block_until_ready(program(fit, *data, num_steps))
                return fit, {k: np.asarray(v)[..., :num_steps] for k, v in logs.items()}

            return run

        return compile_it

    def trace_evaluation(
        self,
    ) -> Callable[[], Callable[[training.Fit], dict[str, np.ndarray]]]:
        """The metrics of `METRICS`, each of shape (K, S): a program as from `trace`."""
        data = (self._train, self._test, self._data_keys)
        step = jnp.zeros(self._data_keys.shape, jnp.int32)
        evaluate = jax.jit(self._over_models(self._evaluate_one))
        lowered = evaluate.lower((self._params, step), *data)

        def compile_it() -> Callable[[training.Fit], dict[str, np.ndarray]]:
            program = _compiled(lowered, NOT_TIMED)
            return lambda fit: jax.tree.map(
                np.asarray, program((fit.params, fit.step), *data)
            )

        return compile_it

    def _optimizer(self, rule: Rule) -> optax.GradientTransformationExtraArgs:
        adam = optax.adam(self._learning_rate)
        if rule is None:
            return optax.with_extra_args_support(adam)
        return optax.chain(rule, co.skip_if_empty(adam))

    def _loss(self, params: Any, batch: tasks.Examples) -> jax.Array:
        return self._mean_loss(params, batch, None)

    def _mean_loss(
        self, params: Any, batch: tasks.Examples, weights: jax.Array | None
    ) -> jax.Array:
        logits = self._apply(params, batch.inputs, batch.inside)
        losses = tasks.example_losses(logits, batch.targets)
        return training.weighted_mean(losses, weights)

    def _batch(
        self, train: tasks.Examples, key: jax.Array, number: jax.Array
    ) -> tuple[tasks.Examples, jax.Array | None]:
        """The examples and row weights of the step with this number.

        Always in random order, since for some rules the first row decides. Each
        example draws its own place, so that padding does not disturb the others.
        """
        draw = lambda i: jax.random.bits(
            jax.random.fold_in(jax.random.fold_in(key, number), i)
        )
        order = jnp.argsort(jax.vmap(draw)(jnp.arange(train.weights.shape[0])))
        if self._task.num_rows is None:
            batch = jax.tree.map(lambda x: x[order], train)
            return batch, batch.weights
        chosen = order[: self._task.num_rows * self._task.group_size]
        return jax.tree.map(lambda x: x[chosen], train), None

    def _evaluate_one(
        self,
        params_and_step: tuple[Any, jax.Array],
        train: tasks.Examples,
        test: tasks.Examples,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        params, number = params_and_step
        score = lambda part: tasks.scores(
            self._apply(params, part.inputs, part.inside), part
        )
        on_train, on_test = score(train), score(test)
        batch, weights = self._batch(train, key, number)
        rows = co.per_example_grad(self._loss, group_size=self._task.group_size)
        probe = co.sign_consensus()
        _, state = probe.update(
            rows(params, batch), probe.init(params), params, weights=weights
        )
        return {
            "train_loss": on_train.loss,
            "train_accuracy": on_train.accuracy,
            "test_loss": on_test.loss,
            "test_accuracy": on_test.accuracy,
            "test_solved": on_test.solved,
            "consensus_ratio": optax.tree.get(state, "consensus_ratio"),
        }

    def _over_models(
        self, function: Callable[..., Any], *shared: None
    ) -> Callable[..., Any]:
        """Maps f(fit, train, test, key, ...) over K problems and S seeds of each."""
        seeds = jax.vmap(function, (0, None, None, 0, *shared))
        return jax.vmap(seeds, (0, 0, 0, 0, *shared))


def _compiled(lowered: jax.stages.Lowered, level: str) -> jax.stages.Compiled:
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, bool | str] = {"xla_backend_optimization_level": level}
    return lowered.compile(compiler_options=options if on_cpu else None)


def _keys(problem: str, seeds: int) -> jax.Array:
    """Two keys for each seed of a problem, (S, 2)."""
    key = jax.random.key(zlib.crc32(problem.encode()))
    fold = lambda seed: jax.random.split(jax.random.fold_in(key, seed))
    return jax.vmap(fold)(jnp.arange(seeds))
