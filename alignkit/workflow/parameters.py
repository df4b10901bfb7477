"""Typed parameters of each notebook: the one reader and checker of params/ and of what papermill injects.

Parameter files are flat YAML, `params/<profile>/<notebook>.yaml`.  A fault is one line: where, key,
value, what is allowed.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.world.reach import check_data, check_model

if TYPE_CHECKING:
    from alignkit.world.reviews import Reviews

Profile = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]


Share = Annotated[float, Field(ge=0, lt=1)]


LearningRate = Annotated[float, Field(gt=0, le=0.1)]


Epochs = Annotated[float, Field(ge=0, le=100)]


Count = Annotated[int, Field(ge=1, le=10_000_000)]


Even = Annotated[int, Field(ge=2, le=10_000_000, multiple_of=2)]


Tokens = Annotated[int, Field(ge=8, le=1024)]


Prompts = Annotated[int, Field(ge=1, le=10_000)]


Completions = Annotated[int, Field(ge=1, le=1024)]


NewTokens = Annotated[int, Field(ge=1, le=1024)]


Beta = Annotated[float, Field(gt=0, le=1000)]


PairEpochs = Annotated[float, Field(gt=0, le=100)]


Construction = Literal["threshold", "top_bottom", "all_pairs", "bernoulli"]


Betas = Annotated[list[Beta], Field(min_length=1, max_length=12)]


MatchedKls = Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=1, max_length=5)]


Rate = Annotated[float, Field(gt=0, le=1)]


Runs = Annotated[int, Field(ge=1, le=16)]


Steps = Annotated[int, Field(ge=1, le=100_000)]


Etas = Annotated[list[Rate], Field(min_length=1, max_length=12)]


class World(BaseModel):
    """What every notebook shares: the reviews and the SFT policy."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    notebook: str = Field(min_length=1)
    profile: Profile
    seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(min_length=1, max_length=20)

    data: str = Field(min_length=1)
    train_reviews: Even | None
    test_reviews: Even | None
    unsupervised_reviews: Even | None

    policy: str = Field(min_length=1)
    policy_tokenizer: Literal["word", "bpe"]
    policy_vocab: Annotated[int, Field(ge=100, le=100_000)]
    policy_width: Annotated[int, Field(ge=8, le=4096)]
    policy_layers: Annotated[int, Field(ge=1, le=48)]
    policy_heads: Annotated[int, Field(ge=1, le=64)]
    sft_tokens: Tokens
    sft_epochs: Epochs
    sft_batch: Annotated[int, Field(ge=1, le=4096)]
    sft_lr: LearningRate
    sft_held_out: Count

    @model_validator(mode="after")
    def _consistent(self) -> "World":
        if found := list(self.clashes()):
            raise ValueError("\n".join(found))
        return self

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        if self.policy_width % self.policy_heads:
            yield f"policy_width: {self.policy_width} is not a multiple of policy_heads ({self.policy_heads})"
        if len(set(self.seeds)) < len(self.seeds):
            yield f"seeds: {self.seeds} names a seed twice"

    def reviews(self) -> "Reviews":
        """Which reviews the notebook learns from."""
        from alignkit.world.reviews import Reviews  # here, as it imports the libraries and faults are told at once

        return Reviews(self.data, self.train_reviews, self.test_reviews, self.unsupervised_reviews)

    def check_reach(self) -> None:
        """Raise UserFault if the data or a model is out of reach."""
        check_data(self.data)
        for key in ("policy", "reward_model"):
            if key in type(self).model_fields:
                check_model(key, getattr(self, key))

    def sft(self) -> dict[str, Any]:
        """The settings of `sft.train_sft`."""
        policy = {name: getattr(self, f"policy_{name}") for name in ("tokenizer", "vocab", "width", "layers", "heads")}
        sft = {name: getattr(self, f"sft_{name}") for name in ("tokens", "epochs", "batch", "lr", "held_out")}
        return {"policy": self.policy, **policy, **sft}


