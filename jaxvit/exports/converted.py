"""Makes a folder that `jaxvit.load` takes of published weights: `jaxvit convert`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxvit._version import __version__
from jaxvit.config.identity import config_hash
from jaxvit.config.keys import base_config, check_value, set_value, to_plain
from jaxvit.data.settings import Augmentation, Preprocessing
from jaxvit.errors import UsageError
from jaxvit.exports.hub import save_weights
from jaxvit.files import (
    make_folder,
    make_writable,
    naming,
    no_empty_folders,
    parse_json,
    read_regular,
    sync_folder,
    write_json,
)
from jaxvit.models.registry import MODELS, create_model
from jaxvit.shown import markdown
from jaxvit.trained.load import load
from jaxvit.weights.beside import Beside, read_beside
from jaxvit.weights.image_settings import ImageSettings, usual_settings
from jaxvit.weights.origin import Value
from jaxvit.weights.own_folder import find_own
from jaxvit.weights.pretrained import Pretrained, plain_attributes, read_pretrained

_MOST_NAMES = 1 << 24  # bytes of a file of class names
_ALIKE = ("num_classes", "activation", "learner_activation", "norm_eps")  # a named model may differ in these
AUGMENT = ("mean", "std", "evaluation", "crop_fraction", "interpolation")  # keys that may be set


@dataclass(frozen=True)
class Conversion:
    """Published weights as a model with class names and preprocessing.

    Attributes:
      file: the file they are from.
      found: the weights.
      name: a name of `jaxvit.create_model`.
      attributes: all attributes of the model.
      class_names: K names.
      image_shape: [H, W, C] of the images that the model's preprocessing takes.
      preprocessing: settings that turn such an image into the model's input.
      images_from: where the preprocessing is known from.
      names_from: where the class names are from; '' = they are numbers.
      guessed: the names of what was guessed from shapes.
    """

    file: Path
    found: Pretrained
    name: str
    attributes: dict[str, Value]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    images_from: str
    names_from: str
    guessed: tuple[str, ...]

    def lines(self) -> list[str]:
        """Lines for the user: the content of the file, and every guess."""
        found, size = self.found, "x".join(map(str, self.found.input))
        own = {key: self.attributes[key] for key in _changed(self.name, self.attributes) if key != "num_classes"}
        others = "".join(f", {key}={value!r}" for key, value in own.items())
        leaves = jax.tree.leaves(found.params)
        said = self.preprocessing
        crop = f", crop {said.crop_fraction:g}" if said.evaluation == "crop_fraction" else ""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (said.mean, said.std))
        names = self.class_names
        few = ", ".join(names[:3]) + (f", …, {names[-1]}" if len(names) > 3 else "")
        from_names = f"from {self.names_from}" if self.names_from else "name them with --class_names=FILE"
        lines = [
            f"weights  {found.origin.title}: {sum(leaf.size for leaf in leaves):,} parameters in {len(leaves)} arrays",
            f"model    {self.name}{others}",
            f"images   {size}, {self._tokens()}, {len(names):,} classes",
            f"guessed  {', '.join(self.guessed)}, from the shapes" if self.guessed else "guessed  nothing",
            *(f"unsure   {what}: {why}" for what, why in found.guess.unsure.items() if what in self.guessed),
            f"pixels   mean {mean}, std {std}{crop}, {said.interpolation} ({self.images_from})",
            f"classes  {few}; {from_names}",
        ]
        if found.fresh:
            lines.append(
                f"warning  no classifier in the file ({', '.join(found.fresh[:2])} at initial values): its predictions "
                "mean nothing; use its features, with jaxvit embed"
            )
        if found.unused:
            more = ", …" if len(found.unused) > 5 else ""
            lines.append(f"unused   {len(found.unused)} arrays: {', '.join(found.unused[:5])}{more}")
        return lines

    def _tokens(self) -> str:
        if self.attributes.get("tokenizer") == "conv":
            return f"convolutions of {self.attributes['kernel']}"
        return f"patches of {self.attributes['patch']}"

    def facts(self) -> dict[str, object]:
        """The same as `lines`, as plain values for JSON."""
        return {
            "origin": self.found.origin.name,
            "model": self.name,
            "attributes": self.attributes,
            "input": self.found.input,
            "classes": len(self.class_names),
            "class_names_from": self.names_from,
            "guessed": self.guessed,
            "unsure": self.found.guess.unsure,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "preprocessing_from": self.images_from,
            "fresh": self.found.fresh,
            "unused": self.found.unused,
        }


def read_class_names(file: Path) -> tuple[str, ...]:
    """Reads class names: lines of text, or a JSON list.

    Raises:
      UsageError: the file cannot be read, or has no names.
    """
    try:
        text = read_regular(file, _MOST_NAMES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"--class_names={file} cannot be read ({reason})") from None
    if text.lstrip().startswith("["):
        try:
            names = parse_json(text)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"--class_names={file}: no list of names")
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UsageError(f"--class_names={file}: it has no names; write them as lines, in the order of the outputs")
    return tuple(names)


def read_conversion(
    file: Path,
    *,
    model: str = "",
    origin: str = "",
    part: str = "",
    heads: str = "",
    overrides: Mapping[str, Value] | None = None,
    augment: Mapping[str, Value] | None = None,
    input: tuple[int, int] | None = None,
    class_names: Path | None = None,
) -> Conversion:
    """Reads published weights and everything else that a folder needs; writes nothing.

    Args:
      file: the weights; see `jaxvit.weights.pretrained.read_pretrained`.
      model: a name that the file must suit; '' = it is guessed from the shapes.
      origin, part: as in `read_pretrained`.
      heads: 'average' reads a distilled DeiT; see `read_pretrained`.
      overrides: attributes of the model.
      augment: settings of `AUGMENT`.
      input: (height, width) of the images; None = by the shapes.
      class_names: a file of names; None = those of a config.json beside the weights, else class_0, class_1, …

    Raises:
      UsageError: the file cannot be read, or is not what the arguments say.
    """
    if folder := find_own(file):
        if not (folder / "model.json").exists():
            raise UsageError(f"{file} is a folder: name a file of weights in it")
        raise UsageError(f"{file} is a folder of jaxvit already: load it as it is, or use jaxvit export --to=hub")
    beside = read_beside(file)
    given = {**(beside.attributes if not model else {}), **(overrides or {})}
    shape = None
    if input:
        channels = read_pretrained(file, origin=origin, part=part, model=model, overrides=given, heads=heads).input[2]
        shape = (*input, channels)
    found = read_pretrained(file, origin=origin, part=part, model=model, overrides=given, input=shape, heads=heads)
    attributes = plain_attributes(found.model)
    name = model or _name(found, attributes)
    classes = int(attributes["num_classes"])
    names, names_from = _names(classes, class_names, beside)
    settings = beside.images or usual_settings(found.origin.name, found.guess)
    preprocessing = _with(settings.preprocessing(found.input), augment or {})
    if augment:
        settings = settings._replace(source=f"{settings.source}; {', '.join(augment)} as given")
    known = {*(overrides or {}), *(["name", "patch", "tokenizer", "classes"] if model else [])}
    known |= {*(["resolution"] if input else []), *(["classes"] if found.fresh else [])}
    tokens = "tokenizer" if attributes.get("tokenizer") == "conv" else "patch"
    guessed = [what for what in ("name", tokens, "classes", "resolution", *found.guess.unsure) if what not in known]
    return Conversion(
        file=file,
        found=found,
        name=name,
        attributes=attributes,
        class_names=names,
        image_shape=_stored(settings, preprocessing, found.input),
        preprocessing=preprocessing,
        images_from=settings.source,
        names_from=names_from,
        guessed=tuple(guessed),
    )


def _stored(settings: ImageSettings, preprocessing: Preprocessing, input: tuple[int, int, int]) -> tuple[int, int, int]:
    return settings._replace(crop=preprocessing.crop_fraction).stored_shape(input)


def _with(settings: Preprocessing, augment: Mapping[str, Value]) -> Preprocessing:
    for key, value in augment.items():
        check_value(f"augment.{key}", value)
    return dataclasses.replace(settings, **augment)  # type: ignore[arg-type]


def _names(classes: int, file: Path | None, beside: Beside) -> tuple[tuple[str, ...], str]:
    if file:
        names = read_class_names(file)
        if len(names) != classes:
            raise UsageError(f"--class_names={file} has {len(names):,} names, and the model {classes:,} classes")
        return names, file.name
    if len(beside.class_names) == classes:
        return beside.class_names, "config.json"
    return tuple(f"class_{number}" for number in range(classes)), ""


def _changed(name: str, attributes: Mapping[str, Value]) -> list[str]:
    """The attributes that differ from those of a named model."""
    there = plain_attributes(create_model(name))
    return [key for key, value in attributes.items() if there.get(key) != value]


def _name(found: Pretrained, attributes: Mapping[str, Value]) -> str:
    """The published model that differs least, and only in details; else the family."""
    family = found.guess.model
    built = type(found.model)
    names = [name for name, entry in MODELS.items() if entry.model is built and entry.input[0] == found.input[0]]
    fitting = [name for name in names if set(_changed(name, attributes)) <= set(_ALIKE)]
    return min(fitting, key=lambda name: len(_changed(name, attributes)), default=family)


@no_empty_folders()
def write_conversion(conversion: Conversion, workdir: Path) -> None:
    """Writes the folder: it appears whole, after `jaxvit.load` has read it, or not at all.

    Raises:
      UsageError: the folder exists and is not empty, or cannot be written.
    """
    if workdir.is_symlink() or (workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir()))):
        raise UsageError(f"--workdir={workdir}: it exists; name a new folder")
    make_writable(workdir.absolute().parent, "name another with --workdir=DIR")
    with tempfile.TemporaryDirectory(dir=workdir.absolute().parent, prefix=".converting-") as kept:
        draft = Path(kept) / workdir.name
        with naming(workdir, draft=Path(kept)):
            make_folder(draft)
            _write(conversion, draft)
            load(draft)  # it fits together
            for file in draft.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            os.replace(draft, workdir)
            sync_folder(workdir.absolute().parent)


def _write(conversion: Conversion, folder: Path) -> None:
    params = jax.tree.map(np.asarray, conversion.found.params)
    save_weights({"params": params}, folder, step=0, weights="model", kind="float32")
    said = dataclasses.asdict(conversion.preprocessing)
    facts = {
        "name": conversion.name,
        "attributes": conversion.attributes,
        "class_names": conversion.class_names,
        "image_shape": conversion.image_shape,
        "augmentation": {**dataclasses.asdict(Augmentation()), **said},
        "origin": conversion.found.origin.name,
    }
    write_json(folder / "model.json", facts, with_checksum=True)
    config = base_config(conversion.name, **conversion.attributes)
    values = {f"augment.{key}": value for key, value in said.items()}
    values |= {"data.name": f"published weights ({conversion.found.origin.name})"}
    values |= {f"data.{part}": "" for part in ("train", "validation", "test")}
    values |= {"eval.batch_size": 32}
    for key, value in values.items():
        set_value(config, key, value)
    kept = {"config_hash": config_hash(config), "extensions": [], "config": to_plain(config)}
    write_json(folder / "config.json", {"jaxvit": __version__, **kept}, with_checksum=True)
    write_json(folder / "environment.json", {"data": {}, "starts": []}, with_checksum=True)
    (folder / "README.md").write_text(_card(conversion), encoding="utf-8")


def _card(conversion: Conversion) -> str:
    return "\n".join(
        [
            "---",
            "library_name: jaxvit",
            "pipeline_tag: image-classification",
            "tags: [jax, flax, vision-transformer]",
            "---",
            "",
            f"# {markdown(conversion.name)}, converted from {markdown(conversion.file.name)}",
            "",
            "Published weights, in the form that `jaxvit.load` reads. Their licence is that of their authors.",
            "",
            *(f"- {markdown(line)}" for line in conversion.lines()),
            "",
        ]
    )
