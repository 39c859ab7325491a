"""Sets up jax for every test: eight devices, and no type or rank changes unasked."""

import gc
import os

from tests._compilation import IN_A_HURRY

# Before jax is imported, and inherited by the worker processes. Two workers with one
# OpenBLAS thread each beat two that fight over the cores by a factor of 20.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA, by default one for each core: devices wait for one another in them,
# and of two programs at once eight devices may take them all and wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        *IN_A_HURRY,
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Compiled programs pile up, and each collection walks over all that holds them.
gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True)
def _promotion(request):
    """Relaxes strict promotion where a test is marked ``standard_promotion``."""
    if request.node.get_closest_marker("standard_promotion") is None:
        yield
    else:
        with jax.numpy_dtype_promotion("standard"):
            yield
