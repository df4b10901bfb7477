"""The same arithmetic on every machine: AVX2 kernels, one thread a job, threads that sleep while they wait.

Libraries choose their kernels by the processor's instruction set and by the number of threads, and other kernels round
otherwise: trained weights then differ between machines.  `pin` asks all of them for what every x86 processor of the
last ten years has.  It must act before torch and NumPy are imported, so `import alignkit` calls it.

ALIGNKIT_NUMERICS=native turns it off: the fastest kernels of this processor, and as many threads as it has cores.  What
is in force counts in the identity of a run (`in_force`).
"""

import os
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from alignkit.faults import UserFault

SETTING = "ALIGNKIT_NUMERICS"
ALLOWED = ("portable", "native")
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "MKL_CBWR": "AVX2,STRICT",  # matrix products: Intel's library promises this branch for its own processors only
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of NumPy and SciPy
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Some containers turn on TF32, whose products have 10 bits where KLs and log-probs need float32's 23.
    **dict.fromkeys(("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"), "0"),
}
BEYOND_AVX2 = {
    True: "X86_V4 AVX512_ICL AVX512_SPR",
    False: "AVX512F AVX512CD AVX512_KNL AVX512_KNM AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
}
"""NumPy's names for kernels beyond AVX2: True for version 2.4 and later, False for earlier ones."""


def chosen() -> str:
    """ "portable" or "native".  Raises UserFault for another value of ALIGNKIT_NUMERICS."""
    value = os.environ.get(SETTING) or ALLOWED[0]
    if value not in ALLOWED:
        raise UserFault(f"{SETTING}: {value!r}; allowed: {', '.join(ALLOWED)}")
    return value


def pin() -> None:
    """Set the environment variables that fix kernels and threads, in place of the shell's, and three others where they
    are unset.

    Where torch has been imported already, its kernels stay as they are, and `in_force` says so; where NumPy alone has,
    its matrix products do (those of the judge and of baselines), and nothing says so.
    """
    # A waiting thread that spins makes a job beside another busy one ten times slower, whatever the kernels.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # trl reports every trainer to the Hub from a thread, in which the C library reads the environment while it looks a
    # name up.  accelerate and datasets empty and refill that meanwhile; a read at the wrong moment ends the process.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if "WORLD_SIZE" not in os.environ:  # one process's trainer uses all GPUs that it sees, and a batch on each
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if os.environ.get(SETTING) == "native":  # `chosen` raises for a wrong value
        return
    if "torch" not in sys.modules:
        new_names = tuple(map(int, version("numpy").split(".")[:2])) >= (2, 4)
        os.environ |= PORTABLE | {"NPY_DISABLE_CPU_FEATURES": BEYOND_AVX2[new_names]}
        os.environ["ALIGNKIT_PINNED"] = str(os.getpid())
    else:
        sys.modules["torch"].set_num_threads(1)


@lru_cache(maxsize=1)
def in_force() -> dict[str, str | int]:
    """Kernels, threads, processor and GPU of this process: what a run's bits depend on beside its code."""
    import torch

    pinned = os.environ.get("ALIGNKIT_PINNED") == str(os.getpid()) and chosen() == "portable"
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "numerics": "portable" if pinned else "native",
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        # Two makers' processors are not promised to agree, even on the same kernels.
        "processor": _maker(),
    }


def _maker() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), os.uname().machine)
