"""`jaxvit convert`: makes a folder that the other verbs take of a file of published weights."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxvit.cli import command_line
from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_model_overrides, split_overrides
from jaxvit.errors import DONE, UsageError
from jaxvit.exports.converted import AUGMENT, read_conversion, write_conversion
from jaxvit.files import local_path
from jaxvit.models.registry import model_defaults
from jaxvit.shown import terminal
from jaxvit.weights.hugging_face import fetch, is_address, weights_path
from jaxvit.weights.origin import Value
from jaxvit.weights.pretrained import ORIGINS

_EXAMPLES = """examples:
  jaxvit convert cct_7_3x1_32_cifar10_300epochs.pth --workdir=runs/cct
  jaxvit convert model.safetensors --model=vit_ti16_224 --workdir=runs/vit --class_names=imagenet.txt
  jaxvit convert shift_base.pth --workdir=runs/shift --config.model.divisions=16 --dry_run
  jaxvit convert hf://google/vit-base-patch16-224 --workdir=runs/google     needs the extra 'hub'
  jaxvit convert deit.pth --workdir=runs/deit --config.augment.mean='(0.485, 0.456, 0.406)'

Files: PyTorch (.pth, zip archives), .safetensors, .npz, an index of several of these, or hf://owner/name[@revision][/file],
which is kept in the cache of huggingface_hub. Files are read as data; nothing
in them is run. Name, patch, classes and resolution are guessed from the shapes, and the first lines say what was
guessed. The folder is one for jaxvit.load, evaluate, predict, embed, export, summary and init.from. docs/weights.md
lists the origins.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: the file cannot be read, does not suit the model, or the folder exists.
    """
    parser = command_line.Parser("convert", "Makes a folder for jaxvit.load of published weights.", _EXAMPLES)
    parser.add_argument(
        "file", nargs="?", default="", type=weights_path, metavar="FILE", help="weights, or hf://owner/name"
    )
    parser.add_argument("--model", default="", help="name of the model (default: guessed from the shapes)")
    parser.add_argument("--workdir", default="", type=local_path, metavar="DIR", help="the folder to write; a new one")
    parser.add_argument("--origin", choices=tuple(ORIGINS), default="", help="the project (default: told by the names)")
    parser.add_argument("--part", default="", help="entry of a PyTorch checkpoint, such as model_ema")
    parser.add_argument("--heads", choices=("average",), default="", help="read a distilled DeiT: the mean of both")
    parser.add_argument("--image_size", default="", help="'224' or '224x160' (rows x columns); default: by positions")
    parser.add_argument(
        "--class_names", default="", type=local_path, metavar="FILE", help="class names: lines of text, or a JSON list"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be written; write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options, rest = parser.parse_known_args(argv)
    if not options.file:
        raise UsageError("FILE is missing: name a file of weights; see jaxvit convert --help")
    if not options.workdir and not options.dry_run:
        raise UsageError("--workdir is missing: name a new folder, such as --workdir=runs/vit")
    attributes, augment, unknown = _overrides(options.model, rest)
    parser.refuse_unknown(unknown)
    conversion = read_conversion(
        fetch(options.file) if is_address(options.file) else Path(options.file),
        model=options.model,
        origin=options.origin,
        part=options.part,
        heads=options.heads,
        overrides=attributes,
        augment=augment,
        input=_size(options.image_size),
        class_names=Path(options.class_names) if options.class_names else None,
    )
    workdir = Path(options.workdir)
    if not options.json:
        for line in conversion.lines():
            print(terminal(line), flush=True)
    if not options.dry_run:
        write_conversion(conversion, workdir)
    if options.json:
        print(json.dumps({**conversion.facts(), "workdir": "" if options.dry_run else str(workdir)}))
    elif options.dry_run:
        print("dry run: nothing was written")
    else:
        print(terminal(f"written  {workdir}; next: jaxvit predict --workdir={workdir} IMAGES"))
    return DONE


def _overrides(model: str, words: list[str]) -> tuple[dict[str, Value], dict[str, Value], list[str]]:
    """Parses `--config.model.…` and `--config.augment.…`: ({attribute: value}, {setting: value}, other arguments)."""
    keys = {key.removeprefix("model.") for key, _, _ in split_overrides(words)[0] if key.startswith("model.")}
    names = [model] if model else ["vit", "cct", "shiftvit"]
    name = next((name for name in names if not model and keys <= set(model_defaults(name))), names[0])
    config: ConfigDict = base_config(name)
    _, overrides, unknown = parse_model_overrides(config, words)
    for key in overrides:
        section, _, leaf = key.partition(".")
        if section != "model" and not (section == "augment" and leaf in AUGMENT):
            kinds = f"--config.model.…, and --config.augment.{', '.join(AUGMENT)}"
            raise UsageError(f"--config.{key}: only {kinds} have an effect on a conversion")
    found: dict[str, dict[str, Value]] = {"model": {}, "augment": {}}
    for key, value in overrides.items():
        section, _, leaf = key.partition(".")
        found[section][leaf] = value  # type: ignore[assignment]
    return found["model"], found["augment"], unknown


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) not in (1, 2) or not all(0 < side <= 1 << 16 for side in sides):
        raise UsageError(f"--image_size={text} is not a size such as 224 or 224x160")
    return sides[0], sides[-1]
