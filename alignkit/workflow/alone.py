"""The batch without Snakemake: for a machine that has no network, and that may be taken away at any time."""

import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import batch, parameters
from alignkit.workflow.schema import Rewarded

TOLD = "pairwise_accuracy test_cross_entropy accuracy reward gold kl".split()
"""What is printed of a run's metrics."""
RUNS = "runs.jsonl"
started = time.monotonic()


def report(profile: str, jobs: int, hub: Path, out: Path) -> bool:
    """Train, execute and publish a profile's notebooks, `jobs` processes side by side; returns whether all were.

    Models and data may be folders in `hub`, under the names by which the profile calls them; nothing is fetched.  As it
    goes, `out` gets the record of each run, a line each, and an archive of all that is there (`pack`).  What was
    trained before is not trained again.  Raises UserFault without a repository or such a profile.
    """
    if paths.CHECKOUT is None:
        raise UserFault("report: alignkit was installed without its repository; run this in a clone of it")
    parameters.check_profile(profile, "report")
    out.mkdir(parents=True, exist_ok=True)
    (paths.build() / profile / "logs").mkdir(parents=True, exist_ok=True)
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    file = paths.build() / "jupyter" / "kernels" / "python3" / "kernel.json"  # this Python's, whatever else is there
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kernel | {"display_name": "Python 3"}), encoding="utf-8")
    run, folder = partial(_run, profile, hub if hub.is_dir() else paths.CHECKOUT), paths.PARAMS / profile
    if not run("check", str(folder), "--reach"):
        return False
    wanted = {name: batch.values(name, profile) for name in batch.notebooks(profile)}
    publishing = Lock()

    def finish(name: str) -> bool:
        trainer = wanted[name].trained_with
        before = trained[trainer if trainer in wanted else name]
        before = before + [done[other] for other in wanted[name].reads if other in wanted]
        if not all(job.result() for job in before):
            return False
        with publishing:
            return run("execute", profile, name) and run("publish", profile)

    with ThreadPoolExecutor(jobs) as workers, ThreadPoolExecutor(len(wanted)) as finishers:
        trained = {name: [] for name in wanted}
        for name, seed in order(wanted):
            trained[name] += [workers.submit(run, "train", str(folder / f"{name}.yaml"), "--seed", str(seed))]
        done = {}
        for name in wanted:  # a notebook is read after those whose tables it reads
            done[name] = finishers.submit(finish, name)
        seen, ended = {file.parent for file in paths.store().glob("*/run.json")}, False
        try:
            while not ended:
                time.sleep(2)
                ended = all(job.done() for job in done.values())
                if _tell(out, seen) or ended:
                    pack(profile, out)
        finally:
            workers.shutdown(cancel_futures=True)
        return all(job.result() for job in done.values())


def order(wanted: dict[str, Rewarded]) -> list[tuple[str, int]]:
    """Training jobs (notebook, seed): the first seed has the side rows as well; of others the long notebooks first."""
    first = {name: p.seeds[0] for name, p in wanted.items()}
    later = [(name, seed) for name, p in reversed(wanted.items()) for seed in p.training_seeds() if seed != first[name]]
    return [*first.items(), *sorted(later, key=lambda job: job[1])]


def _run(profile: str, folder: Path, *command: str) -> bool:
    """Run a command of alignkit in a folder, its output in a log; returns whether it succeeded, and says so."""
    name = "-".join(Path(word).stem for word in command if word not in ("--seed", "--reach"))
    log = paths.build() / profile / "logs" / f"{name}.log"
    places = [str(paths.CHECKOUT), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "ALIGNKIT_BUILD": str(paths.build())}
    environment |= {"JUPYTER_PATH": str(paths.build() / "jupyter")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        how = {"cwd": folder, "env": os.environ | environment, "stdout": stream, "stderr": subprocess.STDOUT}
        code = subprocess.run([sys.executable, "-m", "alignkit", *command], **how, check=False).returncode
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    _say(f"{name}: {'done' if code == 0 else f'failed ({code}): ' + ' | '.join(lines[-3:])}")
    return code == 0


def _tell(out: Path, seen: set[Path]) -> bool:
    """Print and keep the records of runs that have ended since; returns whether there were any."""
    ended = [file for file in paths.store().glob("*/run.json") if not file.parent.name.startswith("tmp-")]
    new = sorted(file for file in ended if file.parent not in seen)
    for file in new:
        seen.add(file.parent)
        record = json.loads(file.read_text(encoding="utf-8"))
        with (out / RUNS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        known = {key: record["metrics"].get(key) for key in TOLD}
        told = [f"{key} {value:.3f}" for key, value in known.items() if isinstance(value, float)]
        _say(f"{file.parent.name}, seed {record['inputs'].get('seed')}, {record['seconds']} s: {', '.join(told)}")
    return bool(new)


def _say(text: str) -> None:
    print(f"{(time.monotonic() - started) / 60:5.1f} min  {text}", flush=True)


def pack(profile: str, out: Path) -> Path:
    """Write <profile>.tar.gz: records, logs, and what was published: notebooks, figures, tables and findings.

    It unfolds in a clone, and is whole at any time.
    """
    archive, part = out / f"{profile}.tar.gz", out / f"{profile}.part"
    published = paths.CHECKOUT / "figures" / profile
    made = (published, paths.build() / profile / "logs", out / RUNS)
    with tarfile.open(part, "w:gz") as tar:
        for source, name in zip(made, ("figures", "build", "build"), strict=True):
            if source.exists():
                tar.add(source, f"{name}/{profile}" + ("" if source == published else f"/{source.name}"))
    part.replace(archive)
    return archive
