# The batch: train (notebook x seed) -> notebook.  Every target lies under build/.
#
# A target's name holds the key of what it depends on.  An executed notebook: its cells, its parameters, the alignkit
# modules that it reaches and the lock; a training job: the parameters, the lock and the definitions that the recipe of
# its notebook reaches.  So a job runs again when one of them has changed; file times play no part (--rerun-triggers
# params).  What such a job trains is decided by the run store.

import os
import sys

from alignkit import numerics, paths
from alignkit.faults import UserFault
from alignkit.workflow import batch, parameters
from alignkit.world.reach import absolute

PROFILE = config.get("profile", "pocket")
# By the environment, so that no shell reads it as part of a command.
DATA = os.environ["DATA"] = absolute(os.environ.get("DATA", ""))
try:
    PINNED = numerics.chosen() == "portable"
    parameters.check_profile(PROFILE)
    NOTEBOOKS = batch.notebooks(PROFILE)
    VALUES = {name: batch.values(name, PROFILE, DATA) for name in NOTEBOOKS}
    # Held until this process ends; a job on another machine reads this file once more.
    LOCK = batch.lock_build(PROFILE) if workflow.is_main_process else None
except UserFault as fault:
    print(fault, file=sys.stderr, flush=True)
    os._exit(2)  # Snakemake would tell an exception in more than one line
KEYS = {name: batch.content_key(name, PROFILE, DATA) for name in NOTEBOOKS}
TRAINING_KEYS = {name: batch.training_key(name, PROFILE, DATA) for name in NOTEBOOKS}
LONGEST = max((batch.with_those_before(name) for name in NOTEBOOKS), key=len, default=[])
BUILD = str(paths.build() / PROFILE)
if LOCK:
    batch.break_seals(PROFILE)
(paths.build() / PROFILE / "logs").mkdir(exist_ok=True)


# The last line of a job's log says what failed; one that was killed could say nothing.
LOGGED = (
    " > {params.log:q} 2>&1 || {{ code=$?; [ $code -le 128 ] || [ $code = 130 ] || echo 'killed by signal '"
    "$((code - 128))'; if memory ran short, fewer JOBS need less; what has ended is kept' >> {params.log:q}; "
    "tail -n 1 {params.log:q} >&2; exit 1; }}"
)


wildcard_constraints:
    key="[0-9a-f]{16}",
    seed=r"\d+",


def sealed(notebook):
    return str(batch.seal(PROFILE, notebook, KEYS[notebook]))


def trained(notebook, seed):
    return f"{BUILD}/trained/{notebook}-{TRAINING_KEYS[notebook]}-seed-{seed}"


def start(notebook, seed):
    """What another notebook's runs start from is trained first, so that no job waits for another one's lock."""
    return [trained(n, seed) for n in VALUES[notebook].after if n in VALUES and int(seed) in VALUES[n].training_seeds()]


def own_runs(notebook):
    trainer = VALUES[notebook].trained_with
    return [trained(trainer if trainer in VALUES else notebook, s) for s in VALUES[notebook].training_seeds()]


if LOCK:
    jobs = {str(file) for name in NOTEBOOKS for file in (sealed(name), *own_runs(name))}
    if left := sum(not os.path.exists(file) for file in jobs):
        print(f"{PROFILE}: {left} of {len(jobs)} jobs are to be done", flush=True)


rule all:
    input:
        [sealed(name) for name in NOTEBOOKS],


rule train:
    input:
        # Only their order matters: runs that others start from count by the checksums of their files.
        lambda w: [ancient(file) for file in start(w.notebook, w.seed)],
    output:
        touch(f"{BUILD}/trained/{{notebook}}-{{key}}-seed-{{seed}}"),
    params:
        file=lambda w: str(paths.PARAMS / PROFILE / f"{w.notebook}.yaml"),
        log=lambda w: f"{BUILD}/logs/{w.notebook}-seed-{w.seed}.log",
    # The longest chain first, and in it the first seed, which trains the side rows as well: short jobs fill the end.
    priority: lambda w: (w.notebook in LONGEST) * (1 + (int(w.seed) == VALUES[w.notebook].seeds[0]))
    # With all kernels and few seeds, each job gets several cores.
    threads: lambda w: 1 if PINNED else max(1, workflow.cores // len(VALUES[w.notebook].training_seeds()))
    shell:
        "echo 'train {wildcards.notebook}, seed {wildcards.seed}'; "
        'python -m alignkit train {params.file:q} --seed {wildcards.seed} ${{DATA:+--data "$DATA"}}' + LOGGED


rule notebook:
    input:
        # What they are stands in their names, by key; how old they are does not matter.
        lambda w: [ancient(file) for file in own_runs(w.notebook)],
        lambda w: [ancient(sealed(name)) for name in VALUES[w.notebook].reads if name in VALUES],
    output:
        f"{BUILD}/executed/{{notebook}}-{{key}}.json",
    params:
        log=lambda w: f"{BUILD}/logs/{w.notebook}.log",
    # Those whose tables another one reads come first: the others then fill the time beside the last.
    priority: lambda w: sum(w.notebook in VALUES[name].reads for name in NOTEBOOKS)
    threads: 1
    shell:
        "echo 'execute {wildcards.notebook}'; "
        "python -m alignkit execute {PROFILE} {wildcards.notebook} --key {wildcards.key}"
        ' ${{DATA:+--data "$DATA"}}' + LOGGED
