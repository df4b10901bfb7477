"""Which values of parameters do not go together, in words."""

from collections.abc import Iterator

from alignkit.workflow import schema
from alignkit.world.known import truth_of

LEAST_BPE = 259


def faults(p: schema.Rewarded) -> Iterator[str]:
    """One line for each pair of values that do not go together."""
    for model, width, heads in (("policy", p.policy_width, p.policy_heads), ("reward", p.reward_width, p.reward_heads)):
        if width % heads:
            yield f"{model}_width: {width} is not a multiple of {model}_heads ({heads})"
    if p.policy == "scratch" and p.policy_tokenizer == "bpe" and p.policy_vocab < LEAST_BPE:
        yield f"policy_vocab: {p.policy_vocab}; with bpe {LEAST_BPE} or more (256 bytes, 3 special tokens)"
    for name, values in p:
        # Methods are named by six digits of their numbers.
        named = [f"{x:g}" if isinstance(x, float) else x for x in values] if isinstance(values, list) else []
        if len(set(named)) < len(named):
            yield f"{name}: {values} has a value twice"
    room = max(128, p.sft_tokens) - 20
    if p.policy == "scratch" and p.new_tokens > room:
        yield f"new_tokens: {p.new_tokens}; beside a prompt of 20 tokens there is room for {room}"
    if isinstance(p, schema.RewardModel) and p.train_reviews and p.held_out + max(p.curve_reviews) > p.train_reviews:
        yield f"held_out: {p.held_out} and the largest of curve_reviews are more than train_reviews ({p.train_reviews})"
    if isinstance(p, schema.Evaluated) and p.judge_reviews is not None and truth_of(p.data):
        yield f"judge_reviews: {p.judge_reviews}; the truth of {p.data} is known; allowed: null"
    if isinstance(p, schema.Loop) and p.warp_batch % p.warp_samples:
        yield f"warp_batch: {p.warp_batch} is not a multiple of warp_samples ({p.warp_samples})"
    if isinstance(p, schema.Anchored) and p.main_samples > p.warp_batch:
        yield f"main_samples: {p.main_samples} is more than warp_batch ({p.warp_batch})"
    if isinstance(p, schema.Fronts) and not {p.liti_rate, 1.0} <= {*p.etas}:
        yield f"etas: {p.etas} lacks 1.0 or liti_rate ({p.liti_rate})"
    if isinstance(p, schema.Aligned) and p.winner_reward < p.loser_reward:
        yield f"winner_reward: {p.winner_reward} is below loser_reward ({p.loser_reward})"
    if isinstance(p, schema.DpoLosses):
        for n in (n for n in p.best_of if p.main_completions % n):
            yield f"best_of: {n} does not divide main_completions ({p.main_completions})"
    if isinstance(p, schema.Improvements):
        if used := sorted({*p.confirm_seeds} & {*p.seeds}):
            yield f"confirm_seeds: {used} are among seeds already; allowed: others"
        if p.equal_steps % (p.warp_iterations * p.warp_runs):
            yield f"equal_steps: {p.equal_steps} is not a multiple of warp_iterations x warp_runs"
        if p.train_reviews is not None and max(p.weak_reviews) > p.train_reviews:
            yield f"weak_reviews: {max(p.weak_reviews)} is more than train_reviews ({p.train_reviews})"
        if (k := max(p.rloo_samples)) > p.warp_batch:
            yield f"rloo_samples: {k} is more than warp_batch ({p.warp_batch})"
    if isinstance(p, schema.OneFront) and (n := max(p.resample)) > min(p.pool_reference, p.pool_trained):
        yield f"resample: {n} is more than pool_reference or pool_trained"
