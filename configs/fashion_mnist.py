"""Fashion-MNIST: the ViT of the Scale Events article, and its faster version with a TokenLearner.

    jaxvit train --config=fashion_mnist:fast --workdir=runs/fashion-fast
    jaxvit train --config=fashion_mnist:fast_best --workdir=runs/fashion-best

Variants:
  vit, fast: the article's recipe: four classes, pixels in 0..255, Adam at a constant rate, 6 epochs, the last third of
    the training images for validation.
  vit_10, fast_10: the same with all ten classes.
  vit_best, fast_best: the same models and epochs, with normalized pixels, flips, images enlarged to 30 (36 patches of
    5x5 cover the whole image; the article's 25 patches drop three rows and columns), AdamW with warm-up and cosine
    schedule, EMA weights, and all training images.
  vit_30, fast_30: like _best, for 30 epochs with random crops, a longer EMA, and 2,000 validation images.

Source: the article reports test accuracies of .8315 (vit) and .92475 (fast), with the weights of the last epoch.
"""

from functools import partial

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.data.preparable import PREPARABLE

VIT, FAST = "tutorial_fashion_vit", "tutorial_fashion_fast_vit"
FASHION_MNIST = PREPARABLE["fashion_mnist"]


def get_config(variant: str = "fast") -> ConfigDict:
    return EXPERIMENTS[variant]()


def four_classes(model: str) -> ConfigDict:
    """The article's recipe."""
    config = _train_as_the_article(model, images=16079)
    config.data.classes = (0, 1, 2, 3)
    return config


def ten_classes(model: str) -> ConfigDict:
    return _train_as_the_article(model, images=40199)


def best(model: str) -> ConfigDict:
    config = _train_better(model)
    config.data.train, config.data.validation = (
        "train",
        "",
    )  # the final EMA weights are tested, so validation is not needed
    config.optim.ema_decay = 0.998
    config.train.duration = "6 epochs"
    return config


def thirty_epochs(model: str) -> ConfigDict:
    config = _train_better(model)
    config.data.train, config.data.validation = "train[:-2000]", "train[-2000:]"
    config.augment.train, config.augment.scale = "random_resized_crop", (0.8, 1.0)
    config.augment.ratio = (0.85, 1.18)
    config.optim.ema_decay = 0.999
    config.train.duration = "30 epochs"
    return config


def _train_as_the_article(model: str, images: int) -> ConfigDict:
    """`images`: size of Keras' training split, floor(0.67 * 24,000) or floor(0.67 * 60,000)."""
    config = base_config(model)
    config.data.name = "fashion_mnist"
    config.data.train, config.data.validation = f"train[:{images}]", f"train[{images}:]"
    config.augment.std = (1 / 255,)  # keeps pixels in 0..255
    config.optim.name, config.optim.eps = "adam", 1e-7
    config.optim.schedule, config.optim.warmup = "constant", "0 steps"
    config.optim.weight_decay = 0.0
    config.train.implementations = "plain"  # the article's speed ratio is for attention with projections
    config.train.duration = "6 epochs"
    config.train.batch_size = 32
    return config


def _train_better(model: str) -> ConfigDict:
    config = base_config(model)
    config.data.name = "fashion_mnist"
    config.data.classes = (0, 1, 2, 3)
    config.augment.mean, config.augment.std = FASHION_MNIST.mean, FASHION_MNIST.std
    config.augment.flip = True
    config.augment.size = 30
    config.optim.peak_lr = 5e-4
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    config.train.batch_size = 32
    return config


EXPERIMENTS = {
    "vit": partial(four_classes, VIT),
    "vit_10": partial(ten_classes, VIT),
    "vit_best": partial(best, VIT),
    "vit_30": partial(thirty_epochs, VIT),
    "fast": partial(four_classes, FAST),
    "fast_10": partial(ten_classes, FAST),
    "fast_best": partial(best, FAST),
    "fast_30": partial(thirty_epochs, FAST),
}
VARIANTS = tuple(EXPERIMENTS)
