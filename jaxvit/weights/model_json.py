"""Reads and checks a run's model.json, which describes the model so that it can be used without the training data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from jaxvit import own_code as gate
from jaxvit.data.geometry import INTERPOLATIONS
from jaxvit.data.settings import EVALUATION_SIZES, Augmentation, Preprocessing
from jaxvit.errors import UsageError, first_line, nearest
from jaxvit.files import read_json, require
from jaxvit.models.registry import FAMILIES, MODELS, create_model

REMEDY = "it is damaged, or was edited: put a copy of it back, or train the model again"


@dataclass(frozen=True)
class ModelFacts:
    """The content of model.json.

    Attributes:
      file: path of model.json.
      name: name of the model.
      attributes: pairs (attribute, value) of the model.
      class_names: K names.
      image_shape: [H, W, C] of the training images.
      preprocessing: settings that turn such an image into the model's input in evaluation.
      origin: a name of `jaxvit.weights.pretrained.ORIGINS` for published weights; '' for a model trained here.
    """

    file: Path
    name: str
    attributes: tuple[tuple[str, Any], ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    preprocessing: Preprocessing
    origin: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[H, W, C] of the model's input."""
        return self.preprocessing.output_shape(self.image_shape)

    def create(self, *, own_code: bool) -> nn.Module:
        """Builds the model.

        Args:
          own_code: allows importing a model outside this package. The folder may come from a stranger, so code that
            its files name runs only if the user allows it.

        Raises:
          UsageError: the import is not allowed, or the model cannot be built.
        """
        known = {**MODELS, **FAMILIES}
        if self.name not in known and ":" not in self.name:
            raise UsageError(f"{self.file}: there is no model '{self.name}'{nearest(self.name, known)}; {REMEDY}")
        try:
            with gate.named_by(self.file.parent, allowed=own_code):
                return create_model(self.name, **dict(self.attributes))
        except UsageError:
            raise
        except Exception as error:  # wrong attributes or the user's own class may raise anything
            reason = f"{type(error).__name__}: " * (not isinstance(error, ValueError)) + first_line(error)
            raise UsageError(f"{self.file}: {reason}; {REMEDY if self.name in known else 'fix the code'}") from error

    def check_layers(self, arrays: int, step: int) -> None:
        """Refuses a model of more layers than there are arrays, before it is traced: 10^9 layers never end.

        Args:
          arrays: number of arrays in the weights; each layer has at least one.
          step: their step, for the message.

        Raises:
          UsageError: there are more layers.
        """
        for name, value in self.attributes:
            counts = value if isinstance(value, tuple) else (value,)
            if name not in _LAYERS or not all(isinstance(count, int) for count in counts):
                continue
            if (layers := sum(counts)) > arrays:
                raise UsageError(
                    f"{self.file} does not fit the weights of step {step}: '{name}' says {layers} layers, and the "
                    f"weights are {arrays} arrays; {REMEDY}"
                )


_LAYERS = ("depth", "depths", "conv_layers")  # attributes that count layers


def read_model(path: Path, renamed: Mapping[str, str] = MappingProxyType({})) -> ModelFacts:
    """Reads and checks model.json in a run's folder.

    Args:
      path: the folder.
      renamed: {former name: today's} of attributes, each as the config key 'model.ATTRIBUTE'.

    Raises:
      UsageError: it is missing, damaged, or lacks an entry.
    """
    file = path / "model.json"
    found = read_json(file, REMEDY, expects_checksum=True)
    require(isinstance(found, dict), file, "it does not describe a model", REMEDY)
    for key, kind in (("name", str), ("attributes", dict), ("class_names", list), ("image_shape", list)):
        require(isinstance(found.get(key), kind), file, f"it has no '{key}'", REMEDY)
    names, shape = found["class_names"], found["image_shape"]
    require(bool(names) and all(isinstance(name, str) for name in names), file, "'class_names' are not names", REMEDY)
    sides = len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)
    require(sides, file, "'image_shape' is not [H, W, C]", REMEDY)
    given = {renamed.get(f"model.{key}", f"model.{key}"): value for key, value in found["attributes"].items()}
    attributes = tuple((key.removeprefix("model."), _tuples(value)) for key, value in given.items())
    for key, value in attributes:
        require(_is_plain(value), file, f"'attributes.{key}' is not a plain value", REMEDY)
    preprocessing = _preprocessing(file, found.get("augmentation"), shape[-1])
    origin = found.get("origin", "")
    require(isinstance(origin, str), file, "'origin' is not a name", REMEDY)
    return ModelFacts(file, found["name"], attributes, tuple(names), tuple(shape), preprocessing, origin)


def _preprocessing(file: Path, given: Any, channels: int) -> Preprocessing:
    require(isinstance(given, dict), file, "it has no 'augmentation'", REMEDY)
    defaults = {field.name: field.default for field in dataclasses.fields(Augmentation)}
    for key, value in given.items():
        require(key in defaults, file, f"there is no 'augmentation.{key}'", REMEDY)
        wanted = type(defaults[key])
        if wanted is tuple:
            right = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        else:
            right = type(value) is wanted or (wanted is float and type(value) is int)
        require(right, file, f"'augmentation.{key}' is {value!r:.40}", REMEDY)
    found = Augmentation(**{key: _tuples(value) for key, value in given.items()}).preprocessing
    for key, right in {
        "mean": len(found.mean) in (1, channels),
        "std": len(found.std) in (1, channels) and all(found.std),
        "evaluation": found.evaluation in EVALUATION_SIZES,
        "interpolation": found.interpolation in INTERPOLATIONS,
        "size": found.size >= 0,
        "resize": found.resize >= 0,
        "crop_fraction": 0 < found.crop_fraction <= 1,
    }.items():
        require(right, file, f"'augmentation.{key}' is {getattr(found, key)!r:.40}", REMEDY)
    return found


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else not isinstance(value, dict)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
