"""What earlier reports computed in place of f'(π_w/ρ_w) and f'(π_l/ρ_l), kept here to measure what it does.

Each function takes a divergence and the log-probs of chosen and rejected under policy and reference, (batch,) each,
and returns the two scores.  Notebooks 2 and 3 train with them; nothing else should.
"""

import torch

from alignkit.divergences import Divergence

Pair = tuple[torch.Tensor, torch.Tensor]


def policy_to_reference(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """The definition: f'(π/ρ) of each response (Wang et al. 2024, equation 7), zero at π = ρ."""
    return div.centred_score(policy[0] - reference[0]), div.centred_score(policy[1] - reference[1])


def chosen_to_rejected(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """f'(π_w/π_l) against f'(ρ_w/ρ_l): the same for reverse KL, something else for every other divergence."""
    return div.centred_score(policy[0] - policy[1]), div.centred_score(reference[0] - reference[1])


def one_object(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """Policy and reference are one object: every ratio is 1, whatever was trained; only the gradient is left."""
    return policy_to_reference(div, policy, (policy[0].detach(), policy[1].detach()))


def detached(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """Scores rebuilt as new tensors, which cuts them from the policy: the gradient is zero."""
    chosen, rejected = policy_to_reference(div, policy, reference)
    return chosen.detach() + 0 * policy[0], rejected.detach() + 0 * policy[1]


SCORES = {function.__name__: function for function in (policy_to_reference, chosen_to_rejected, one_object, detached)}
