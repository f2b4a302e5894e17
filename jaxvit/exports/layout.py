"""Writes a trained model's weights in another project's names and layouts: `jaxvit export --layout=timm`."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from jaxvit.errors import RunFailedError, UsageError, nearest
from jaxvit.files import make_writable, no_empty_folders, replaced
from jaxvit.models.cct import CCT
from jaxvit.models.registry import create_model
from jaxvit.models.shiftvit import ShiftViT
from jaxvit.models.vit import ViT
from jaxvit.trained.load import Loaded
from jaxvit.weights.mapping import Arrays
from jaxvit.weights.origin import NotImportable, Origin, Value
from jaxvit.weights.pretrained import ORIGINS, plain_attributes, read_pretrained, write_arrays

AUTHORS = "authors"
ENDINGS = (".safetensors", ".npz")

# Attributes that do not change what a trained model computes.
_OF_TRAINING = (
    *("dropout", "embed_dropout", "projection_dropout", "attention_dropout", "drop_path", "head_dropout"),
    *("head_input_dropout", "initialiser", "remat", "scan", "dtype", "takes_patches", "frozen_positions"),
    *("layer_scale", "mlp_dim", "mlp_ratio", "head_activation", "learner_activation", "conv_width", "learner_hidden"),
)
# Attributes that a file does not tell, because the other project's code takes them as arguments.
_ARGUMENTS = {
    "timm": ("heads", "norm_eps", "activation"),
    "transformers": ("heads", "norm_eps", "activation"),
    "compact_transformers": ("heads",),
    "spach": ("divisions",),
    "scenic": ("learner_at",),
}


def origin_of(loaded: Loaded, layout: str) -> Origin:
    """The project of a layout; 'authors' is that of the model's own authors.

    Raises:
      UsageError: there is no such layout, or the model is not one of this package.
    """
    model = loaded.model
    if not isinstance(model, ViT | CCT | ShiftViT):
        raise UsageError(f"--layout={layout}: {loaded.config.model.name} is no model of jaxvit, so no layout is known")
    if layout == AUTHORS:
        google = "scenic" if getattr(model, "learner", "none") != "none" else "vision_transformer"
        layout = {CCT: "compact_transformers", ShiftViT: "spach"}.get(type(model), google)
    if layout not in ORIGINS:
        known = (AUTHORS, *ORIGINS)
        raise UsageError(f"--layout={layout}: there is none{nearest(layout, known)}; layouts: {', '.join(known)}")
    return ORIGINS[layout]


@no_empty_folders()
def export_layout(loaded: Loaded, file: Path, layout: str, *, dry_run: bool = False) -> tuple[Origin, dict[str, Value]]:
    """Writes the weights as another project stores them, and reads the file back to compare every bit.

    Args:
      loaded: the trained model.
      file: a name that ends in .safetensors or .npz; an earlier file is replaced.
      layout: 'authors', or a name of `jaxvit.weights.pretrained.ORIGINS`.
      dry_run: check, and write nothing.

    Returns:
      The project, and the attributes that its code must be given, since the file does not tell them.

    Raises:
      UsageError: the project has no such model, or the file cannot be written there.
      RunFailedError: what was read back is not what was written.
    """
    if not file.name.endswith(ENDINGS):
        raise UsageError(f"--to={file.name}: with --layout, --to names a file that ends in {' or '.join(ENDINGS)}")
    if file.exists() and not file.is_file():
        raise UsageError(f"{file} exists and is not a file; name another with --to=FILE")
    origin = origin_of(loaded, layout)
    params = jax.tree.map(np.asarray, loaded.variables["params"])
    if len(loaded.variables) > 1:
        raise UsageError(f"--layout={layout}: the model keeps more than parameters, which {origin.title} has not")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise RunFailedError("the model's weights are not finite numbers: its training has diverged")
    if getattr(loaded.model, "pool", "") == "cls_register":
        raise UsageError(f"--layout={layout}: a head on two tokens at once has no counterpart in {origin.title}")
    arrays = write_arrays(params, origin, loaded.model)
    arguments = _refuse_others(loaded, arrays, origin)
    if dry_run:
        return origin, arguments
    make_writable(file.absolute().parent, "name another with --out=DIR")
    with replaced(file) as draft:
        _save(arrays, draft, file.suffix)
        attributes = plain_attributes(loaded.model)
        height, width, channels = loaded.input_shape
        back = read_pretrained(
            draft,
            origin=origin.name,
            overrides={**attributes, "dtype": "float32"},
            input=(height, width, channels),
        )
        same = jax.tree.map(np.array_equal, params, back.params)
        if not all(jax.tree.leaves(same)):
            raise RunFailedError(f"{file}: what was read back differs from the model; nothing was written")
    return origin, arguments


def _save(arrays: Arrays, file: Path, ending: str) -> None:
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    if ending == ".npz":
        with file.open("wb") as stream:
            np.savez(stream, **whole)  # type: ignore[arg-type]
        return
    safetensors.numpy.save_file(whole, file, {"format": "pt"})  # what PyTorch's loaders ask for


def _refuse_others(loaded: Loaded, arrays: Arrays, origin: Origin) -> dict[str, Value]:
    """Compares the model with the one that an importer sees in the arrays.

    Returns:
      The attributes that the other project's code must be given.

    Raises:
      UsageError: the project has no such model.
    """
    attributes, unlike = plain_attributes(loaded.model), f"{origin.title} has no such model"
    try:
        if not origin.fits(arrays):
            raise NotImportable("other names")
        guess = origin.guess(arrays)
        own = {"heads": attributes["heads"]} if "heads" in attributes else {}  # a guess need not divide the channels
        taken = plain_attributes(create_model(guess.model, **{**guess.attributes, **own}))
    except (NotImportable, KeyError, ValueError, IndexError, TypeError) as error:
        raise UsageError(f"--layout={origin.name}: {unlike} ({error})") from None
    taken |= {key: guess.attributes[key] for key in own}
    free = _ARGUMENTS.get(origin.name, ())
    without = () if attributes.get("learner", "none") != "none" else tuple(k for k in attributes if "learner" in k)
    arguments: dict[str, Value] = {}
    for key, value in attributes.items():
        if key in _OF_TRAINING or key in (*without, "num_classes") or taken.get(key, value) == value:
            continue
        if key not in free:
            raise UsageError(f"--layout={origin.name}: {unlike}: its {key} is {json.dumps(taken[key])}, here {value!r}")
        arguments[key] = value
    return arguments
