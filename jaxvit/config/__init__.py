"""Configs: the table of keys, config files, overrides, and the Plan that `resolve` derives from a config.

A config file needs `base_config` only. Importing this package does not import JAX.
"""

from jaxvit.config.files import load_config_file
from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import base_config

__all__ = ["KEYS", "base_config", "load_config_file"]
