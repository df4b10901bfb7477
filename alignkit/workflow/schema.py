"""What each parameter means, its type and what it allows, once; and what each notebook trains after and reads."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignkit import paths
from alignkit.world.known import GENERATORS
from alignkit.world.reach import check_data, check_model

if TYPE_CHECKING:
    from alignkit.world.reviews import Reviews


def _number(value: Any) -> Any:
    """YAML takes 1e-5 for text; here it is the number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


def _texts(value: Any) -> Any:
    """One value or several as texts; YAML takes some for numbers."""
    return [v if isinstance(v, list | dict) else str(v) for v in (value if isinstance(value, list) else [value])]


Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Inside = Annotated[Number, Field(gt=0, lt=1)]
Rate = Annotated[Number, Field(gt=0, le=1)]
LearningRate = Annotated[Number, Field(gt=0, le=0.1)]
Beta = Annotated[Number, Field(gt=0, le=1000)]
T = TypeVar("T")
Few = Annotated[list[T], Field(min_length=1, max_length=6)]
Several = Annotated[list[T], Field(min_length=1, max_length=12)]
Betas = Several[Beta]
UpTo100 = Annotated[Number, Field(gt=0, le=100)]
Reward = Annotated[Number, Field(ge=-100, le=100)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Even = Annotated[int, Field(ge=2, le=10_000_000, multiple_of=2)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Runs = Annotated[int, Field(ge=1, le=16)]
Completions = Annotated[int, Field(ge=1, le=1024)]
Judge = Annotated[int, Field(ge=50, le=10_000_000)]
Prompts = Annotated[int, Field(ge=2, le=10_000_000)]
InPairs = Annotated[Completions, Field(multiple_of=2)]
Samples = Annotated[int, Field(ge=2, le=64)]
Width = Annotated[int, Field(ge=8, le=4096)]
Layers = Annotated[int, Field(ge=1, le=48)]
Heads = Annotated[int, Field(ge=1, le=64)]
Vocabulary = Annotated[int, Field(ge=100, le=100_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=20)]
Place = Annotated[str, Field(min_length=1), AfterValidator(paths.expanded)]
Name = Annotated[str, Field(min_length=1)]
Values = Annotated[list[str], Field(min_length=1), BeforeValidator(_texts)]
Construction = Literal["threshold", "top_bottom", "all_pairs", "bernoulli"]
Tunable = Literal["sigmoid", "hinge", "ipo", "kto_pair", "cdpo", "robust", "reverse_kl", "forward_kl", "js",
                  "REINFORCE, EMA anchor", "WARP", "anchored RLOO", "anchored, sentence credit"]  # fmt: skip
MatchedKls = Annotated[Few[UpTo100], Field(description="KLs (nats) at which methods are compared")]


class World(BaseModel):
    """Data and the SFT policy."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    after: ClassVar[tuple[str, ...]] = ()  # notebooks whose runs of the same seed are trained before this one's
    reads: ClassVar[tuple[str, ...]] = ()  # notebooks whose tables this one reads
    trained_with: ClassVar[str | None] = None  # the notebook among whose runs this one's are, if any
    notebook: str = Field(min_length=1, description="which notebook these values are for")
    profile: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$", description="a folder of params/ and of figures/")
    seeds: Seeds = Field(
        description="one policy and reward model each, unless base_seed is set; intervals are over seeds"
    )
    base_seed: Seed | None = Field(description="seed whose SFT policy and reward model serve all; null: own")
    data: Place = Field(description="pocket, a file or folder of reviews, or a Hub id")
    text_column: Name | None = Field(description="column of own reviews that holds the text; null: a common name")
    label_column: Name | None = Field(description="column that holds the label; null: a common name")
    positive: Values | None = Field(description="labels that are positive, all others negative; null: the common ones")
    train_reviews: Even | None = Field(description="labelled reviews to learn from; null (None): all")
    test_reviews: Even | None = Field(description="labelled reviews for every test figure; null (None): all")
    unsupervised_reviews: Even | None = Field(description="more reviews for the policy; null (None): all")
    policy: Place = Field(description="scratch (built on the spot), a folder, or a Hub id")
    policy_tokenizer: Literal["word", "bpe"] = Field(description="trained on the reviews; for scratch only")
    policy_vocab: Vocabulary = Field(description="tokens in the policy's vocabulary, at most; for scratch only")
    policy_width: Width = Field(description="width of the GPT-2 layers; for scratch only")
    policy_layers: Layers = Field(description="number of GPT-2 layers; for scratch only")
    policy_heads: Heads = Field(description="attention heads of a layer; for scratch only")
    sft_tokens: int = Field(ge=8, le=1024, description="reviews are cut to this many policy tokens")
    sft_epochs: Number = Field(ge=0, le=100, description="passes over the reviews; 0 takes the policy as it is")
    sft_batch: Batch = Field(description="reviews a step")
    sft_lr: LearningRate = Field(description="highest learning rate")
    sft_held_out: Count = Field(description="reviews kept apart for the validation loss")

    def model_seed(self, seed: int) -> int:
        """The seed of the SFT policy and reward model that a seed starts from."""
        return seed if self.base_seed is None else self.base_seed

    def training_seeds(self) -> list[int]:
        """All seeds for which something is trained."""
        return self.seeds

    def take(self, prefix: str, names: str) -> dict[str, Any]:
        """The values of the keys that begin with the prefix, without it."""
        return {name: getattr(self, prefix + name) for name in names.split()}

    def own_reviews(self) -> bool:
        """Whether the reviews lie in files here, or columns of a data set on the Hub are named."""
        named = self.text_column or self.label_column or self.positive
        return self.data not in GENERATORS and bool(named or Path(self.data).exists())

    def reviews(self) -> "Reviews":
        """Which reviews the notebook learns from."""
        from alignkit.workflow import intake  # here, as these import the libraries and faults are told at once
        from alignkit.world.reviews import Reviews

        source = intake.taken_in(self)[0] if self.own_reviews() else self.data
        return Reviews(source, self.train_reviews, self.test_reviews, self.unsupervised_reviews)

    def sft(self) -> dict[str, Any]:
        """The settings of `train_sft`."""
        policy = {"policy": self.policy, **self.take("policy_", "tokenizer vocab width layers heads")}
        return {**policy, **self.take("sft_", "tokens epochs batch lr held_out")}


class Rewarded(World):
    """The reward model, and the prompts of every test."""

    reward_model: Place = Field(description="scratch (built on the spot), a folder, or a Hub id")
    reward_tokenizer: Literal["encoder_word", "wordpiece"] = Field(description="trained on the reviews; for scratch")
    reward_vocab: Vocabulary = Field(description="tokens in the reward model's vocabulary, at most; for scratch only")
    reward_width: Width = Field(description="width of the DistilBERT layers; for scratch only")
    reward_layers: Layers = Field(description="number of DistilBERT layers; for scratch only")
    reward_heads: Heads = Field(description="attention heads of a layer; for scratch only")
    reward_sinusoidal: bool = Field(description="learned positions begin as sinusoids (true); for scratch only")
    reward_tokens: int = Field(ge=8, le=512, description="reviews are cut to this many reward-model tokens")
    reward_dropout: Share = Field(description="dropout while the reward model is trained")
    reward_word_dropout: Share = Field(description="share of a review's tokens left out at random while training")
    reward_epochs: UpTo100 = Field(description="passes over the labelled reviews")
    reward_batch: int = Field(ge=4, le=4096, multiple_of=2, description="reviews a step, half of them positive")
    reward_lr: LearningRate = Field(description="highest learning rate")
    prompts: int = Field(ge=1, le=10_000, description="test prompts, the first 5-20 tokens of test reviews")
    new_tokens: int = Field(ge=1, le=1024, description="longest completion, in policy tokens")

    @model_validator(mode="after")
    def _consistent(self) -> "Rewarded":
        from alignkit.workflow import clashes  # here, as it asks which notebook these values are for

        if lines := list(clashes.faults(self)):
            raise ValueError("\n".join(lines))
        return self

    def check_reach(self, models: bool = True) -> list[str]:
        """What was taken for what in one's own reviews, in words.

        Raises UserFault if the data or a model is out of reach or cannot be used.
        """
        if not self.own_reviews():
            check_data(self.data)
        if models:
            check_model("policy", self.policy)
            check_model("reward_model", self.reward_model)
        from alignkit.workflow import intake

        return intake.checked(self, models)

    def reward_training(self) -> dict[str, Any]:
        """The settings of `train_reward` that all of its runs share."""
        names = "tokenizer vocab width layers heads sinusoidal tokens dropout word_dropout epochs batch lr"
        return {"base": self.reward_model, **self.take("reward_", names)}


class RewardModel(Rewarded):
    """Notebook 1."""

    held_out: Even = Field(description="train reviews kept apart for validation and the sign boundary")
    curve_reviews: Several[Even] = Field(description="sizes of the learning curve, below the full one")
    curve_min_steps: Count = Field(description="steps that each size of the learning curve gets at least")
    completions: Completions = Field(description="sampled completions of each prompt")


class Evaluated(Rewarded):
    """Evaluation of trained policies."""

    judge_reviews: Judge | None = Field(description="test reviews of a judge, gold where no truth is known; null: none")
    main_completions: InPairs = Field(description="evaluated completions of each test prompt, main rows")
    side_completions: Completions = Field(description="evaluated completions of each test prompt, other rows")


class Aligned(Evaluated):
    """Preference pairs."""

    pair_prompts: int = Field(ge=5, le=1_000_000, description="train prompts of the pairs, 5-15 tokens each")
    pair_samples: Samples = Field(description="completions of each of these prompts by the SFT policy")
    winner_reward: Reward = Field(description="threshold pairs: a winner's least reward (nats above an average review)")
    loser_reward: Reward = Field(description="threshold pairs: a loser has less than this")
    dpo_batch: Batch = Field(description="pairs a step")
    main_beta: Beta = Field(description="strength of the KL in the main rows of notebooks 0 and 2")


class OnPairs(Aligned):
    """DPO in notebooks 0 and 2."""

    pair_construction: Construction = Field(description="which completions of a prompt are compared")
    dpo_epochs: UpTo100 = Field(description="passes over the pairs")
    dpo_lr: LearningRate = Field(description="highest learning rate, the same for every loss")

    def construction(self) -> str:
        """Which completions of a prompt the notebook's own pairs compare."""
        return self.pair_construction

    def dpo(self) -> dict[str, Any]:
        """The settings of `train_dpo` that all runs of a notebook share."""
        return {"epochs": self.dpo_epochs, "batch": self.dpo_batch, "lr": self.dpo_lr}


class Primer(OnPairs):
    """Notebook 0."""

    trained_with = "2_dpo_losses"


class DpoLosses(OnPairs):
    """Notebook 2."""

    after = ("1_reward_model",)
    loss_betas: Betas = Field(description="the sweep over β for every loss but IPO; main_beta belongs to it")
    ipo_betas: Betas = Field(description="the sweep over β for IPO; ipo_beta belongs to it")
    ipo_beta: Beta = Field(description="β of IPO on summed log-ratios; the margin that it asks for is 1/(2β) nats")
    ipo_per_token_beta: Beta = Field(description="β of IPO on averages per token")
    label_smoothing: Number = Field(gt=0, lt=0.5, description="share of labels taken for flipped, cDPO and robust DPO")
    max_similarity: Inside = Field(description="near-duplicate filter: pairs more alike than this are dropped")
    lora_rank: int = Field(ge=1, le=256, description="rank of the LoRA adapters in the side row that trains them")
    lora_lr: LearningRate = Field(description="highest learning rate of that row")
    positive_prefix: str = Field(min_length=1, max_length=200, description="what the baseline puts before a prompt")
    biased_words: int = Field(ge=1, le=1000, description="words that the keyword baseline makes more likely")
    word_bias: Number = Field(gt=0, le=20, description="what it adds to their logits, nats")
    best_of: Several[Samples] = Field(description="best-of-n baselines; each n divides main_completions")
    losses_at_kl: MatchedKls
    pair_shares: Few[Inside] = Field(description="shares of the pairs' prompts that DPO is also trained on")
    on_policy_rounds: int = Field(ge=1, le=20, description="on-policy DPO: how often pairs are drawn anew")
    imitation_etas: Few[Rate] = Field(description="points of fine-tuning on positive reviews, from SFT (0) to 1")


class Divergent(Aligned):
    """DPO under divergences, in notebooks 3 and 5."""

    divergence_pairs: Construction = Field(description="which completions of a prompt are compared")
    divergence_epochs: UpTo100 = Field(description="passes over the pairs")
    divergence_lr: LearningRate = Field(description="highest learning rate, the same for every divergence")
    reverse_kl_betas: Betas = Field(description="the sweep over β for reverse KL")
    forward_kl_betas: Betas = Field(description="the sweep over β for forward KL")
    js_betas: Betas = Field(description="the sweep over β for Jensen-Shannon")
    matched_kl: MatchedKls

    def construction(self) -> str:
        return self.divergence_pairs

    def dpo(self) -> dict[str, Any]:
        return {"epochs": self.divergence_epochs, "batch": self.dpo_batch, "lr": self.divergence_lr}


class FDivergences(Divergent):
    """Notebook 3."""

    after = ("2_dpo_losses",)
    alphas: Several[Inside] = Field(description="α of the α-divergence; 0.5 is a main row, the others are side rows")
    alpha_betas: Betas = Field(description="the sweep over β for each α")


class Loop(Evaluated):
    """The inner loop of WARP, in notebooks 4 to 6."""

    warp_iterations: int = Field(ge=1, le=20, description="I, iterations of WARP")
    warp_runs: Runs = Field(description="M, runs of an iteration, which are merged")
    warp_steps: Steps = Field(description="T, steps of a run")
    warp_batch: int = Field(ge=2, le=4096, description="completions a step")
    warp_samples: int = Field(ge=1, le=64, description="k, completions of each prompt; 1: compared with other prompts'")
    warp_baseline: Literal["none", "mean", "rloo"] = Field(description="none is Algorithm 1's")
    warp_beta: Beta = Field(description="strength of the KL to the anchor")
    warp_lr: LearningRate = Field(description="learning rate after the warm-up")
    warp_warmup: int = Field(ge=0, le=10_000, description="steps over which the learning rate rises")
    ema_rate: Rate = Field(description="μ, how fast the anchor follows the policy")
    matched_kl: MatchedKls

    def inner_loop(self) -> dict[str, Any]:
        """The settings of `train_policy_gradient` that all runs share."""
        shared = self.take("warp_", "steps batch baseline beta lr warmup") | self.take("", "reward_tokens ema_rate")
        return {**shared, "k": self.warp_samples, "max_new_tokens": self.new_tokens, "anchor": "ema", "keep": []}


class Fronts(Loop):
    """Fronts of WARP, in notebooks 4 and 5."""

    liti_rate: Rate = Field(description="η, how far the next iteration starts from where this one did")
    etas: Several[Rate] = Field(description="points of a front, up to 1 (the merge); 1 and liti_rate among them")


class Anchored(Loop):
    """The method with a fixed anchor, in notebooks 5 and 6."""

    main_samples: Samples = Field(description="completions of each prompt in the methods that are compared")
    anchored_lr: LearningRate = Field(description="highest learning rate of the runs whose rate falls")


class Towards(Anchored):
    """Distillation of weighted draws, then RLOO, in notebooks 5 and 6."""

    distil_prompts: Prompts = Field(description="train prompts whose completions by SFT are weighed and distilled")
    distil_samples: Samples = Field(description="completions of each of these prompts")
    distil_beta: Beta = Field(description="β of their weights exp(r/β)")
    distil_texts: Count = Field(description="texts of each prompt that are trained on, resampled by their weights")
    distil_lr: LearningRate = Field(description="highest learning rate of that training")
    approach_betas: Betas = Field(description="β of RLOO after distillation, each from the one before")
    approach_steps: Steps = Field(description="steps of RLOO with the first β")
    approach_more: Steps = Field(description="steps with each further β")
    approach_lr: LearningRate = Field(description="highest learning rate of RLOO with the first β")
    approach_more_lr: LearningRate = Field(description="highest learning rate with each further β")


class Warp(Fronts):
    """Notebook 4."""

    after = ("1_reward_model",)
    task_steps: Steps = Field(description="T as the task names it; a row of its own where it is not warp_steps")
    ema_rates: Few[Rate] = Field(description="other values of μ that are compared")
    run_counts: Few[Runs] = Field(description="values of M that are compared, in one iteration (first seed only)")
    step_counts: Few[Steps] = Field(description="values of T that are compared, in one iteration (first seed only)")
    warp_betas: Betas = Field(description="values of β that are compared, in one iteration (first seed only)")

    def inner_loop(self) -> dict[str, Any]:
        return super().inner_loop() | {"keep": sorted(steps for steps in self.step_counts if steps < self.warp_steps)}


class Improvements(Divergent, Fronts, Towards):
    """Notebook 5."""

    after = ("3_f_divergences",)
    chi_alpha: Number = Field(gt=1, le=3, description="α of the χ^α divergence")
    strengths: Betas = Field(description="β of reverse KL; others get the β of the same slope at the reference")
    ipo_strengths: Betas = Field(description="the same for IPO with other divergences; KTO takes strengths")
    equal_steps: Steps = Field(description="steps that every variation of WARP has in all, its runs together")
    rloo_samples: Few[Samples] = Field(description="k of WARP + RLOO (first seed only, but for main_samples)")
    rloo_steps: Few[Steps] = Field(description="values of T of WARP + RLOO that are compared (first seed only)")
    weak_reviews: Few[Even] = Field(description="sizes for weak reward models; three of the last one are averaged")
    weak_steps: Count = Field(description="steps that a weak reward model gets at least; twice that if it is averaged")
    weak_beta: Beta = Field(description="strength of the KL where policies are to go far on a proxy")
    few_beta: Beta = Field(description="β of RLOO in small steps, which draws as many completions as WARP")
    few_steps: Steps = Field(description="its steps")
    few_batch: Count = Field(description="its completions a step")
    again_prompts: Prompts = Field(description="train prompts of the draws that are distilled again")
    again_beta: Beta = Field(description="β of their weights, and of regression")
    confirm_seeds: Seeds = Field(description="further seeds, on which the chosen method is tried again")

    def training_seeds(self) -> list[int]:
        return [*self.seeds, *self.confirm_seeds]


class OneFront(Towards):
    """Notebook 6."""

    after = ("5_improvements",)
    reads = ("2_dpo_losses", "3_f_divergences", "4_warp", "5_improvements")
    front_steps: Steps = Field(description="steps of the anchored method")
    front_betas: Betas = Field(description="β of the anchored method")
    pool_reference: Completions = Field(description="completions of a test prompt by SFT for the optimal frontier")
    pool_trained: Completions = Field(description="completions of a test prompt by each anchored policy, for the same")
    frontier_betas: list[Beta] = Field(min_length=3, max_length=60, description="β at which the optimum is computed")
    tuned: dict[Tunable, Annotated[list[UpTo100], Field(min_length=2, max_length=2)]] = Field(
        description="what make tune chose: factors on the learning rate, and on the epochs (on pairs) or on β (others)"
    )
    tuned_seeds: Seeds = Field(description="those of seeds for which every method is trained at its tuned setting, too")
    resample: Few[Samples] = Field(description="draws of which one is kept, more likely one of high reward")


NOTEBOOKS: dict[str, type[Rewarded]] = {
    "0_primer": Primer,
    "1_reward_model": RewardModel,
    "2_dpo_losses": DpoLosses,
    "3_f_divergences": FDivergences,
    "4_warp": Warp,
    "5_improvements": Improvements,
    "6_one_front": OneFront,
}
