"""One run trained by two processes together, as under `accelerate launch`, against the same run by one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alignkit.faults import UserFault
from alignkit.world.models import trainer_arguments

SCRIPT = """
import json
import sys
from pathlib import Path

import alignkit
from alignkit import paths
from alignkit.report.policies import prepared
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.workflow import parameters
from alignkit.workflow.store import Run, get

p = parameters.load(paths.PARAMS / "smoke" / "2_dpo_losses.yaml")
runs = prepared(p, 0)
first = Path(sys.argv[1])  # where the first call says what its DPO run started from; the second starts from that too,
if not first.exists():  # since pairs of its own may have a token that rounding drew otherwise
    first.write_text(json.dumps([str(runs[name].folder) for name in ("sft", "pairs")]))
policy, pairs = (Run("", Path(folder)) for folder in json.loads(first.read_text()))
settings = DpoSettings(loss="sigmoid", divergence="reverse_kl", beta=0.1, epochs=2, batch=8, lr=1e-3)
get(train_dpo, settings, seed=0, policy=policy, pairs=pairs)
"""
LAUNCHED = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def histories(build: Path, *launcher: str) -> dict[str, pd.DataFrame]:
    """Train with a store of its own; the history of each run that has one, by its function."""
    script = build.with_name("script.py")
    script.write_text(SCRIPT)
    env = os.environ | {"ALIGNKIT_BUILD": str(build), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), str(build.with_name("first.json"))]
    subprocess.run(command, env=env, cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=300)
    assert not list((build / "store").glob("tmp-*"))
    files = (build / "store").glob("*/history.csv")
    return {file.parent.name.rpartition("-")[0]: pd.read_csv(file) for file in files}


@pytest.mark.slow
def test_two_processes_have_the_history_of_one_within_rounding(tmp_path: Path):
    one = histories(tmp_path / "one", sys.executable)
    port = str(20_000 + os.getpid() % 20_000)
    two = histories(tmp_path / "two", *LAUNCHED, port)
    assert set(one) == set(two) == {"train_sft", "train_reward", "train_dpo"}
    for name in one:
        columns = {"loss", "eval_loss"} & {*one[name]}
        assert columns
        for column in columns:
            np.testing.assert_allclose(two[name][column], one[name][column], rtol=2e-3, err_msg=f"{name}, {column}")


def test_a_batch_that_cannot_be_dealt_out_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserFault, match="batch: 32 a step; 3 processes"):
        trainer_arguments(tmp_path, seed=0, epochs=1, batch=32, lr=1e-3, reports=2)
