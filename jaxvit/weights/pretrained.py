"""Weights as variables of a model: from other projects' files, and from folders of this one; and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvit.errors import UsageError
from jaxvit.models.registry import create_model
from jaxvit.shown import terminal
from jaxvit.weights import mapping
from jaxvit.weights.arrays import read_arrays
from jaxvit.weights.compact_transformers import COMPACT_TRANSFORMERS
from jaxvit.weights.distilled import average_heads
from jaxvit.weights.google import BIG_VISION, SCENIC, VISION_TRANSFORMER
from jaxvit.weights.hugging_face import fetch, is_address
from jaxvit.weights.layouts import Shape
from jaxvit.weights.mapping import Arrays
from jaxvit.weights.model_json import ModelFacts
from jaxvit.weights.origin import Guess, NotImportable, Origin, Value
from jaxvit.weights.own_folder import find_own, read_own
from jaxvit.weights.spach import SPACH
from jaxvit.weights.timm import TIMM
from jaxvit.weights.transformers import TRANSFORMERS

# In the order in which a file's names are tried.
ORIGINS: dict[str, Origin] = {
    origin.name: origin
    for origin in (SPACH, COMPACT_TRANSFORMERS, SCENIC, BIG_VISION, VISION_TRANSFORMER, TRANSFORMERS, TIMM)
}
_HEAD = "head/"


def _no_file(arrays: Mapping[str, np.ndarray]) -> bool:
    del arrays
    return False


def _no_guess(arrays: Mapping[str, np.ndarray]) -> Guess:
    del arrays
    raise NotImportable("a model without its model.json")


# Folders of this project: a run's, or an exported one. They say their model, so nothing is guessed.
OWN = Origin(name="jaxvit", title="jaxvit", fits=_no_file, guess=_no_guess, lines=())
# Errors that the translation of a project raises for arrays of unexpected shapes.
_MISFITS = (mapping.MappingError, KeyError, ValueError, IndexError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Pretrained:
    """Weights, as they suit a model.

    Attributes:
      origin: where they come from; `OWN` for a folder of this project.
      guess: the model that the file's shapes tell, or that the folder names.
      model: the model, built.
      params: its parameters, a nested dict of float32 arrays.
      input: (height, width, channels) of its images.
      fresh: paths that the file has no weights for, at their initial values: a classifier, or nothing.
      unused: names in the file that the model has no place for.
      constants: the model's other collections, or {}.
      facts: the model.json of a folder of this project, with class names and preprocessing; None for a file.
    """

    origin: Origin
    guess: Guess
    model: nn.Module
    params: dict
    input: tuple[int, int, int]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    constants: dict = field(default_factory=dict)
    facts: ModelFacts | None = None

    @property
    def positions(self) -> str:
        """How a position table is resized: as by the project of the weights, also those of a converted folder."""
        converted = ORIGINS.get(self.facts.origin) if self.facts else None
        return (converted or self.origin).positions


def find_origin(arrays: Mapping[str, np.ndarray], path: Path) -> Origin:
    """The project whose names a file has.

    Raises:
      UsageError: none that is known; the sentence shows a few names.
    """
    for origin in ORIGINS.values():
        if origin.fits(arrays):
            return origin
    names = terminal(", ".join(sorted(arrays)[:3]))
    known = ", ".join(origin.title for origin in ORIGINS.values())
    raise UsageError(f"{path} has names of no project that is known, such as {names:.200}; known are {known}")


def shapes_of(model: nn.Module, image: tuple[int, int, int]) -> dict[str, Shape]:
    """{path: shape} of a model's parameters, paths joined by '/', without running it."""
    images = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    found = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)
    leaves = jax.tree_util.tree_flatten_with_path(found["params"])[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def read_pretrained(
    path: Path | str,
    *,
    origin: str = "",
    part: str = "",
    model: str = "",
    overrides: Mapping[str, Value] | None = None,
    input: tuple[int, int, int] | None = None,
    own_code: bool = False,
    heads: str = "",
) -> Pretrained:
    """Reads weights into a model: a file of another project, or a folder of this one.

    Args:
      path: the file; see `jaxvit.weights.arrays.read_arrays` for the formats. Or a folder of this project: a run's, of
        which the best checkpoint is read, or one that `jaxvit export --to=hub` or `jaxvit convert` has written. Or an
        address of a model hub, 'hf://owner/name[@revision][/file]': see `jaxvit.weights.hugging_face`.
      origin: a name of `ORIGINS`; '' finds it by the names in the file.
      part: which part of a PyTorch checkpoint; see `read_arrays`. A run has 'model' and 'ema'; '' takes the weights
        that its test result was measured with.
      model: a name of `jaxvit.list_models` that the file must suit; '' goes by the shapes.
      overrides: attributes that the file does not tell, or tells wrongly.
      input: (height, width, channels) of the images; None goes by the position table.
      heads: 'average' reads a distilled DeiT, whose answer is the mean of two heads; '' refuses it.
      own_code: lets a folder's model be code outside this package, which is then run; see `jaxvit.load`.

    Raises:
      UsageError: the file cannot be read, holds a model that this project does not have, or does not suit `model`.
    """
    path = fetch(path) if is_address(path) else Path(path)
    if heads not in ("", "average"):
        raise UsageError(f"heads={heads!r}: 'average', or '' for a model with one head")
    if origin and origin not in (*ORIGINS, OWN.name):
        raise UsageError(f"no origin {origin!r}; known are {', '.join((*ORIGINS, OWN.name))}")
    if folder := find_own(path):
        if origin not in ("", OWN.name):
            raise UsageError(f"{folder} is a folder of jaxvit, not a file of {origin}")
        return _read_own(folder, part, model, overrides or {}, input, own_code)
    if origin == OWN.name:
        raise UsageError(f"{path} is no folder of a run, nor one from jaxvit export --to=hub")
    arrays = read_arrays(path, part)
    found = ORIGINS[origin] if origin else find_origin(arrays, path)
    try:
        if heads:
            arrays = average_heads(arrays, found.name)
    except ValueError as error:
        raise UsageError(f"{path}: heads={heads!r}: {error}") from None
    try:
        guess = found.guess(arrays)
    except NotImportable as error:
        raise UsageError(f"{path} cannot be imported: it holds {error}") from None
    except _MISFITS as error:
        raise UsageError(f"{path} is not whole, or not of {found.title}: {_reason(error)}") from None
    try:
        if model:
            built = create_model(model, **(overrides or {}))
        else:
            attributes = {**guess.attributes, **(overrides or {})}
            if not attributes.get("heads", 1):
                raise UsageError(
                    f"{path} does not say how its {attributes['dim']} channels are split into heads, which are not of "
                    "64: give their number to jaxvit convert, by --config.model.heads=N"
                )
            built = create_model(guess.model, **attributes)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    image = input or guess.input
    try:
        prepared = found.prepare(arrays, plain_attributes(built))
        shapes = shapes_of(built, image)
        read = mapping.read(prepared, found.lines, shapes)
    except _MISFITS as error:
        raise UsageError(f"{path} does not suit the model: {_reason(error)}") from None
    _check(path, read)
    unused = _unused(read, found)
    params = _nested(read.params)
    if read.missing:
        fresh = jax.jit(lambda key, x: built.init(key, x, train=False))(jax.random.key(0), jnp.zeros((1, *image)))
        flat = flatten_dict(fresh["params"])
        params = unflatten_dict(
            {
                **flatten_dict(params),
                **{tuple(n.split("/")): np.asarray(flat[tuple(n.split("/"))]) for n in read.missing},
            }
        )
    return Pretrained(found, guess, built, params, image, read.missing, unused)


def _unused(read: mapping.Read, origin: Origin) -> tuple[str, ...]:
    """Their names that the model has no place for, without those that the origin says to ignore."""
    return tuple(name for name in read.unused if not any(re.fullmatch(p, name) for p in origin.ignored))


def _read_own(
    folder: Path,
    part: str,
    model: str,
    overrides: Mapping[str, Value],
    input: tuple[int, int, int] | None,
    own_code: bool,
) -> Pretrained:
    found = read_own(folder, part, own_code=own_code)
    facts, built = found.facts, found.model
    if model or overrides:
        try:
            built = create_model(model or facts.name, **{**({} if model else dict(facts.attributes)), **overrides})
        except ValueError as error:
            raise UsageError(f"{folder}: {error}") from None
    height, width, channels = facts.input_shape
    image = input or (height, width, channels)
    read = _match(folder, found.params, built, image)
    _check(folder, read)
    guess = Guess(facts.name, dict(facts.attributes), (height, width, channels))
    return Pretrained(OWN, guess, built, _nested(read.params), image, constants=found.constants, facts=facts)


def _match(folder: Path, params: Arrays, model: nn.Module, image: tuple[int, int, int]) -> mapping.Read:
    """Weights of this project in a model of it, which must have the same names and shapes."""
    try:
        shapes = shapes_of(model, image)
    except _MISFITS as error:
        raise UsageError(f"{folder} does not suit the model: {_reason(error)}") from None
    for name in sorted(shapes.keys() | params.keys()):
        there, here = (list(found[name]) if name in found else "none" for found in (_shapes(params), shapes))
        if there != here:
            raise UsageError(f"{folder} does not suit the model: {name} is {there} there, and {here} in the model")
    return mapping.Read({name: params[name].astype(np.float32) for name in shapes}, (), ())


def _shapes(arrays: Arrays) -> dict[str, Shape]:
    return {name: array.shape for name, array in arrays.items()}


def _nested(arrays: Arrays) -> dict:
    return unflatten_dict({tuple(name.split("/")): array for name, array in arrays.items()})


def plain_attributes(model: nn.Module) -> dict[str, Value]:
    """A model's attributes that are plain values."""
    names = [each.name for each in dataclasses.fields(model) if each.init and each.name not in ("parent", "name")]
    found = {name: getattr(model, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str, tuple))}


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _check(path: Path, read: mapping.Read) -> None:
    missing = [name for name in read.missing if not name.startswith(_HEAD)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"{path} has no weights for {', '.join(missing[:3])}{more}")
    for name, array in read.params.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{path} has NaN or infinite weights, in {name}; take another checkpoint")


