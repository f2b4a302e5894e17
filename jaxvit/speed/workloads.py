"""How the documents' models are trained there: input, classes, batch, optimizer. What speed is measured on.

`jaxvit benchmark` and the comparison with other frameworks in `benchmarks/` both take it from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """A model and how it is trained.

    Attributes:
      model: a model's name.
      batch: images of a training step.
      input: (H, W, C) of an image.
      classes: K.
      optimizer: 'adam' or 'adamw'. The first decays nothing, the second all weights, by lr · weight_decay · w.
      learning_rate, weight_decay, epsilon: of the optimizer; the rate is constant.
      label_smoothing: of the softmax cross-entropy.
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
    """A model's workload: its document's, or for a model without one its own input and the config's default batch.

    Args:
      model: a registered name, a family, or 'package.module:Class'.

    Raises:
      ValueError: there is no such model.
    """
    if model in DOCUMENTS:
        return DOCUMENTS[model]
    from jaxvit.config.keys import KEYS
    from jaxvit.models.registry import input_shape, model_defaults

    classes = model_defaults(model).get("num_classes", 0) or 10
    return Workload(model, KEYS["train.batch_size"].default, input_shape(model), classes=classes)
