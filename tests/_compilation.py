"""How tests are compiled: in a hurry, but for those of whole rules.

Without optimization, and where it can be without the newer kind of emitters,
compilation takes a third of the time or less. A program is not cut into parts that are
compiled side by side either: every processor has a worker of its own.
"""

from importlib.metadata import version

AS_USERS_DO: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):  # later ones have one kind alone
    AS_USERS_DO["xla_cpu_use_fusion_emitters"] = True
IN_A_HURRY = [f"--{option}=0" for option in AS_USERS_DO]
IN_A_HURRY += ["--xla_cpu_parallel_codegen_split_count=1"]