def write_arrays(params: Mapping, origin: Origin, model: nn.Module) -> Arrays:
    """The weights of a model in another project's names and layouts.

    Args:
      params: its parameters, a nested dict.
      origin: whose names.
      model: the model.

    Returns:
      {their name: array}; what `read_pretrained` reads back bit by bit.

    Raises:
      UsageError: the model has a part that the project's has not.
    """
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(dict(params)).items()}
    left_out = origin.not_written(plain_attributes(model))
    lines = [line for line in origin.lines if not line.theirs.startswith(left_out)] if left_out else origin.lines
    try:
        return origin.restore(mapping.write(flat, lines))
    except mapping.MappingError as error:
        raise UsageError(f"the model cannot be written as {origin.title} does: {error}") from None


def load_weights(path: Path | str, model: nn.Module, input: tuple[int, int, int] | None = None) -> dict:
    """Variables for a model of yours from published weights, or from a run.

    Args:
      path: `.pth`, `.safetensors` or `.npz` of one of the projects in `ORIGINS`, a folder of this project, or an
        address 'hf://owner/name': see `read_pretrained`.
      model: the model of the file.
      input: (height, width, channels) of its images; None goes by the file.

    Returns:
      {'params': nested dict of float32 arrays}, and a run's other collections.

    Raises:
      UsageError: the file cannot be read, or does not suit the model.

    Example:
      >>> model = jaxvit.create_model("cct_7_3x1_32")  # doctest: +SKIP
      >>> variables = jaxvit.load_weights("cct_7_3x1_cifar10_300epochs.pth", model)  # doctest: +SKIP
    """
    path = fetch(path) if is_address(path) else Path(path)
    if folder := find_own(path):
        found = read_own(folder)
        height, width, channels = found.facts.input_shape
        read = _match(folder, found.params, model, input or (height, width, channels))
        _check(folder, read)
        return {"params": _nested(read.params), **found.constants}
    arrays = read_arrays(path)
    origin = find_origin(arrays, path)
    try:
        prepared = origin.prepare(arrays, plain_attributes(model))
        image = input or origin.guess(arrays).input
        read = mapping.read(prepared, origin.lines, shapes_of(model, image))
    except _MISFITS as error:
        raise UsageError(f"{path} does not suit the model: {_reason(error)}") from None
    _check(path, read)
    if read.missing:
        raise UsageError(f"{path} has no weights for {', '.join(read.missing[:3])}: set num_classes as it has them")
    if unused := _unused(read, origin):
        raise UsageError(
            f"{path} does not suit the model, which has no place for {terminal(', '.join(unused[:3]))}; "
            "jaxvit.weights.pretrained.read_pretrained leaves such arrays out"
        )
    return {"params": _nested(read.params)}
