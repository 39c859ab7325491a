"""Devices to compile for that are not there: one NVIDIA H100, one TPU chip.

CUDA: with ``jax-cuda12-plugin``; TPU: with ``libtpu``. Nothing runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import util
from typing import Any

# Before a plugin is loaded: there are no CUDA libraries and no TPU to ask about.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jax.experimental import topologies

# NVIDIA's numbers of an H100 SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def _tpu(name: str) -> Callable[[], Any]:
    return lambda: topologies.get_topology_desc(
        platform="tpu", topology_name=f"{name}:2x2"
    )


def _h100() -> Any:
    return topologies.get_topology_desc(
        topology_name="h100", platform="cuda", target_config=_H100, topology="1x1x1"
    )


# Name to the package that compiles for it, and to what describes it.
_KNOWN: dict[str, tuple[str, Callable[[], Any]]] = {
    "h100": ("jax_cuda12_plugin", _h100),
    "v5e": ("libtpu", _tpu("v5e")),
    "v6e": ("libtpu", _tpu("v6e")),
}
NAMES = tuple(_KNOWN)


def package(target: str) -> str:
    """What has to be installed to compile for a target."""
    return _KNOWN[target][0]


def available() -> tuple[str, ...]:
    """Targets that this environment can compile for."""
    return tuple(name for name in NAMES if util.find_spec(package(name)))


def compiled(target: str, step: Callable[..., Any], *args: Any) -> Any:
    """A jitted step for one chip of a target, from arrays of its arguments' shapes."""
    described = _KNOWN[target][1]()
    chip = jax.sharding.SingleDeviceSharding(described.devices[0])
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip)
    return jax.jit(step).lower(*jax.tree.map(shape, args)).compile()
