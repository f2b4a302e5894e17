"""A distilled DeiT has two heads, on the class token and on the distillation token; its answer is their mean.

Touvron et al. 2020 (arXiv:2012.12877, section 4). The mean of two dense layers is one dense layer on both tokens side
by side, which a ViT with `pool='cls_register'` has; the distillation token is its register.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxvit.weights.mapping import Arrays

AVERAGE = "heads='average' (--heads=average)"

# (head on the class token, head on the distillation token, the head that stands for both), by project.
_HEADS = {
    "timm": ("head", "head_dist", "head"),
    "transformers": ("cls_classifier", "distillation_classifier", "classifier"),
}


def average_heads(arrays: Mapping[str, np.ndarray], origin: str) -> Arrays:
    """The arrays of a distilled DeiT with one head on both tokens.

    Args:
      arrays: {name: array} as in its file.
      origin: 'timm' or 'transformers'.

    Raises:
      ValueError: they are not those of a distilled DeiT. One line.
    """
    names = _HEADS.get(origin)
    if not names or not all(f"{name}.{leaf}" in arrays for name in names[:2] for leaf in ("weight", "bias")):
        raise ValueError("it has no two heads to average")
    first, second, both = names
    found = {name: array for name, array in arrays.items() if not name.startswith((f"{first}.", f"{second}."))}
    weights, biases = (
        [np.asarray(arrays[f"{n}.{leaf}"], np.float32) for n in names[:2]] for leaf in ("weight", "bias")
    )
    found[f"{both}.weight"] = np.concatenate(weights, 1) / 2
    found[f"{both}.bias"] = np.asarray((biases[0] + biases[1]) / 2, np.float32)
    if "dist_token" in found:
        found["reg_token"] = found.pop("dist_token")
    return found
