"""Configs: keys with their defaults, config files, overrides, and the Plan that all of it resolves to.

A config file needs `base_config` only. Nothing here imports jax until a model or a data set is looked at.
"""

from jaxvit.config.files import load_config_file
from jaxvit.config.keys import KEYS, base_config

__all__ = ["KEYS", "base_config", "load_config_file"]
