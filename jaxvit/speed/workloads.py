"""The workloads that are benchmarked: input, classes, batch size and optimizer of each document's model.

`jaxvit benchmark` and the comparison with other frameworks in `benchmarks/` share them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """A model and its training settings.

    Attributes:
      model: name of the model.
      batch: batch size of a training step.
      input: shape of an image, (H, W, C).
      classes: number of classes.
      optimizer: 'adam', without weight decay, or 'adamw', which decays all weights by lr · weight_decay · w.
      learning_rate, weight_decay, epsilon: settings of the optimizer; the learning rate is constant.
      label_smoothing: label smoothing of the softmax cross-entropy.
    """

    model: str
    batch: int
    input: tuple[int, int, int]
    classes: int = 10
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    epsilon: float = 1e-7
    label_smoothing: float = 0.0


_FASHION = Workload("", 32, (28, 28, 1), classes=4, optimizer="adam", weight_decay=0.0)
_SMALL = Workload("", 256, (48, 48, 3))
_CIFAR100 = Workload("", 256, (72, 72, 3), classes=100)

DOCUMENTS: dict[str, Workload] = {
    name: replace(workload, model=name)
    for name, workload in {
        "tutorial_fashion_vit": _FASHION,
        "tutorial_fashion_fast_vit": _FASHION,
        "tutorial_mini_vit": _SMALL,
        "tutorial_mini_vit_8l": _SMALL,
        "tutorial_mini_vit_tl4": _SMALL,
        "tutorial_mini_vit_tl8": _SMALL,
        "tutorial_mini_vit_v11_g4t4": _SMALL,
        "tutorial_mini_vit_v11_g8t8": _SMALL,
        "tutorial_mini_vit_v11_g4t8": _SMALL,
        "tutorial_vit_cifar100": _CIFAR100,
        "tutorial_vit_cifar100_gap": _CIFAR100,
        "tutorial_shiftvit": _SMALL,
        "tutorial_cct": Workload("", 128, (32, 32, 3), label_smoothing=0.1),
    }.items()
}


def workload_of(model: str) -> Workload:
    """The workload of a model: its document's, or else the model's input size and the default batch size.

    Args:
      model: registered name, family, or 'package.module:Class'.

    Raises:
      ValueError: unknown model.
    """
    if model in DOCUMENTS:
        return DOCUMENTS[model]
    from jaxvit.config.key_table import KEYS
    from jaxvit.models.registry import input_shape, model_defaults

    classes = model_defaults(model).get("num_classes", 0) or 10
    return Workload(model, KEYS["train.batch_size"].default, input_shape(model), classes=classes)
