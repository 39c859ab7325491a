"""Devices to compile for that are not there: NVIDIA's H100, TPU chips, or many of them.

CUDA: with ``jax-cuda12-plugin``; TPU: with ``libtpu``. Nothing runs.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

# Before a plugin is loaded: there are no CUDA libraries and no TPU to ask about.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilers for a TPU that is not there need not wait for each other.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks import _bundles, _harness, _programs

# What the compiler for a TPU dumps, which is told before it is first asked.
_DUMPS = Path(tempfile.gettempdir()) / f"bundles-{os.getpid()}"
if util.find_spec("libtpu") and "LIBTPU_INIT_ARGS" not in os.environ:
    os.environ["LIBTPU_INIT_ARGS"] = _bundles.options(_DUMPS)
    atexit.register(shutil.rmtree, _DUMPS, ignore_errors=True)

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
    return lambda: topologies.get_topology_desc(platform="tpu", topology_name=name)


def _h100(shape: str) -> Callable[[], Any]:
    return lambda: topologies.get_topology_desc(
        topology_name="h100", platform="cuda", target_config=_H100, topology=shape
    )


# Name to the package that compiles for it, and to what describes it.
_KNOWN: dict[str, tuple[str, Callable[[], Any]]] = {
    "h100": ("jax_cuda12_plugin", _h100("1x1x1")),
    "v5e": ("libtpu", _tpu("v5e:2x2")),
    "v6e": ("libtpu", _tpu("v6e:2x2")),
}
NAMES = tuple(_KNOWN)

# The same of many chips, and the bytes of memory that a program may use on each: of a
# TPU as its compiler says.
_CLUSTERS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "v5e:4x4": ("libtpu", _tpu("v5e:4x4"), int(15.75 * 2**30)),
    "v5p:4x4x4": ("libtpu", _tpu("v5p:4x4x4"), int(95.74 * 2**30)),
    "h100:1x1x8": ("jax_cuda12_plugin", _h100("1x1x8"), 84_978_434_048),
}


def package(target: str) -> str:
    """What has to be installed to compile for a target."""
    known = _KNOWN | {name: each[:2] for name, each in _CLUSTERS.items()}
    return known[target][0] if target in known else "jaxlib"


def versions(target: str) -> dict[str, Any]:
    """What compiled it, on whatever machine."""
    known = _harness.environment(package(target).replace("_", "-"))
    return {"versions": known["versions"], "commit": known["commit"]}


def program(compile_it: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call compiles, and what it consists of: the compiler dumps meanwhile."""
    shutil.rmtree(_DUMPS, ignore_errors=True)
    executable = compile_it()
    text = executable.as_text()
    return executable, _programs.read(text, _bundles.of_operations(text, _DUMPS))


def clusters() -> tuple[str, ...]:
    """Many chips at once that this environment can compile for."""
    return tuple(name for name in _CLUSTERS if util.find_spec(package(name)))


def mesh(target: str, axis: str) -> jax.sharding.Mesh:
    """All chips of a cluster along one axis, or the CPU's own devices."""
    known = _CLUSTERS.get(target)
    devices = known[1]().devices if known else jax.devices()
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(devices), (axis,), axis_types=automatic)


def memory(target: str) -> int | None:
    """Bytes that a program may use on one chip; None of a CPU."""
    return _CLUSTERS[target][2] if target in _CLUSTERS else None


def available() -> tuple[str, ...]:
    """Targets that this environment can compile for."""
    return tuple(name for name in NAMES if util.find_spec(package(name)))


def compiled(target: str, step: Callable[..., Any], *args: Any) -> Any:
    """A jitted step for one chip of a target, from arrays of its arguments' shapes."""
    described = _KNOWN[target][1]()
    chip = jax.sharding.SingleDeviceSharding(described.devices[0])
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip)
    return jax.jit(step).lower(*jax.tree.map(shape, args)).compile()
