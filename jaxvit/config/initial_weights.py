"""The weights that a run starts from, `init.from`: reads them, and fills in what a config takes from them.

The path is made absolute, and `init.hash` gets the hash of the weights, which enters the config hash. A model named
'source' becomes the model of the weights, with their normalisation and a suitable learning rate. A run that has begun
keeps what it began with, even if the weights are gone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import NO_SOURCE, SOURCE, from_plain, model_config, set_value
from jaxvit.config.reader import ConfigReader
from jaxvit.errors import UsageError
from jaxvit.files import read_json
from jaxvit.models.registry import model_defaults
from jaxvit.shown import terminal
from jaxvit.weights.arrays import hash_of
from jaxvit.weights.beside import CONFIG, PREPROCESSOR, Beside, read_beside
from jaxvit.weights.hugging_face import fetch, is_address, weights_path
from jaxvit.weights.image_settings import usual_settings
from jaxvit.weights.model_json import read_model
from jaxvit.weights.origin import Value
from jaxvit.weights.own_folder import find_own
from jaxvit.weights.pretrained import Pretrained, read_pretrained

FINETUNE = "finetune"  # the packaged config for fine-tuning
# (learning rate, layer decay) by the width of the model: wide models were trained on more, and are changed less.
_RATES = ((512, (1e-4, 0.75)), (256, (2e-4, 0.8)), (0, (5e-4, 0.9)))
_FROM_SOURCE = ("augment.mean", "augment.std", "optim.peak_lr", "optim.layer_decay")


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from.

    Attributes:
      where: where they are, as in `init.from`.
      pretrained: the weights and their model.
      beside: what files of JSON beside a published file say; empty for a folder of this project.
      params: {path: array} of its parameters, without those that the file lacks.
      constants: {collection/path: array} of its other collections.
      hash: 16 hex digits over all arrays.
    """

    where: str
    pretrained: Pretrained
    beside: Beside
    params: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    hash: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of its head; () where a file does not tell."""
        if self.pretrained.facts:
            return self.pretrained.facts.class_names
        names = self.beside.class_names
        return names if len(names) == self.attributes.get("num_classes") else ()

    @property
    def attributes(self) -> dict[str, Value]:
        """The attributes of its model that are known."""
        return {**self.pretrained.guess.attributes, **self.beside.attributes}

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of its images: a run's own, those of a file beside it, or what its project uses."""
        found = self.pretrained
        if found.facts:
            return found.facts.preprocessing.mean, found.facts.preprocessing.std
        said = (self.beside.images or usual_settings(found.origin.name, found.guess)).preprocessing(found.input)
        return said.mean, said.std

    @property
    def step_of_sides(self) -> int:
        """A side of the model's images must be a multiple of this many pixels."""
        attributes = self.pretrained.guess.attributes
        patch, depths = attributes.get("patch", 1), attributes.get("depths", (1,))
        if self.pretrained.guess.model.startswith("cct") and attributes.get("tokenizer", "conv") == "conv":
            return 1
        stages = len(depths) if isinstance(depths, tuple) else 1
        return (patch if isinstance(patch, int) else 1) * 2 ** (stages - 1)


def located_weights(where: str) -> str:
    """A value of `init.from` that is valid in any working folder.

    Example:
      >>> located_weights("hf://timm/vit"), located_weights("/runs/../a.npz"), located_weights("")
      ('hf://timm/vit', '/a.npz', '')
    """
    where = weights_path(where)
    return where if not where or is_address(where) else os.path.abspath(where)


def read_weights(where: str, model: str = "") -> InitialWeights:
    """Reads the weights that `init.from` names.

    Args:
      where: a run's folder, an exported folder, a file of another project, or 'hf://owner/name'.
      model: the config's `model.name`. Code outside this package that a run names is imported only if it is the same.

    Raises:
      UsageError: the weights cannot be read, or are of no known model.
    """
    where = located_weights(where)
    if not is_address(where) and not os.path.exists(where):
        raise UsageError(f"config.init.from='{terminal(where)}': there is no such file or folder")
    own = False
    if (Path(where) / "model.json").is_file():
        try:
            name = read_model(Path(where)).name
        except UsageError as error:
            raise UsageError(f"config.init.from: {error}") from None
        own = ":" in name
        if own and name != model:
            raise UsageError(
                f"config.init.from: {terminal(where)}: its model '{terminal(name)}' is code outside jaxvit, which "
                "is not run because a folder names it; if you trust that code, name it yourself: "
                f"--config.model.name={terminal(name)}"
            )
    return _read(where, own, _state_of(where))


def _state_of(where: str) -> tuple[object, ...]:
    """Changes whenever the files do, so that weights are read once."""
    path = Path(where)
    beside = [path.with_name(name) for name in (CONFIG, PREPROCESSOR)]
    inside = [*path.glob("*.safetensors"), *path.glob("*.json"), *path.glob("checkpoints/*")]
    states = []
    for file in [path, *beside] if path.is_file() else inside:
        with contextlib.suppress(OSError):  # a link to nothing, or a checkpoint that its run has just deleted
            found = file.stat()
            states.append((str(file), found.st_size, found.st_mtime_ns, found.st_ino))
    return tuple(sorted(states))


@lru_cache(maxsize=2)
def _read(where: str, own_code: bool, state: tuple[object, ...]) -> InitialWeights:
    del state
    try:
        path = fetch(where) if is_address(where) else Path(where)
        beside = Beside() if find_own(path) else read_beside(path)
        found = read_pretrained(path, own_code=own_code, overrides=beside.attributes)
    except UsageError as error:
        raise UsageError(f"config.init.from: {error}") from None
    lacks = set(found.fresh)
    params = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(found.params).items()}
    params = {path: leaf for path, leaf in params.items() if path not in lacks}
    constants = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(found.constants).items()}
    return InitialWeights(where, found, beside, params, constants, hash_of({**constants, **params}))


