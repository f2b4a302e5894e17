"""CIFAR-10: a small ViT with 64 tokens, on which ways to compute with fewer tokens are measured (docs/tokens.md).

    jaxvit train --config=fewer_tokens --workdir=runs/vit
    jaxvit evaluate --workdir=runs/vit --reduce=merge:r=8

Variants:
  vit (default): 8×8 patches of 4×4 pixels, six blocks of 96 channels, mean of the tokens; 10 epochs. About 33 million
    multiply-adds per image.
  learned16, learned4: the same with a TokenLearner of 16 or 4 tokens after the second block.
  elastic: one model for both numbers, with as many epochs as one of them.
  elastic64: one model for 4, 16 and 64 tokens after the first block, for a cascade.
  small: three blocks; with --config.distill.from=RUN it learns from the run of another variant.
  cct: a CCT with the same images and epochs, a teacher.

The sizes and the recipe are ours: small enough for two CPU cores, with light augmentation, since 10 epochs do not
overfit.
"""

from functools import partial

from ml_collections import ConfigDict

from jaxvit.config.keys import base_config
from jaxvit.data.preparable import PREPARABLE

CIFAR10 = PREPARABLE["cifar10"]
_VIT = {"patch": 4, "dim": 96, "depth": 6, "heads": 3, "mlp_ratio": 2.0}


def get_config(variant: str = "vit") -> ConfigDict:
    return EXPERIMENTS[variant]()


def vit() -> ConfigDict:
    config = base_config("vit", **_VIT)
    _train(config)
    return config


def learned(tokens: int) -> ConfigDict:
    config = base_config("token_learner_vit", **_VIT, learner_at=(2,), learner_tokens=tokens)
    _train(config)
    return config


def elastic() -> ConfigDict:
    config = learned(16)
    config.train.elastic = (4, 16)
    return config


def elastic64() -> ConfigDict:
    config = base_config("token_learner_vit", **_VIT, learner_at=(1,), learner_tokens=64)
    _train(config)
    config.train.elastic = (4, 16, 64)
    return config


def small() -> ConfigDict:
    config = base_config("vit", **{**_VIT, "depth": 3})
    _train(config)
    return config


def cct() -> ConfigDict:
    config = base_config("cct", dim=96, depth=4, heads=3, mlp_ratio=2.0, conv_layers=2)
    _train(config)
    return config


def _train(config: ConfigDict) -> None:
    config.data.name = "cifar10"
    config.data.train, config.data.validation = "train[:45000]", "train[45000:]"
    config.augment.mean, config.augment.std = CIFAR10.mean, CIFAR10.std
    config.augment.pad_crop, config.augment.flip = 4, True
    config.optim.peak_lr = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    config.optim.warmup = "1 epochs"
    config.train.duration = "10 epochs"
    config.train.batch_size = 128
    config.train.steps_per_call = 20


EXPERIMENTS = {
    "vit": vit,
    "learned16": partial(learned, 16),
    "learned4": partial(learned, 4),
    "elastic": elastic,
    "elastic64": elastic64,
    "small": small,
    "cct": cct,
}
VARIANTS = tuple(EXPERIMENTS)
