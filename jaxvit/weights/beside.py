"""Reads `config.json` beside a file of weights: class names, heads, and how images are prepared.

Hugging Face's `transformers` writes `config.json` and `preprocessor_config.json`, timm a `config.json` with
`pretrained_cfg`. Only plain values are taken from them, and each is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from jaxvit.errors import UsageError
from jaxvit.files import is_number, read_json
from jaxvit.weights.image_settings import ImageSettings
from jaxvit.weights.origin import Value

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_REMEDY = "it is damaged: download it again, or move it away"
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class Beside:
    """The files beside weights.

    Attributes:
      class_names: the classes in the order of the outputs, or ().
      attributes: attributes of the model that shapes do not tell.
      images: how images are prepared; None if no file says it.
    """

    class_names: tuple[str, ...] = ()
    attributes: dict[str, Value] = field(default_factory=dict)
    images: ImageSettings | None = None


def read_beside(weights: Path) -> Beside:
    """Reads the files of JSON beside weights; a missing or foreign one says nothing.

    Raises:
      UsageError: one is damaged, or names an activation that no model here has.
    """
    config = _read(weights.with_name(CONFIG))
    names = _class_names(config)
    attributes: dict[str, Value] = {}
    if isinstance(config.get("model_type"), str):
        heads, epsilon, activation = (config.get(k) for k in ("num_attention_heads", "layer_norm_eps", "hidden_act"))
        if type(heads) is int and heads > 0:
            attributes["heads"] = heads
        if is_number(epsilon, 0, 1):
            attributes["norm_eps"] = float(cast(float, epsilon))
        if isinstance(activation, str):
            if activation not in _ACTIVATIONS:
                raise UsageError(
                    f"{weights.with_name(CONFIG)} names the activation {activation!r:.40}, which no model here has"
                )
            attributes["activation"] = _ACTIVATIONS[activation]
    return Beside(names, attributes, _timm(config) or _transformers(_read(weights.with_name(PREPROCESSOR))))


def _read(file: Path) -> dict[str, object]:
    found = read_json(file, _REMEDY) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _class_names(config: Mapping[str, object]) -> tuple[str, ...]:
    table = config.get("id2label")
    if isinstance(table, dict):
        names = tuple(table.get(str(number)) for number in range(len(table)))
        return cast(tuple[str, ...], names) if all(isinstance(name, str) for name in names) else ()
    names = config.get("label_names")  # timm
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _numbers(value: object) -> tuple[float, ...]:
    right = isinstance(value, list) and len(value) in (1, 3, 4) and all(is_number(each, -100, 100) for each in value)
    return tuple(float(each) for each in cast(list, value)) if right else ()


def _timm(config: Mapping[str, object]) -> ImageSettings | None:
    said = config.get("pretrained_cfg")
    if not isinstance(said, dict):
        return None
    mean, std, crop = _numbers(said.get("mean")), _numbers(said.get("std")), said.get("crop_pct")
    if not (mean and std and all(std)):
        return None
    crop = float(cast(float, crop)) if is_number(crop, 0.1, 1) else 1.0
    kind = said.get("interpolation")
    return ImageSettings(mean, std, crop, kind if kind in ("bilinear", "bicubic") else "bicubic", CONFIG)


def _transformers(said: Mapping[str, object]) -> ImageSettings | None:
    mean, std = _numbers(said.get("image_mean")), _numbers(said.get("image_std"))
    if not (mean and std and all(std)):
        return None
    crop = 1.0
    whole, cut = _side(said.get("size")), _side(said.get("crop_size"))
    if said.get("do_center_crop") and whole and cut and cut <= whole:
        crop = cut / whole
    kind = _FILTERS.get(said.get("resample"), "bilinear")  # type: ignore[arg-type]
    return ImageSettings(mean, std, crop, kind, PREPROCESSOR)


def _side(said: object) -> int:
    if isinstance(said, dict):
        said = said.get("shortest_edge", said.get("height"))
    return said if type(said) is int and 0 < said < 1 << 16 else 0