def start_from(config: ConfigDict, where: str, given: Collection[str] = ()) -> ConfigDict:
    """Returns a config that starts from weights: with `init.from`, `init.hash`, and their model if it names 'source'.

    With 'source', the model's attributes are those of the weights, for the classes of the data; mean and standard
    deviation are theirs too; and `optim.peak_lr` and `optim.layer_decay` suit its size, if they have their defaults.

    Args:
      config: config of a run; it is not modified.
      where: see `init.from`.
      given: keys that keep their value, also if it is the default.

    Raises:
      UsageError: the weights cannot be read.

    Example:
      >>> config = start_from(load_config_file("finetune"), "runs/digits")  # doctest: +SKIP
      >>> config.model.dropout = 0.1  # doctest: +SKIP
    """
    config = config.copy_and_resolve_references()
    get = ConfigReader(config)
    found = read_weights(where, get("model.name", str))
    set_value(config, "init.from", found.where)
    set_value(config, "init.hash", found.hash)
    if get("model.name", str) != SOURCE:
        return config
    name = found.pretrained.guess.model
    known = model_defaults(name)
    attributes = {key: value for key, value in found.attributes.items() if key in known and key != "num_classes"}
    with config.unlocked():
        config.model = model_config(name, **attributes)
    mean, std = found.normalisation
    width = attributes.get("dim", known.get("dim", 0))
    rate, decay = next(rates for least, rates in _RATES if isinstance(width, int) and width >= least)
    chosen = {"augment.mean": mean, "augment.std": std, "optim.peak_lr": rate, "optim.layer_decay": decay}
    for key, value in chosen.items():
        if key not in given and get(key, object) in (KEYS[key].default, ()):
            set_value(config, key, value)
    return config


def fill_in(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> tuple[ConfigDict, bool]:
    """Fills in what a config takes from its `init.from`.

    Args:
      config: config of a run.
      workdir: folder of the run; None = none.
      given: keys that keep their value; see `start_from`.

    Returns:
      (the config, whether the run in `workdir` has begun from the same place). Such a run keeps the hash, and a model
      'source', that it began with: it resumes from its own checkpoints. A message on stderr says so where the weights
      have changed since.

    Raises:
      UsageError: the weights cannot be read or are not those of `init.hash`; or the model is 'source' without
        `init.from`.
    """
    get = ConfigReader(config)
    where = get("init.from", str)
    if not where:
        if get("model.name", str) == SOURCE:
            raise UsageError(NO_SOURCE)
        if get("init.hash", str):
            raise UsageError("config.init.hash: has no meaning without config.init.from")
        return config, False
    where, wanted = located_weights(where), get("init.hash", str)
    before = _begun(workdir, where) if workdir else None
    if before is not None:
        config = config.copy_and_resolve_references()
        set_value(config, "init.from", where)
        old = ConfigReader(before)("init.hash", str)
        try:
            now = read_weights(where, get("model.name", str)).hash
        except UsageError:  # gone: nothing is needed of them
            now = old
        if now != old:
            print(
                terminal(
                    f"note: {where} has changed since this run began (hash {old} then, {now} now); the run resumes "
                    "from its own checkpoint"
                ),
                file=sys.stderr,
                flush=True,
            )
        set_value(config, "init.hash", wanted or old)
        if ConfigReader(config)("model.name", str) == SOURCE:
            theirs = ConfigReader(before)
            with config.unlocked():
                config.model = before.model
            for key in _FROM_SOURCE:
                if key not in given and get(key, object) in (KEYS[key].default, ()):
                    set_value(config, key, theirs(key, object))
        return config, True
    config = start_from(config, where, given)
    found = ConfigReader(config)("init.hash", str)
    if wanted and wanted != found:
        raise UsageError(f"config.init.hash={wanted}: {where} holds weights of hash {found}; take the weights it names")
    return config, False


def _begun(workdir: Path, where: str) -> ConfigDict | None:
    """The config of the run in a folder, if it started from the same place; else None."""
    file = workdir / "config.json"
    if not file.exists():
        return None
    found = read_json(file, "it is damaged, or this folder has no run: use a new --workdir")
    plain = found.get("config") if isinstance(found, dict) else None
    init = plain.get("init") if isinstance(plain, dict) else None
    if not (isinstance(init, dict) and init.get("from") == where and isinstance(init.get("hash"), str)):
        return None
    return from_plain(cast(dict[str, object], plain))


def chosen_side(config: ConfigDict, workdir: Path | None, shorter: float) -> int:
    """The side of images, in pixels, for fine-tuning: that of the weights, or of the images if they are smaller.

    Args:
      config: a config with `init.from`.
      workdir: folder of the run; if it has begun and the weights are gone, its side. None = none.
      shorter: the median shorter side of the images.
    """
    where = located_weights(ConfigReader(config)("init.from", str))
    try:
        found = read_weights(where, ConfigReader(config)("model.name", str))
    except UsageError:
        before = _begun(workdir, where) if workdir else None
        if before is None:
            raise
        return ConfigReader(before)("data.side", int) or int(min(shorter, 1 << 30))
    side, step = found.pretrained.input[0], found.step_of_sides
    return side if side <= shorter else max(int(shorter) // step * step, step)
