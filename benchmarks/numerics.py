"""Do the bits of a run depend on the instruction set?  With the pin they should not, without it they do.

Trains one reward model and one policy-gradient run of the smoke sizes (or of another parameter file) twice in processes
of their own, each time with another setting of what a machine's libraries could choose, and compares the weights:
first pinned (ALIGNKIT_NUMERICS=portable), then not (native).

    python benchmarks/numerics.py [params/pocket/4_warp.yaml]
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MACHINES = {
    "as it is": {},
    "AVX2 only, two threads": {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2",
    },
}  # fmt: skip
"""Environments that lead the libraries to other kernels, as another processor would."""
TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
from alignkit.report import policies
from alignkit.workflow import parameters, store
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
p = parameters.load(Path(sys.argv[1]))
started = policies.started(p, 0)
settings = LoopSettings(**{**p.inner_loop(), "keep": ()})
inputs = {"seed": 0, "data": p.reviews(), "policy": started["sft"], "reference": started["sft"], "stream": [0, 0]}
run = store.get(train_policy_gradient, settings, **inputs, reward=started["reward"])
print(started["reward"].path, run.path)
"""


def weights(numerics: str, machine: str, parameters: str) -> list[str]:
    """Checksums of the reward model's and the policy's weights, trained in a store of their own."""
    with tempfile.TemporaryDirectory() as build:
        env = os.environ | MACHINES[machine] | {"ALIGNKIT_NUMERICS": numerics, "ALIGNKIT_BUILD": build}
        told = subprocess.run([sys.executable, "-c", TRAIN, parameters], env=env, check=True, capture_output=True)
        folders = told.stdout.decode().split()[-2:]
        return [hashlib.sha256((Path(f) / "model.safetensors").read_bytes()).hexdigest()[:12] for f in folders]


def main() -> int:
    """Print the checksums; 1 if the pinned ones differ."""
    parameters = sys.argv[1] if len(sys.argv) > 1 else "params/smoke/4_warp.yaml"
    found = {(n, m): weights(n, m, parameters) for n in ("portable", "native") for m in MACHINES}
    print("numerics | machine | reward model | policy")
    for (numerics, machine), sums in found.items():
        print(f"{numerics} | {machine} | {sums[0]} | {sums[1]}", flush=True)
    return len({tuple(sums) for (numerics, _), sums in found.items() if numerics == "portable"}) - 1


if __name__ == "__main__":
    sys.exit(main())
