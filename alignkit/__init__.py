"""AlignKit: a reproducible report on preference alignment, and the library behind it.

The top of this package is the library, pure functions on NumPy, SciPy and torch:

    divergences losses            what a preference costs, under which divergence
    sampling decoding kl          draws and exact log-probs of a policy, the KL between two
    policy_gradient               REINFORCE and RLOO
    merging                       EMA, LERP, SLERP, LITI and angles on state dicts
    frontier                      the optimal KL-reward frontier, best of n, resampling, over-optimisation
    metrics                       accuracy, calibration, diversity, intervals over seeds
    finite pocket                 populations that can be solved, and a world of reviews whose true reward is known

Its folders are the report: `world` (where texts and models come from), `training` (one file, one kind of run),
`workflow` (runs, parameters, the batch), `report` (tables, figures, one module a notebook).
"""

from alignkit import numerics

__version__ = "0.1.0"
ADDRESS = "https://github.com/alignkit/alignkit"
"""Where the repository lies."""

numerics.pin()  # before torch is imported
