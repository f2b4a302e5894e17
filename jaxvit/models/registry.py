"""The registry of named models; the table `SIZES` in each family's file defines its names."""

import dataclasses
import difflib
from collections.abc import Callable
from typing import NamedTuple, cast

from flax import linen as nn
from jax.typing import DTypeLike

from jaxvit import own_code
from jaxvit.models import cct, shiftvit, vit
from jaxvit.ops.arguments import dtype_name


class NamedModel(NamedTuple):
    """A named model: its class, its image size and its attributes."""

    model: type[nn.Module]
    input: tuple[int, int, int]  # (H, W, C) of the images it was published for
    attributes: dict[str, object]


def _named_models(model: type[nn.Module], sizes: dict[str, dict]) -> dict[str, NamedModel]:
    return {
        name: NamedModel(model, size["input"], {k: v for k, v in size.items() if k != "input"})
        for name, size in sizes.items()
    }


MODELS: dict[str, NamedModel] = {
    **_named_models(vit.ViT, vit.SIZES),
    **_named_models(shiftvit.ShiftViT, shiftvit.SIZES),
    **_named_models(cct.CCT, cct.SIZES),
}

# The families with sizes for small images, to be changed by configuration; not published models.
FAMILIES: dict[str, NamedModel] = {
    "vit": NamedModel(vit.ViT, (32, 32, 3), {}),
    "token_learner_vit": NamedModel(
        vit.ViT, (32, 32, 3), {"learner": "v11_mlp", "learner_at": (3,), "learner_tokens": 8}
    ),
    "shiftvit": NamedModel(shiftvit.ShiftViT, (32, 32, 3), {}),
    "cct": NamedModel(cct.CCT, (32, 32, 3), {}),
}

# Attributes that were added to a family after the first config hashes were recorded. The default of each leaves the
# model as it was; an attribute enters a hash only if it differs from its default (`jaxvit.config.identity`).
ADDED_ATTRIBUTES: frozenset[str] = frozenset({"norm_after_pool", "reduce", "learner_keep", "learner_start"})

_PLAIN = (bool, int, float, str, tuple)


def list_models() -> tuple[str, ...]:
    """Returns the names of all published models, those of the tutorials and those of the authors."""
    return tuple(MODELS)


def _unknown(kind: str, name: str, known, where: str = "") -> ValueError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return ValueError(f"no {kind} {name!r}{where}{hint}")


def _lookup(name: str) -> NamedModel:
    if ":" in name:
        return NamedModel(_load_class(name), (32, 32, 3), {})
    if name in MODELS:
        return MODELS[name]
    if name in FAMILIES:
        return FAMILIES[name]
    if own_code.is_own_module(name):
        _load_class(name)
    raise ValueError(f"{_unknown('model', name, [*MODELS, *FAMILIES])}; name your own class as 'module:Class'")


def _load_class(name: str) -> type[nn.Module]:
    try:
        found = own_code.load(name, "Class", "model.name")
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"model {name!r} is not a flax.linen Module class")
    return found


def resolve_class(name: str) -> type[nn.Module]:
    """Returns the Module class of a name, or of 'package.module:Class'.

    Raises:
      ValueError: unknown name; the message suggests the nearest one.
    """
    return _lookup(name).model


def input_shape(name: str) -> tuple[int, int, int]:
    """Returns the (H, W, C) a name was published for, (32, 32, 3) for your own class. Models accept other sizes too."""
    return _lookup(name).input


def _fields(model: type[nn.Module]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(model) if field.init and field.name not in ("parent", "name")]


def model_defaults(name: str) -> dict[str, object]:
    """Returns {attribute: value} of a named model, for all attributes that can be overridden, in their declared order.

    Values are bool, int, float, str or tuple. Attributes of your own class with another kind of default, or without
    one, are left out.
    """
    entry = _lookup(name)
    defaults = {}
    for field in _fields(entry.model):
        value = entry.attributes.get(field.name, field.default)
        if isinstance(value, _PLAIN):
            defaults[field.name] = value
    return defaults


def attributes_without_default(name: str) -> tuple[str, ...]:
    """Returns the attributes of your own class that have no default, so that `create_model` needs them."""
    fields = _fields(_lookup(name).model)
    return tuple(f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING)


def why_no_key(name: str, attribute: str) -> str:
    """Returns why `model_defaults` leaves out an attribute of your own class; '' if the class has no such attribute."""
    fields = {field.name: field for field in _fields(_lookup(name).model)}
    if attribute not in fields or attribute in model_defaults(name):
        return ""
    return (
        f"the default of '{attribute}' in {name} is not a plain value; a bool, int, float, str or tuple, such as "
        f"`{attribute}: int = 8`, makes it a config key"
    )


def _checked(name: str, key: str, value: object, default: object) -> object:
    if key == "dtype" and isinstance(default, str) and not isinstance(value, str):
        return dtype_name(name, cast(DTypeLike, value))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(
            f"attribute {key!r} of model {name!r} takes {type(default).__name__}, not {type(value).__name__} {value!r}"
        )
    return value


def create_model(name: str, **overrides: object) -> nn.Module:
    """Builds a model by name.

    Args:
      name: published model (`list_models`), family ('vit', 'token_learner_vit', 'shiftvit' or 'cct'), or
        'package.module:Class'.
      **overrides: attributes that differ from the name's own; `model_defaults` lists them.

    Raises:
      ValueError: unknown name or attribute (the message suggests the nearest one), a value of the wrong type, or
        attributes that do not go together.

    Example:
      >>> create_model("tutorial_cct", depth=4).depth
      4
    """
    entry = _lookup(name)
    defaults = model_defaults(name)
    fields = [field.name for field in _fields(entry.model)]
    attributes = dict(entry.attributes)
    for key, value in overrides.items():
        if key not in fields:
            raise _unknown("attribute", key, fields, f" in model {name!r}")
        attributes[key] = _checked(name, key, value, defaults.get(key))
    make: Callable[..., nn.Module] = entry.model
    try:
        return make(**attributes)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be built: {error}") from error
    except Exception as error:
        if ":" not in name:
            raise
        raise ValueError(f"model {name!r} cannot be built: {own_code.explain(error)}") from error
