"""Factors of weights that are scaled, cut, strung together, or one of several."""

import pytest

from tests._models import assert_rows
from tests._used_otherwise import USED_OTHERWISE

pytestmark = pytest.mark.standard_promotion  # models mix types as their libraries do


@pytest.mark.parametrize("name", USED_OTHERWISE)
def test_rows_are_those_of_vmap_of_grad(name):
    assert_rows(USED_OTHERWISE[name](), 5e-6)  # float32 rounding through all layers
