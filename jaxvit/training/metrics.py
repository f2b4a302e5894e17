"""Metrics as sums and counts. They merge by addition over steps, devices and hosts; one division at the end."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.labels import one_hot

# Metrics in which all classes have the same weight, whatever their number of images.
BY_CLASS = ("macro_f1", "balanced_accuracy")
# Metrics that can choose the best weights: `max` or `min` is better.
MONITORS = {"top1": max, "top5": max, "precision": max, "recall": max, "loss": min, **dict.fromkeys(BY_CLASS, max)}

COUNTS = ("labelled", "predicted", "right")  # sums with one number per class

# float32 scalars, or one number per class; counts are exact up to 2**24 images per batch
Sums = dict[str, jax.Array]


def classification_sums(
    logits_BK: jax.Array,
    labels_B: jax.Array,
    loss_B: jax.Array,
    mask_B: jax.Array,
    top: int = 5,
    *,
    by_class: bool = False,
) -> Sums:
    """Sums metrics over the images whose mask is 1.

    Args:
      logits_BK: float32 logits.
      labels_B: int labels.
      loss_B: loss of each image.
      mask_B: 1.0 for an image, 0.0 for padding.
      top: k of top-k accuracy, at most the number of classes.
      by_class: also count per class.

    Returns:
      loss, top1, top5: sums over images. count: number of images. confident: images with a class probability above 1/2;
      confident_right: those where this class is the label. The last two give Keras' micro-averaged precision and recall
      at threshold 0.5. With `by_class`, also [K] each: labelled, images of the class; predicted, images predicted as
      the class; right, images where both hold.
    """
    label_logit_B = jnp.take_along_axis(logits_BK, labels_B[:, None], axis=-1)[:, 0]
    # The rank counts larger logits; ties go to the lower class, as in argmax. A NaN logit is never right.
    lower_BK = jnp.arange(logits_BK.shape[-1])[None, :] < labels_B[:, None]
    tied_BK = (logits_BK == label_logit_B[:, None]) & lower_BK
    ahead_B = jnp.sum((logits_BK > label_logit_B[:, None]) | tied_BK, axis=-1)
    ahead_B = jnp.where(jnp.isnan(label_logit_B), logits_BK.shape[-1], ahead_B)
    label_probability_B = jnp.exp(label_logit_B - jax.nn.logsumexp(logits_BK, axis=-1))
    top_probability_B = jnp.exp(jnp.max(logits_BK, axis=-1) - jax.nn.logsumexp(logits_BK, axis=-1))

    def total(values_B: jax.Array) -> jax.Array:
        # `where`, not a product: NaN * 0 is NaN.
        return jnp.sum(jnp.where(mask_B > 0, values_B.astype(jnp.float32), 0.0))

    counts = {}
    if by_class:
        classes = logits_BK.shape[-1]
        counted_B1 = (mask_B > 0).astype(jnp.float32)[:, None]
        label_BK = one_hot(labels_B, classes) * counted_B1
        # argmax picks a NaN logit; it is never right.
        guess_BK = one_hot(jnp.argmax(logits_BK, axis=-1), classes) * counted_B1
        counts = {
            "labelled": label_BK.sum(axis=0),
            "predicted": guess_BK.sum(axis=0),
            "right": (label_BK * guess_BK * (ahead_B < 1).astype(jnp.float32)[:, None]).sum(axis=0),
        }
    return counts | {
        "loss": total(loss_B),
        "top1": total(ahead_B < 1),
        "top5": total(ahead_B < min(top, logits_BK.shape[-1])),
        "confident": total(top_probability_B > 0.5),
        "confident_right": total(label_probability_B > 0.5),
        "count": jnp.sum(mask_B),
    }


class Totals:
    """Accumulates sums on the host in float64, in the order of the steps, so that grouping does not change them."""

    def __init__(self, values: Mapping[str, float] | None = None):
        self.values: dict[str, float] = dict(values or {})
        self._by_class: dict[str, np.ndarray] = {}

    def add(self, sums: Mapping[str, float | np.ndarray]) -> None:
        """Adds the sums of one step or batch."""
        for name, value in sums.items():
            if name in COUNTS:
                self._by_class[name] = self._by_class.get(name, 0.0) + np.asarray(value, np.float64)
            else:
                self.values[name] = self.values.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        """Returns loss, top1, top5, precision, recall and count; norms as means over steps; {} without images.

        With counts per class, also macro_f1 and balanced_accuracy: the means of F1 and recall over the classes that
        have images. `jaxvit evaluate` reports them as `f1.macro` and `recall.macro`.
        """
        v = self.values
        count = v.get("count", 0.0)
        if not count:
            return {}
        means = {name: v[name] / count for name in ("loss", "top1", "top5")}
        means["precision"] = v["confident_right"] / v["confident"] if v["confident"] else 0.0
        means["recall"] = v["confident_right"] / count
        for name in ("gradient_norm", "parameter_norm", "update_norm"):
            if name in v:
                means[name] = v[name] / v["steps"]
        if self._by_class:
            labelled, predicted, right = (self._by_class[name] for name in COUNTS)
            there = labelled > 0
            f1 = 2 * right[there] / (labelled[there] + predicted[there])
            means |= {"macro_f1": float(f1.mean()), "balanced_accuracy": float((right[there] / labelled[there]).mean())}
        means["count"] = int(count)
        return means