class Rewarded(World):
    """The world and its reward model."""

    reward_model: str = Field(min_length=1)
    reward_tokenizer: Literal["encoder_word", "wordpiece"]
    reward_vocab: Annotated[int, Field(ge=100, le=100_000)]
    reward_width: Annotated[int, Field(ge=8, le=4096)]
    reward_layers: Annotated[int, Field(ge=1, le=48)]
    reward_heads: Annotated[int, Field(ge=1, le=64)]
    reward_sinusoidal: bool
    reward_tokens: Annotated[int, Field(ge=8, le=512)]
    reward_dropout: Share
    reward_word_dropout: Share
    reward_epochs: Annotated[float, Field(gt=0, le=100)]
    reward_batch: Annotated[int, Field(ge=4, le=4096, multiple_of=2)]
    reward_lr: LearningRate

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if self.reward_width % self.reward_heads:
            yield f"reward_width: {self.reward_width} is not a multiple of reward_heads ({self.reward_heads})"
        room = max(128, self.sft_tokens) - 20
        new_tokens = getattr(self, "new_tokens", 0)
        if self.policy == "scratch" and new_tokens > room:
            yield f"new_tokens: {new_tokens}; beside a prompt of 20 tokens there is room for {room}"

    def reward_training(self) -> dict[str, Any]:
        """The settings of `reward.train_reward` that all of its runs share."""
        names = ("tokenizer", "vocab", "width", "layers", "heads", "sinusoidal", "tokens", "dropout", "word_dropout")
        names += ("epochs", "batch", "lr")
        return {"base": self.reward_model, **{name: getattr(self, f"reward_{name}") for name in names}}


class RewardModel(Rewarded):
    """Notebook 1."""

    held_out: Even
    curve_reviews: list[Even] = Field(min_length=1, max_length=10)
    curve_min_steps: Count

    prompts: Prompts
    completions: Completions
    new_tokens: NewTokens

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        largest = max(self.curve_reviews)
        if self.train_reviews is not None and self.held_out + largest > self.train_reviews:
            both = f"held_out: {self.held_out} and curve_reviews up to {largest}"
            yield f"{both} together are more than train_reviews ({self.train_reviews})"

    def sampling(self) -> dict[str, Any]:
        """The settings of `sampling.sample_completions`: the task's 5-20 tokens of test reviews."""
        lengths = {"shortest": 5, "longest": 20, "max_new_tokens": self.new_tokens}
        return {"n_prompts": self.prompts, "k": self.completions, **lengths}


class Evaluated(Rewarded):
    """What the notebooks share that train policies and evaluate them."""

    prompts: Prompts
    main_completions: Completions
    side_completions: Completions
    new_tokens: NewTokens

    def evaluation(self, completions: int) -> dict[str, Any]:
        """The settings of `evaluation.evaluate`."""
        sizes = {"n_prompts": self.prompts, "k": completions, "max_new_tokens": self.new_tokens}
        return {**sizes, "reward_tokens": self.reward_tokens}


class Aligned(Evaluated):
    """What the notebooks share that train policies on preference pairs."""

    pair_prompts: Annotated[int, Field(ge=5, le=1_000_000)]
    pair_samples: Annotated[int, Field(ge=2, le=64)]
    winner_reward: Annotated[float, Field(ge=-100, le=100)]
    loser_reward: Annotated[float, Field(ge=-100, le=100)]
    dpo_batch: Annotated[int, Field(ge=1, le=4096)]
    main_beta: Beta

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if self.winner_reward < self.loser_reward:
            yield f"winner_reward: {self.winner_reward} is below loser_reward ({self.loser_reward})"

    def thresholds(self) -> dict[str, float]:
        """The settings of `pairs.build_pairs` that the construction "threshold" needs."""
        return {"winner": self.winner_reward, "loser": self.loser_reward}

    def generation(self) -> dict[str, Any]:
        """The settings of `pairs.generate`."""
        sizes = {"n_prompts": self.pair_prompts, "k": self.pair_samples, "max_new_tokens": self.new_tokens}
        return {**sizes, "reward_tokens": self.reward_tokens}

    def construction(self) -> str:
        """Which completions of a prompt the notebook's own pairs compare."""
        raise NotImplementedError

    def dpo(self) -> dict[str, Any]:
        """The settings of `dpo.train_dpo` that all runs of a notebook share."""
        raise NotImplementedError


class OnPairs(Aligned):
    """What notebooks 0 and 2 share."""

    pair_construction: Construction
    dpo_epochs: PairEpochs
    dpo_lr: LearningRate

    def construction(self) -> str:
        """Which completions of a prompt the notebook's own pairs compare."""
        return self.pair_construction

    def dpo(self) -> dict[str, Any]:
        """The settings of `dpo.train_dpo` that all runs of a notebook share."""
        return {"epochs": self.dpo_epochs, "batch": self.dpo_batch, "lr": self.dpo_lr}


