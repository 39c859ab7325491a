"""Which cases are in the default run, and which in CI alone."""

import pytest

in_ci = pytest.mark.whole_zoo


def cases(everything, *quick):
    """Parameters of which only the quick ones are in the default run."""
    return [x if x in quick else pytest.param(x, marks=in_ci) for x in everything]
