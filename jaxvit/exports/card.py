"""The model card of an exported model: size, use, data, recipe, result and limits, all from its run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import flatten
from jaxvit.data.sources import FILE_PREFIXES
from jaxvit.exports.model import ExportModel
from jaxvit.models.count import count_macs, count_params
from jaxvit.models.registry import model_defaults
from jaxvit.run.folder import read_environment
from jaxvit.shown import markdown
from jaxvit.trained.intervals import wilson
from jaxvit.weights.hugging_face import is_address

WEIGHTS = ("init.from", "distill.from")  # config keys that hold the place of weights
FOLDER = "hub"  # name of the folder written by the hub format


def model_card(model: ExportModel) -> str:
    """Returns the card as Markdown, with the YAML front matter that model hubs read.

    Raises:
      UsageError: a file in the run folder is damaged.
    """
    loaded, config = model.loaded, model.loaded.config
    params = count_params(loaded.variables)
    macs = count_macs(loaded.model, loaded.input_shape)["all"]
    size, data = "×".join(map(str, loaded.image_shape)), public_name(config.data.name)
    own = ", own_code=True" if ":" in config.model.name else ""
    classes = len(loaded.class_names)
    lines = [
        "---",
        "library_name: jaxvit",
        "pipeline_tag: image-classification",
        "tags: [jax, flax, vision-transformer]",
        f"datasets: [{json.dumps(data)}]",
        "---",
        "",
        f"# {markdown(config.model.name)} on {markdown(data)}",
        "",
        f"A classifier of images of {size} into {classes} classes: {params:,} parameters, {macs:,} multiply-adds an",
        f"image, {_stored(model.kind)}. Weights of step {loaded.step:,}"
        + (", averaged over training." if loaded.weights == "ema" else "."),
        "",
        "## Use",
        "",
        "```python",
        "import jaxvit",
        "import numpy as np",
        "",
        f'model = jaxvit.load("{FOLDER}{"" if model.kind == "float32" else f"-{model.kind}"}"{own})  # this folder',
        f"images = np.zeros((1, {', '.join(map(str, loaded.image_shape))}), np.uint8)  # yours",
        f"probabilities = np.asarray(model(images))[:, :{classes}]",
        "print(model.class_names[probabilities[0].argmax()])",
        "```",
        "",
        "Resizing, cropping and normalization are part of the model, as in its evaluation.",
        "",
        f"Classes: {', '.join(map(markdown, loaded.class_names))}.",
        "",
        "## Data",
        "",
        *_data(model),
        "",
        "## Recipe",
        "",
        "Values that differ from the defaults of jaxvit and of the named model; `config.json` has all values.",
        "",
        "| key | value |",
        "|---|---|",
        *(f"| `{key}` | {markdown(value)} |" for key, value in _recipe(config)),
        "",
        "## Result",
        "",
        *_result(model),
        "",
        "## Limits",
        "",
        f"It assigns one of the {classes} classes above to every image, whatever the image shows.",
        *_limits(model, data, size),
    ]
    return "\n".join(lines) + "\n"


def public_name(data: str) -> str:
    """The name of a data set without its location: for an image folder, only the last part of its path."""
    for prefix in FILE_PREFIXES:
        if data.startswith(prefix):
            return f"{prefix}{Path(data.removeprefix(prefix)).name}"
    return data


def public_source(weights: str) -> str:
    """A value of a key in `WEIGHTS` without its location: an address of a hub, or the last part of a path.

    Example:
      >>> public_source("/home/me/runs/five"), public_source("hf://google/vit")
      ('five', 'hf://google/vit')
    """
    return weights if is_address(weights) else Path(weights).name


def _stored(kind: str) -> str:
    return {
        "float32": "float32",
        "bfloat16": "weights stored as bfloat16",
        "float16": "weights stored as float16",
        "int8": "kernels stored as int8 with a scale for each output channel",
    }[kind]


def _data(model: ExportModel) -> list[str]:
    data, known = model.loaded.config.data, read_environment(model.loaded.workdir)["data"]
    lines = ["| part | split | images | sha256 (first digits) |", "|---|---|---|---|"]
    for part in ("train", "validation", "test"):
        if data[part]:
            facts = known.get(part, {})
            count, fingerprint = facts.get("count", ""), facts.get("sha256", "")
            cells = map(markdown, (data[part], count, fingerprint))
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def _recipe(config: Any) -> list[tuple[str, Any]]:
    skipped = ("data.", "log.", "eval.", "checkpoint.")
    defaults = {f"model.{name}": value for name, value in model_defaults(config.model.name).items()}
    defaults |= {key: about.default for key, about in KEYS.items() if not key.startswith(skipped)}
    return [
        (key, public_source(value) if key in WEIGHTS else value)
        for key, value in flatten(config)
        if key in defaults and value != defaults[key] and key != "model.num_classes"
    ]


def _result(model: ExportModel) -> list[str]:
    found = model.result
    if found is None:
        return ["Not measured: the data set was not available when this folder was written."]
    low, high = wilson(found["top1"], found["count"])
    chosen = ["The weights were selected on these images, so the accuracy on new images is likely to be lower."]
    return [
        f"The weights as stored here reach, on {found['count']:,} images of {markdown(public_name(found['data']))}:",
        f"top-1 {found['top1']:.2%} (95 % confidence interval {low:.2%} to {high:.2%}), top-5 {found['top5']:.2%},",
        f"loss {found['loss']:.4f}, expected calibration error {found['ece']:.2%}.",
        *(chosen if found["split"] == "validation" else ()),
    ]


def _limits(model: ExportModel, data: str, size: str) -> list[str]:
    if model.result is None:
        return ["Its accuracy was not measured. Its probabilities are not calibrated."]
    return [
        f"It was measured only on {markdown(data)}, with images of {size} as in training. Accuracy on other images,",
        "under noise, or for groups that are rare in the data was not measured. Its probabilities are not",
        "calibrated.",
    ]