class Primer(OnPairs):
    """Notebook 0."""


class DpoLosses(OnPairs):
    """Notebook 2."""

    betas: Betas
    ipo_beta: Beta
    ipo_per_token_beta: Beta
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)]
    max_similarity: Annotated[float, Field(gt=0, lt=1)]
    lora_rank: Annotated[int, Field(ge=1, le=256)]
    lora_lr: LearningRate
    positive_prefix: str = Field(min_length=1, max_length=200)
    biased_words: Annotated[int, Field(ge=1, le=1000)]
    word_bias: Annotated[float, Field(gt=0, le=20)]
    best_of: list[Annotated[int, Field(ge=2, le=64)]] = Field(min_length=1, max_length=10)

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        for n in self.best_of:
            if self.main_completions % n:
                yield f"best_of: {n} does not divide main_completions ({self.main_completions})"


class Divergent(Aligned):
    """What notebooks 3 and 5 share: one setting for every divergence, and the sweeps of the common ones."""

    divergence_pairs: Construction
    divergence_epochs: PairEpochs
    divergence_lr: LearningRate
    reverse_kl_betas: Betas
    forward_kl_betas: Betas
    js_betas: Betas

    def construction(self) -> str:
        """Which completions of a prompt the notebook's own pairs compare."""
        return self.divergence_pairs

    def dpo(self) -> dict[str, Any]:
        """The settings of `dpo.train_dpo` that all runs of a notebook share."""
        return {"epochs": self.divergence_epochs, "batch": self.dpo_batch, "lr": self.divergence_lr}


class FDivergences(Divergent):
    """Notebook 3."""

    alphas: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1, max_length=9)
    alpha_betas: Betas
    matched_kl: MatchedKls


class Loop(Evaluated):
    """What notebooks 4 to 6 share: the inner loop of WARP."""

    warp_iterations: Annotated[int, Field(ge=1, le=20)]
    warp_runs: Runs
    warp_steps: Steps
    warp_batch: Annotated[int, Field(ge=2, le=4096)]
    warp_samples: Annotated[int, Field(ge=1, le=64)]
    warp_baseline: Literal["none", "mean", "rloo"]
    warp_beta: Beta
    warp_lr: LearningRate
    warp_warmup: Annotated[int, Field(ge=0, le=10_000)]
    ema_rate: Rate

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if self.warp_batch % self.warp_samples:
            yield f"warp_batch: {self.warp_batch} is not a multiple of warp_samples ({self.warp_samples})"

    def inner_loop(self) -> dict[str, Any]:
        """The settings of `reinforce.train_policy_gradient` that all runs share."""
        names = {"warp_steps": "steps", "warp_batch": "batch", "warp_samples": "k", "warp_baseline": "baseline",
                 "warp_beta": "beta", "warp_lr": "lr", "warp_warmup": "warmup", "ema_rate": "ema_rate"}  # fmt: skip
        shared = {setting: getattr(self, name) for name, setting in names.items()}
        sizes = {"max_new_tokens": self.new_tokens, "reward_tokens": self.reward_tokens}
        return {**shared, **sizes, "anchor": "ema", "keep": []}


class Fronts(Loop):
    """What notebooks 4 and 5 share: fronts of WARP."""

    liti_rate: Rate

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if self.liti_rate not in self.etas or 1.0 not in self.etas:
            yield f"etas: {self.etas} lacks 1.0 or liti_rate ({self.liti_rate})"


class Warp(Fronts):
    """Notebook 4."""

    ema_rates: Annotated[list[Rate], Field(min_length=1, max_length=6)]
    run_counts: Annotated[list[Runs], Field(min_length=1, max_length=6)]
    step_counts: Annotated[list[Steps], Field(min_length=1, max_length=6)]
    warp_betas: Betas
    etas: Etas
    matched_kl: MatchedKls

    def inner_loop(self) -> dict[str, Any]:
        """The settings of `reinforce.train_policy_gradient` that all runs share."""
        return super().inner_loop() | {"keep": sorted(steps for steps in self.step_counts if steps < self.warp_steps)}


