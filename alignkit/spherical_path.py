"""A point on the arc between two policies, both seen as task vectors from a third."""

from pathlib import Path
from typing import Any

from alignkit.merged import save_policy, state_of
from alignkit.merging import slerp


def between(
    out: Path, *, seed: int, data: dict[str, Any], init: Path, first: Path, second: Path, share: float
) -> dict[str, Any]:
    """Write slerp(θ_init, {θ_first, θ_second}) with weights 1 - share and share, per layer, and its tokenizer."""
    merged = slerp(state_of(init), [state_of(first), state_of(second)], [1 - share, share])
    save_policy(out, init, merged)
    return {"status": "ok"}
