"""The batch without Snakemake: for a machine that has no network, and that may be taken away at any time."""

import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Event, Lock

from alignkit import paths
from alignkit.workflow import batch
from alignkit.workflow.schema import Rewarded

TOLD = "pairwise_accuracy test_cross_entropy accuracy reward gold kl".split()
"""What is printed of a run's metrics."""
RUNS = "runs.jsonl"


def report(profile: str, jobs: int, hub: Path, out: Path) -> bool:
    """Train, execute and publish a profile's notebooks, `jobs` processes side by side; returns whether all were.

    Models and data may be folders in `hub`, under the names by which the profile calls them; nothing is fetched.  As it
    goes, `out` gets the record of each run, a line each, and an archive of what there is (`pack`).  What was trained
    before is not trained again.  Raises UserFault while another process does the same.
    """
    _held = batch.lock_build(profile, ".report-lock")  # released as this function ends
    kernel = paths.build() / "jupyter" / "kernels" / "python3" / "kernel.json"  # of this Python, whatever else is there
    for folder in (out, kernel.parent, paths.build() / profile / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "language": "python", "display_name": "Python 3"}), encoding="utf-8")
    os.environ["ALIGNKIT_BUILD"] = str(paths.build())  # in full
    os.chdir(hub if hub.is_dir() else paths.CHECKOUT)  # a folder of such a name is found before the Hub
    run, params = partial(_run, profile), paths.PARAMS / profile
    if not run("check", str(params), "--reach"):
        return False
    wanted = {name: batch.values(name, profile) for name in batch.notebooks(profile)}
    print(f"{profile}: {len(training_jobs(wanted))} training jobs, {len(wanted)} notebooks", flush=True)
    seen, publishing, stopped = set(paths.store().glob("*/run.json")), Lock(), Event()

    def there(name: str) -> bool:
        sealed = batch.seal(profile, name, batch.content_key(name, profile))
        return sealed.is_file() and not batch.first_damaged(profile, name, sealed)

    def finish(name: str) -> bool:
        p = wanted[name]
        before = trained.get(p.trained_with, trained[name]) + [done[n] for n in p.reads if n in wanted]
        if not all(job.result() for job in before):
            return False
        with publishing:
            return not stopped.is_set() and (there(name) or run("execute", profile, name)) and run("publish", profile)

    batch.break_seals(profile)
    for name in wanted:  # a page of other code or parameters would keep the others from being published
        if not there(name):
            batch.executed(profile, name).unlink(missing_ok=True)

    with ThreadPoolExecutor(jobs) as workers, ThreadPoolExecutor(len(wanted)) as finishers:
        trained, done, ended = {name: [] for name in wanted}, {}, False
        for name, seed in training_jobs(wanted):
            trained[name].append(workers.submit(run, "train", str(params / f"{name}.yaml"), "--seed", str(seed)))
        for name in wanted:  # after those whose tables it reads
            done[name] = finishers.submit(finish, name)
        try:
            while not ended:
                time.sleep(2)
                ended = all(job.done() for job in done.values())
                if _tell(out, seen) or ended:
                    over = [job.done() for each in (*trained.values(), done.values()) for job in each]
                    print(f"{sum(over)} of {len(over)} jobs have ended", flush=True)
                    pack(profile, out)
        finally:
            stopped.set()  # after Ctrl-C those that wait for each other end as well
            workers.shutdown(cancel_futures=True)
        return all(job.result() for job in done.values())


def training_jobs(wanted: dict[str, Rewarded]) -> list[tuple[str, int]]:
    """Training jobs (notebook, seed): the first seed's, with side rows; then seed by seed, later notebooks first."""
    first = [(name, p.seeds[0]) for name, p in wanted.items()]
    every = [(name, seed) for name, p in reversed(wanted.items()) for seed in p.training_seeds()]
    return [*first, *sorted((job for job in every if job not in first), key=lambda job: job[1])]


def _run(profile: str, *command: str) -> bool:
    """Run a command of alignkit, what it prints in a log; says and returns whether it succeeded."""
    name = "-".join(Path(word).stem for word in command if not word.startswith("--"))
    log = paths.build() / profile / "logs" / f"{name}.log"
    places = os.pathsep.join(filter(None, [str(paths.CHECKOUT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": places, "JUPYTER_PATH": str(paths.build() / "jupyter")}
    own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        how = {"env": os.environ | own, "stdout": stream, "stderr": subprocess.STDOUT, "check": False}
        code = subprocess.run([sys.executable, "-m", "alignkit", *command], **how).returncode
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    last += [f"killed by signal {-code}"] if code < 0 else []
    print(time.strftime("%X"), f"{name}: {f'failed, {last}' if code else 'done'}", flush=True)
    return code == 0


def _tell(out: Path, seen: set[Path]) -> bool:
    """Print and keep the records of runs that have ended since; returns whether there were any."""
    new = {file for file in paths.store().glob("*/run.json") if not file.parent.name.startswith("tmp-")} - seen
    for file in sorted(new):
        record = json.loads(file.read_text(encoding="utf-8"))
        with (out / RUNS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        told = [f"{key} {x:.3f}" for key in TOLD if isinstance(x := record["metrics"].get(key), float)]
        which = f"{file.parent.name}, seed {record['inputs'].get('seed')}, {record['seconds']:.0f} s"
        print(time.strftime("%X"), which, *told, sep="  ", flush=True)
    seen |= new
    return bool(new)


def pack(profile: str, out: Path) -> Path:
    """Write <profile>.tar.gz: what was published (notebooks, figures, tables, findings), logs and records.

    It unfolds in a clone, and is whole at any time.
    """
    part = out / f"{profile}.part"
    made = {f"build/{profile}/{RUNS}": out / RUNS, f"build/{profile}/logs": paths.build() / profile / "logs"}
    made |= {f"figures/{profile}": paths.published(profile)}
    made |= {"notebooks": paths.CHECKOUT / "notebooks"} if profile == "pocket" else {}
    with tarfile.open(part, "w:gz") as tar:
        for name, source in made.items():
            for file in [source] if source.is_file() else sorted(source.rglob("*")):
                with suppress(FileNotFoundError, IsADirectoryError):  # an executed notebook moves, logs grow
                    content = file.read_bytes()
                    entry = tarfile.TarInfo(str(Path(name, file.relative_to(source))))
                    entry.size, entry.mtime = len(content), int(time.time())
                    tar.addfile(entry, BytesIO(content))
    return part.replace(out / f"{profile}.tar.gz")
