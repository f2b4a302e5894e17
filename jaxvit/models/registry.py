"""Models by name: what each name stands for is a row of plain data in its family's file."""

import dataclasses
import difflib
import importlib
from typing import Any, NamedTuple

from flax import linen as nn

from jaxvit.models import cct, shiftvit, vit


class Row(NamedTuple):
    """What a name stands for."""

    model: type[nn.Module]
    input: tuple[int, int, int]  # (H, W, C) the name was published for
    attributes: dict[str, Any]


def _rows(model: type[nn.Module], sizes: dict[str, dict]) -> dict[str, Row]:
    return {
        name: Row(model, size["input"], {k: v for k, v in size.items() if k != "input"}) for name, size in sizes.items()
    }


MODELS: dict[str, Row] = {
    **_rows(vit.ViT, vit.SIZES),
    **_rows(shiftvit.ShiftViT, shiftvit.SIZES),
    **_rows(cct.CCT, cct.SIZES),
}

# Not published models: each family with sizes for small images, to be set by configuration.
FAMILIES: dict[str, Row] = {
    "vit": Row(vit.ViT, (32, 32, 3), {}),
    "token_learner_vit": Row(vit.ViT, (32, 32, 3), {"learner": "v11_mlp", "learner_at": (3,), "learner_tokens": 8}),
    "shiftvit": Row(shiftvit.ShiftViT, (32, 32, 3), {}),
    "cct": Row(cct.CCT, (32, 32, 3), {}),
}

_PLAIN = (bool, int, float, str, tuple)


def list_models() -> tuple[str, ...]:
    """Names of all published models, tutorials' and authors'."""
    return tuple(MODELS)


def _unknown(kind: str, name: str, known, where: str = "") -> ValueError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    return ValueError(f"no {kind} {name!r}{where}{hint}")


def _row(name: str) -> Row:
    if ":" in name:
        return Row(_load_class(name), (32, 32, 3), {})
    if name in MODELS:
        return MODELS[name]
    if name in FAMILIES:
        return FAMILIES[name]
    raise _unknown("model", name, [*MODELS, *FAMILIES])


def _load_class(name: str) -> type[nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model {name!r} cannot be imported: {error} (looked for in the working folder and on the Python path)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"model {name!r} is not a flax.linen Module class")
    return found


def resolve_class(name: str) -> type[nn.Module]:
    """The Module class behind a name, or behind 'package.module:Class'.

    Raises:
      ValueError: there is none; the sentence suggests the nearest name.
    """
    return _row(name).model


def input_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) a name was published for; (32, 32, 3) for a class of one's own. Models take other sizes too."""
    return _row(name).input


def model_defaults(name: str) -> dict[str, Any]:
    """Every attribute of a named model that can be overridden, with the value the name gives it, as declared in order.

    Values are bool, int, float, str or tuple. Attributes of a class of one's own that have another kind of default, or
    none, are left out.
    """
    row = _row(name)
    defaults = {}
    for field in dataclasses.fields(row.model):
        if field.name in ("parent", "name"):
            continue
        value = row.attributes.get(field.name, field.default)
        if isinstance(value, _PLAIN):
            defaults[field.name] = value
    return defaults


def _checked(name: str, key: str, value: Any, default: Any) -> Any:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(
            f"attribute {key!r} of model {name!r} takes {type(default).__name__}, not {type(value).__name__} {value!r}"
        )
    return value


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Builds a model by name.

    Args:
      name: of a published model (`list_models`), a family ('vit', …), or 'package.module:Class'.
      **overrides: attributes to set otherwise than the name does; see `model_defaults`.

    Raises:
      ValueError: an unknown name or attribute (the sentence suggests the nearest), a value of the wrong type, or
        attributes that do not go together.
    """
    row = _row(name)
    defaults = model_defaults(name)
    fields = [f.name for f in dataclasses.fields(row.model) if f.name not in ("parent", "name")]
    attributes = dict(row.attributes)
    for key, value in overrides.items():
        if key not in fields:
            raise _unknown("attribute", key, fields, f" in model {name!r}")
        attributes[key] = _checked(name, key, value, defaults.get(key))
    try:
        return row.model(**attributes)
    except TypeError as error:
        raise ValueError(f"model {name!r} cannot be built: {error}") from error
