# The batch: train (notebook x seed) -> notebook.  Every target lies under build/.
#
# A job runs again when the content of what it depends on has changed: its cells, its parameters, the
# alignkit modules or the lock, hashed into `key`.  File times play no part (--rerun-triggers params).
# What is trained is decided by the run store: an edit that no run depends on retrains nothing.

from alignkit import paths
from alignkit.workflow import batch, parameters

PROFILE = config.get("profile", "pocket")
DATA = config.get("data") or ""
NOTEBOOKS = batch.notebooks(PROFILE)
VALUES = {name: parameters.load(paths.PARAMS / PROFILE / f"{name}.yaml") for name in NOTEBOOKS}
SEEDS = {name: [*p.seeds, *getattr(p, "confirm_seeds", [])] for name, p in VALUES.items()}
BUILD = str(paths.build())
# What another notebook's runs start from is trained first, so that no job waits for another one's lock.
FIRST = {"2_dpo_losses": ["1_reward_model"], "3_f_divergences": ["2_dpo_losses"],
         "4_warp": ["1_reward_model"], "5_improvements": ["3_f_divergences"], "6_one_front": ["1_reward_model"]}
# The primer's runs are among notebook 2's.
TRAINED_WITH = {"0_primer": "2_dpo_losses"} if "2_dpo_losses" in NOTEBOOKS else {}
# Whose tables a notebook reads.
TABLES = {"6_one_front": ["2_dpo_losses", "3_f_divergences", "4_warp", "5_improvements"]}
KEYS = {name: batch.content_key(name, PROFILE, DATA) for name in NOTEBOOKS}
KEYS |= {name: KEYS[name] + "".join(KEYS[n] for n in read if n in KEYS) for name, read in TABLES.items() if name in KEYS}


rule all:
    input:
        expand(f"{BUILD}/{PROFILE}/{{notebook}}.ipynb", notebook=NOTEBOOKS),


def trained(notebook, seed):
    return f"{BUILD}/{PROFILE}/trained/{notebook}-seed-{seed}"


rule train:
    input:
        lambda w: [trained(n, w.seed) for n in FIRST.get(w.notebook, []) if int(w.seed) in SEEDS.get(n, [])],
    output:
        touch(f"{BUILD}/{PROFILE}/trained/{{notebook}}-seed-{{seed}}"),
    params:
        key=lambda w: KEYS[w.notebook],
        data=f"--data '{DATA}'" if DATA else "",
    log:
        f"{BUILD}/{PROFILE}/logs/{{notebook}}-seed-{{seed}}.log",
    # The first seed trains the side rows as well; what ends in notebook 5 is the longest chain.
    priority: lambda w: int(int(w.seed) == SEEDS[w.notebook][0] and w.notebook[0] in "1235")
    # Few seeds: each job gets several cores.
    threads: lambda w: max(1, workflow.cores // len(SEEDS[w.notebook]))
    shell:
        "echo 'train {wildcards.notebook}, seed {wildcards.seed}'; "
        "python -m alignkit train params/{PROFILE}/{wildcards.notebook}.yaml --seed {wildcards.seed} {params.data}"
        " > {log:q} 2>&1 || {{ tail -n 1 {log:q} >&2; exit 1; }}"


rule notebook:
    input:
        lambda w: [trained(TRAINED_WITH.get(w.notebook, w.notebook), seed) for seed in SEEDS[w.notebook]],
        lambda w: [f"{BUILD}/{PROFILE}/{n}.ipynb" for n in TABLES.get(w.notebook, []) if n in NOTEBOOKS],
    output:
        f"{BUILD}/{PROFILE}/{{notebook}}.ipynb",
    params:
        key=lambda w: KEYS[w.notebook],
        data=f"-p data '{DATA}'" if DATA else "",
        failed=f"{BUILD}/{PROFILE}/logs/{{notebook}}.failed.ipynb",
        figures=lambda w: f"{BUILD}/{PROFILE}/figures/{w.notebook[0]}_",
    log:
        f"{BUILD}/{PROFILE}/logs/{{notebook}}.log",
    threads: 1
    shell:
        # The copy of a failed notebook stays, with the cell that failed marked in it.
        # A figure that it draws no longer does not stay behind.
        "echo 'execute {wildcards.notebook}'; rm -f {params.figures:q}*; "
        "papermill notebooks/{wildcards.notebook}.ipynb {params.failed:q} -k python3 --no-progress-bar"
        " -f params/{PROFILE}/{wildcards.notebook}.yaml {params.data} > {log:q} 2>&1"
        " && mv {params.failed:q} {output:q}"
        " || {{ echo '{wildcards.notebook} failed:' $(grep -o 'Exception encountered at.*' {log:q} || tail -n 1 {log:q})"
        " - see {params.failed:q} >&2; exit 1; }}"