class Improvements(Divergent, Fronts):
    """Notebook 5."""

    chi_alpha: Annotated[float, Field(gt=1, le=3)]
    strengths: Betas
    equal_steps: Steps
    rloo_samples: list[Annotated[int, Field(ge=2, le=64)]] = Field(min_length=1, max_length=6)
    main_samples: Annotated[int, Field(ge=2, le=64)]
    anchored_lr: LearningRate
    weak_reviews: list[Even] = Field(min_length=1, max_length=5)
    weak_steps: Count
    weak_beta: Beta
    etas: Etas
    matched_kl: MatchedKls
    confirm_seeds: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(min_length=1, max_length=20)

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if used := sorted({*self.confirm_seeds} & {*self.seeds}):
            yield f"confirm_seeds: {used} are among seeds already; allowed: others"
        if self.equal_steps % (self.warp_iterations * self.warp_runs):
            yield f"equal_steps: {self.equal_steps} is not a multiple of warp_iterations x warp_runs"
        if self.train_reviews is not None and max(self.weak_reviews) > self.train_reviews:
            yield f"weak_reviews: {max(self.weak_reviews)} is more than train_reviews ({self.train_reviews})"
        for k in [*self.rloo_samples, self.main_samples]:
            if k > self.warp_batch:
                yield f"rloo_samples or main_samples: {k} is more than warp_batch ({self.warp_batch})"


class OneFront(Loop):
    """Notebook 6."""

    main_samples: Annotated[int, Field(ge=2, le=64)]
    anchored_lr: LearningRate
    front_steps: Steps
    front_betas: Betas
    pool_reference: Completions
    pool_trained: Completions
    frontier_betas: Annotated[list[Beta], Field(min_length=3, max_length=60)]
    resample: list[Annotated[int, Field(ge=2, le=64)]] = Field(min_length=1, max_length=6)
    matched_kl: MatchedKls

    def clashes(self) -> Iterator[str]:
        """One line for each pair of values that do not go together."""
        yield from super().clashes()
        if self.main_samples > self.warp_batch:
            yield f"main_samples: {self.main_samples} is more than warp_batch ({self.warp_batch})"
        for n in self.resample:
            if n > min(self.pool_reference, self.pool_trained):
                yield f"resample: {n} is more than pool_reference or pool_trained"


NOTEBOOKS: dict[str, type[World]] = {
    "0_primer": Primer,
    "1_reward_model": RewardModel,
    "2_dpo_losses": DpoLosses,
    "3_f_divergences": FDivergences,
    "4_warp": Warp,
    "5_improvements": Improvements,
    "6_one_front": OneFront,
}


def faults(values: dict[str, Any], where: str) -> list[str]:
    """One line for each fault in the parameters of one notebook; empty if all is well."""
    notebook = values.get("notebook")
    if not _known(notebook):
        return [f"{where}: notebook: {notebook!r}; allowed: {', '.join(NOTEBOOKS)}"]
    kind = NOTEBOOKS[notebook]
    try:
        kind.model_validate(values)
    except ValidationError as error:
        schema = kind.model_json_schema()["properties"]
        told = [line for e in error.errors() for line in _tell(e, schema).splitlines()]
        return [f"{where}: {line}" for line in dict.fromkeys(told)]
    return []


def _known(notebook: Any) -> bool:
    return isinstance(notebook, str) and notebook in NOTEBOOKS


def _tell(error: Any, schema: dict[str, Any]) -> str:
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    key, value = error["loc"][0], error["input"]
    if error["type"] in ("extra_forbidden", "invalid_key"):
        name = value if error["type"] == "invalid_key" else key
        shown = name if isinstance(name, str) and name.isprintable() else repr(name)
        return f"{shown}: unknown key; allowed: {', '.join(schema)}"
    if error["type"] == "missing":
        return f"{key}: missing; allowed: {_allowed(schema[key])}"
    place = key + "".join(f"[{i}]" for i in error["loc"][1:] if isinstance(i, int))
    hint = "; YAML reads 1e-5 as text, write 1.0e-5" if isinstance(value, str) and _is_number(value) else ""
    what = f"{value!r} (text)" if isinstance(value, str) else YAML_NAMES.get(repr(value), repr(value))
    return f"{place}: {what}; allowed: {_allowed(schema[key])}{hint}"


