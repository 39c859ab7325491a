"""Rewards: a policy that answers several times, and is told how much better than usual.

As in GRPO: advantages are rewards against those of the other answers to the question.
"""

import jax
import jax.numpy as jnp
import optax

import consensus_optax as co
from examples._common import batches, digits, num_steps

ANSWERS = 16


def policy(params, x):
    """Logits of the answers to a question."""
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]


def rollout(params, key, batch):
    """Answers, (questions, ANSWERS), and their advantages."""
    x, y = batch
    shape = (ANSWERS, len(x))
    answers = jax.random.categorical(key, policy(params, x), shape=shape).T
    rewards = jnp.float32(answers == y[:, None])
    spread = rewards.std(1, keepdims=True) + 1e-4
    return answers, (rewards - rewards.mean(1, keepdims=True)) / spread


def loss_fn(params, questions):
    """What rises with the likelihood of answers that were worse."""
    x, answers, advantages = questions
    scores = jax.nn.log_softmax(policy(params, x))
    return -jnp.mean(jnp.take_along_axis(scores, answers, 1) * advantages)


optimizer = optax.chain(co.subspace_weighting(), optax.adam(1e-2))


@jax.jit
def step(params, opt_state, key, batch):
    """One step."""
    questions = (batch[0], *rollout(params, key, batch))
    grads = co.per_example_grad(loss_fn, num_rows=4)(params, questions)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def main() -> float:
    """Trains; how often the likeliest answer is right on the test set."""
    train, test = digits()
    key, one, other = jax.random.split(jax.random.key(0), 3)
    w, v = jax.random.normal(one, (64, 128)), jax.random.normal(other, (128, 10))
    params = {"w": w / 8, "b": jnp.zeros(128), "v": v / 128**0.5}
    opt_state = optimizer.init(params)
    for number, batch in enumerate(batches(train, num_steps(), size=128)):
        own = jax.random.fold_in(key, number)
        params, opt_state = step(params, opt_state, own, batch)
    score = float(jnp.mean(jnp.argmax(policy(params, test[0]), -1) == test[1]))
    print(f"right on the test set {score:.3f}")
    return score


if __name__ == "__main__":
    main()
