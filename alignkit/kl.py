"""KL(π ‖ π_ref) of whole sequences, in nats, from sequences sampled from π."""

import torch


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p of each token, (batch, length), in nats, differentiable.

    Logits are (batch, length, vocabulary), at the positions that predict `tokens`, (batch, length).
    """
    return picked(torch.log_softmax(logits.float(), dim=-1), tokens)


def picked(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The entries of (batch, length, vocabulary) that belong to tokens, (batch, length)."""
    return log_probs.gather(2, tokens[..., None]).squeeze(2)


def token_kl(policy_logits: torch.Tensor, ref_logits: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Estimates of the KL of each step, (batch, length) each; as a loss, only exact and k2 have its gradient.

    Logits are (batch, length, vocabulary), at the positions that predict `tokens`, (batch, length), all of them finite.
    With ℓ = log π - log π_ref of a token (Schulman 2020, "Approximating KL divergence"): k1 = ℓ (unbiased, may be
    negative), k2 = ℓ²/2 (biased), k3 = exp(-ℓ) - 1 + ℓ (unbiased, never negative).  exact sums over the whole
    vocabulary and leaves only the sampled prefixes to chance (Rao-Blackwell; unbiased).
    """
    return step_kl(*(torch.log_softmax(logits.float(), dim=-1) for logits in (policy_logits, ref_logits)), tokens)


def step_kl(log_pi: torch.Tensor, log_ref: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """`token_kl` from log-probs of the whole vocabulary in place of logits."""
    ratio = picked(log_pi - log_ref, tokens)
    return {
        "k1": ratio,
        "k2": ratio**2 / 2,
        "k3": torch.expm1(-ratio) + ratio,
        "exact": (log_pi.exp() * (log_pi - log_ref)).sum(dim=-1),
    }


def kl_estimates(
    policy_logits: torch.Tensor, ref_logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Estimates of the sequence KL, each (batch,): sums of `token_kl` over the tokens that the mask counts.

    Tokens and mask are (batch, length); logits have to be finite where the mask is 0, too.
    """
    return {name: (values * mask).sum(dim=1) for name, values in token_kl(policy_logits, ref_logits, tokens).items()}
