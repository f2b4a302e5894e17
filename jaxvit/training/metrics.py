"""Metrics as sums and counts: they merge by addition over steps, devices and hosts, and are divided once at the end."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.labels import one_hot

# Metrics that weigh all classes alike, however many images each has.
BY_CLASS = ("macro_f1", "balanced_accuracy")
# Metrics that can decide which weights are best, and what is better.
MONITORS = {"top1": max, "top5": max, "precision": max, "recall": max, "loss": min, **dict.fromkeys(BY_CLASS, max)}

COUNTS = ("labelled", "predicted", "right")  # sums with one number for each class

# float32 scalars, or one number for each class; counts of images stay exact up to 2**24 a batch
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
    """Sums over the images whose mask is 1.

    Args:
      logits_BK: float32 scores.
      labels_B: int labels.
      loss_B: loss of each image.
      mask_B: 1.0 for an image that counts, 0.0 for padding.
      top: k of top-k accuracy, clamped to the number of classes.
      by_class: count for each class too.

    Returns:
      loss, top1, top5: summed over images; count: images; confident: class probabilities above 1/2 (one an image at
      most), and confident_right: those that are the label's. The last two make Keras' micro-averaged precision and
      recall at threshold 0.5. With `by_class`, [K] each: labelled, predicted and right: images of a class, images that
      are taken for it, and images of which both hold.
    """
    label_logit_B = jnp.take_along_axis(logits_BK, labels_B[:, None], axis=-1)[:, 0]
    # Rank by counting, ties to the lower class as in argmax; a logit that is not a number is never right.
    lower_BK = jnp.arange(logits_BK.shape[-1])[None, :] < labels_B[:, None]
    tied_BK = (logits_BK == label_logit_B[:, None]) & lower_BK
    ahead_B = jnp.sum((logits_BK > label_logit_B[:, None]) | tied_BK, axis=-1)
    ahead_B = jnp.where(jnp.isnan(label_logit_B), logits_BK.shape[-1], ahead_B)
    label_probability_B = jnp.exp(label_logit_B - jax.nn.logsumexp(logits_BK, axis=-1))
    top_probability_B = jnp.exp(jnp.max(logits_BK, axis=-1) - jax.nn.logsumexp(logits_BK, axis=-1))

    def total(values_B: jax.Array) -> jax.Array:
        # where, not a product: a padded image's NaN must not leak.
        return jnp.sum(jnp.where(mask_B > 0, values_B.astype(jnp.float32), 0.0))

    counts = {}
    if by_class:
        classes = logits_BK.shape[-1]
        counted_B1 = (mask_B > 0).astype(jnp.float32)[:, None]
        label_BK = one_hot(labels_B, classes) * counted_B1
        # A logit that is not a number is the largest for argmax, and never right.
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
    """Sums gathered on the host in float64, in the order of the steps, so that regrouping changes nothing."""

    def __init__(self, values: Mapping[str, float] | None = None):
        self.values: dict[str, float] = dict(values or {})
        self._by_class: dict[str, np.ndarray] = {}

    def add(self, sums: Mapping[str, float | np.ndarray]) -> None:
        for name, value in sums.items():
            if name in COUNTS:
                self._by_class[name] = self._by_class.get(name, 0.0) + np.asarray(value, np.float64)
            else:
                self.values[name] = self.values.get(name, 0.0) + float(value)

    def means(self) -> dict[str, float]:
        """loss, top1, top5, precision, recall (and means over steps of whatever is summed over steps), and count.

        Where images were counted by class, also macro_f1 and balanced_accuracy: the means of F1 and of recall over the
        classes that have images, as `jaxvit evaluate` reports them (its `f1.macro` and `recall.macro`).
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
