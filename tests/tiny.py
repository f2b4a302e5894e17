"""The smallest real experiment, shared by tests: a ViT of a few thousand parameters on the first digits."""

from __future__ import annotations

from ml_collections import ConfigDict

from jaxvit.config import base_config


def tiny_config(**changes) -> ConfigDict:
    """A config of 3 epochs of 4 steps; `changes` are 'section__key' = value."""
    config = base_config("vit", patch=4, dim=8, depth=1, heads=2, dropout=0.1)
    config.data.train = "train[:60]"
    config.data.validation = "train[60:90]"
    config.data.test = "test[:25]"
    config.augment.pad_crop = 1
    config.train.batch_size = 16
    config.train.duration = "3 epochs"
    config.log.every = "2 steps"
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            config[section][leaf] = value
        else:
            config[section] = value
    return config