YAML_NAMES = {"None": "null", "True": "true", "False": "false"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _allowed(schema: dict[str, Any]) -> str:
    """A field's JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(repr(value) for value in schema["enum"])
    if schema["type"] == "array":
        return f"a list of {schema.get('minItems', 0)} to {schema['maxItems']} items, each {_allowed(schema['items'])}"
    words = {
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "null": "null",
    }[schema["type"]]
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema]
    if "minLength" in schema:
        limits.append("not empty")
    if "multipleOf" in schema:
        limits.append(f"a multiple of {schema['multipleOf']}")
    if "pattern" in schema:
        limits.append(f"matching {schema['pattern']}")
    return " ".join([words, ", ".join(limits)]).strip()


def read_file(path: Path) -> dict[str, Any]:
    """The values of a parameter file on top of the pocket values, as papermill -f would combine them.

    Raises UserFault if it is not flat YAML, names a key twice, or is not for a known notebook.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # PyYAML raises ValueError for 2020-02-31
        reason = " ".join(str(error).split())
        raise UserFault(f"{path}: cannot be read as YAML ({reason}); a file of 'key: value' lines is needed") from None
    if not isinstance(values, dict):
        raise UserFault(f"{path}: holds no 'key: value' lines")
    keys = [key.value for key, _ in node.value]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise UserFault(f"{path}: {', '.join(twice)}: given twice; each key is allowed once")
    notebook = values.get("notebook", path.stem)
    if not _known(notebook):
        raise UserFault(f"{path}: notebook: {notebook!r}; allowed: {', '.join(NOTEBOOKS)}")
    if path.stem in NOTEBOOKS and path.stem != notebook:
        raise UserFault(f"{path}: notebook: {notebook!r}; allowed: {path.stem!r}, after which the file is named")
    return {**profile_values("pocket", notebook), **values}


def profile_values(profile: str, notebook: str) -> dict[str, Any]:
    """The values of a shipped profile.  Raises UserFault if there is no such profile."""
    file = paths.PARAMS / profile / f"{notebook}.yaml"
    if not file.is_file():
        known = sorted(f.parent.name for f in paths.PARAMS.glob(f"*/{notebook}.yaml"))
        raise UserFault(f"profile: {profile!r} has no parameters for {notebook}; allowed: {', '.join(known)}")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def load(path: Path, **override: Any) -> World:
    """The checked parameters of a file, some of them overridden.  Raises UserFault with all faults."""
    values = {**read_file(path), **override}
    found = faults(values, str(path))
    if found:
        raise UserFault("\n".join(found))
    return NOTEBOOKS[values["notebook"]].model_validate(values)


def check(where: Iterable[Path], **override: Any) -> list[str]:
    """One line for each fault in parameter files, or in all *.yaml files of folders."""
    where = list(where)
    lines = [f"{path}: holds no parameter file (*.yaml)" for path in where if path.is_dir() and not files([path])]
    for file in files(where):
        try:
            load(file, **override)
        except UserFault as fault:
            lines += str(fault).splitlines()
    return lines


def files(where: Iterable[Path]) -> list[Path]:
    """Parameter files as they are, folders replaced by the *.yaml and *.yml files in them."""
    return [file for path in where for file in (sorted(path.rglob("*.y*ml")) if path.is_dir() else [path])]


# In a notebook


def use_profile(name: str) -> None:
    """Give the notebook's parameters the values of a shipped profile; for readers who go cell by cell."""
    namespace = _namespace()
    namespace.update(profile_values(name, namespace["notebook"]))


def from_notebook() -> Any:
    """The notebook's parameters, checked; to be called in the cell after the parameters.

    Raises UserFault with one line for each fault: wrong types and ranges, names that papermill
    injected although no parameter has them, and data or models out of reach.
    """
    namespace = _namespace()
    notebook = namespace["notebook"]
    known = set(NOTEBOOKS[notebook].model_fields) if _known(notebook) else {"notebook"}
    keys = known | _injected(namespace.get("In", []))
    values = {key: namespace[key] for key in keys if key in namespace}
    found = faults(values, "parameters")
    if found:
        raise UserFault("\n".join(found))
    p = NOTEBOOKS[namespace["notebook"]].model_validate(values)
    p.check_reach()
    return p


def _namespace() -> dict[str, Any]:
    from IPython import get_ipython

    return get_ipython().user_ns


def _injected(cells: list[str]) -> set[str]:
    """Names that papermill's cell assigns; it begins with a comment that says so."""
    names: set[str] = set()
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            assigned = [
                target for node in ast.parse(cell).body if isinstance(node, ast.Assign) for target in node.targets
            ]
            names |= {target.id for target in assigned if isinstance(target, ast.Name)}
    return names
