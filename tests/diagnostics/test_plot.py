"""The drawings draw what they are given."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from consensus_optax import diagnostics


def test_plot_gramian_shows_cosines():
    gramian = jnp.array([[4.0, -2.0], [-2.0, 4.0]])
    ax = diagnostics.plot_gramian(gramian, labels=["first", "second"])
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, -0.5], [-0.5, 1]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first", "second"]
    plt.close(ax.figure)


def test_plot_agreement_draws_into_given_axes():
    figure, ax = plt.subplots()
    agreement = {"a": jnp.array(0.5), "b": {"c": 2.0}}
    assert diagnostics.plot_agreement(agreement, ax) is ax
    assert [patch.get_width() for patch in ax.patches] == [0.5, 2.0]
    plt.close(figure)


def test_rows_are_neither():
    rows = {"w": jnp.ones((4, 2))}
    with pytest.raises(ValueError, match="`gramian` must be an array"):
        diagnostics.plot_gramian(rows)
    with pytest.raises(ValueError, match=r"`agreement` must be a tree of numbers.*'w'"):
        diagnostics.plot_agreement(rows)
