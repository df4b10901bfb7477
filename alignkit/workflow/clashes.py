"""Which values of parameters do not go together, in words."""

from collections.abc import Iterator

from alignkit.workflow import schema
from alignkit.world.known import truth_of

LEAST_BPE = 259
MULTIPLES = (("policy_width", "policy_heads"), ("reward_width", "reward_heads"), ("warp_batch", "warp_samples"))
"""Keys of which the first has to be a multiple of the second."""
AT_MOST = (("main_samples", "warp_batch"), ("main_samples", "few_batch"), ("rloo_samples", "warp_batch"),
           ("weak_reviews", "train_reviews"), ("loser_reward", "winner_reward"))  # fmt: skip
"""Keys of which the first, or the largest of its values, may not be more than the second."""


def faults(p: schema.Rewarded) -> Iterator[str]:
    """One line for each pair of values that do not go together."""
    values = dict(p)
    for key, of in MULTIPLES:
        if values.get(key, 0) % values.get(of, 1):
            yield f"{key}: {values[key]} is not a multiple of {of} ({values[of]})"
    for key, of in AT_MOST:
        given, most = values.get(key, 0), values.get(of)
        if most is not None and (largest := max(given) if isinstance(given, list) else given) > most:
            yield f"{key}: {largest} is more than {of} ({most})"
    if p.policy == "scratch" and p.policy_tokenizer == "bpe" and p.policy_vocab < LEAST_BPE:
        yield f"policy_vocab: {p.policy_vocab}; with bpe {LEAST_BPE} or more (256 bytes, 3 special tokens)"
    for name, several in p:
        # Methods are named by six digits of their numbers.
        named = [f"{x:g}" if isinstance(x, float) else x for x in several] if isinstance(several, list) else []
        if len(set(named)) < len(named):
            yield f"{name}: {several} has a value twice"
    room = max(128, p.sft_tokens) - 20
    if p.policy == "scratch" and p.new_tokens > room:
        yield f"new_tokens: {p.new_tokens}; beside a prompt of 20 tokens there is room for {room}"
    if isinstance(p, schema.RewardModel) and p.train_reviews and p.held_out + max(p.curve_reviews) > p.train_reviews:
        yield f"held_out: {p.held_out} and the largest of curve_reviews are more than train_reviews ({p.train_reviews})"
    if isinstance(p, schema.Evaluated) and p.judge_reviews is not None and truth_of(p.data):
        yield f"judge_reviews: {p.judge_reviews}; the truth of {p.data} is known; allowed: null"
    if isinstance(p, schema.Fronts) and not {p.liti_rate, 1.0} <= {*p.etas}:
        yield f"etas: {p.etas} lacks 1.0 or liti_rate ({p.liti_rate})"
    if isinstance(p, schema.DpoLosses):
        for n in (n for n in p.best_of if p.main_completions % n):
            yield f"best_of: {n} does not divide main_completions ({p.main_completions})"
        if p.pair_prompts < 5 * p.on_policy_rounds:
            yield f"on_policy_rounds: {p.on_policy_rounds}; pair_prompts ({p.pair_prompts}) are fewer than 5 for each"
    if isinstance(p, schema.Improvements):
        if used := sorted({*p.confirm_seeds} & {*p.seeds}):
            yield f"confirm_seeds: {used} are among seeds already; allowed: others"
        if p.equal_steps % (p.warp_iterations * p.warp_runs):
            yield f"equal_steps: {p.equal_steps} is not a multiple of warp_iterations x warp_runs"
    if isinstance(p, schema.OneFront) and 2 * (n := max(p.resample)) > min(p.pool_reference, p.pool_trained):
        yield f"resample: {n} is more than half of pool_reference or of pool_trained"
