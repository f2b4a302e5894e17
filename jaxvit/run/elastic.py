"""One model trained for several numbers of learned tokens, `train.elastic`.

Each step draws one of the numbers, and the TokenLearner makes its first tokens only. So the first tokens learn to be
the most useful ones. Nested widths of one model: Yu et al. 2018 (Slimmable networks, arXiv:1812.08928); nested tokens:
Cai et al. 2024 (Matryoshka multimodal models, arXiv:2405.17430).
"""

from __future__ import annotations

import flax.linen as nn

from jaxvit.config.plan_types import Plan
from jaxvit.errors import UsageError


def elastic_models(plan: Plan, model: nn.Module) -> tuple[nn.Module, ...]:
    """The model with each number of learned tokens; () without `train.elastic`.

    Raises:
      UsageError: the model does not learn tokens, or other settings do not fit.
    """
    counts = plan.train.elastic
    if not counts:
        return ()
    said = f"config.train.elastic={counts}"
    if getattr(model, "learner", "none") == "none":
        raise UsageError(f"{said}: {plan.model.name} has no TokenLearner; set config.model.learner and learner_at")
    if counts[-1] != getattr(model, "learner_tokens", 0):
        raise UsageError(f"{said}: the last number must be config.model.learner_tokens={model.learner_tokens}")
    if getattr(model, "fuse", False):
        raise UsageError(f"{said}: a TokenFuser needs all learned tokens; set config.model.fuse=False")
    if plan.distill.features:
        raise UsageError(f"{said} and config.distill.features do not go together; set the latter to 0")
    return tuple(model.clone(learner_keep=0 if count == counts[-1] else count) for count in counts)
