"""The page format: page.html, a file that runs the model in a browser, without a server and without a network.

The page consists of `page_parts/`, an ONNX graph for each model, and onnxruntime-web. `page_in_browser.py` checks it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxvit._version import __version__
from jaxvit.errors import UsageError
from jaxvit.exports.browser_runtime import VERSION, browser_runtime
from jaxvit.exports.card import public_name
from jaxvit.exports.model import ExportModel
from jaxvit.exports.onnx_file import convert
from jaxvit.exports.page_graph import MapFacts, outputs_of
from jaxvit.shown import terminal
from jaxvit.trained.load import Loaded

LIMIT = 15_000_000  # bytes of a page
KINDS = ("float32", "float16", "int8")  # dtypes of weights, in the order in which they are tried
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = "JAXVIT_BROWSER"  # environment variable: the browser's program
_PARTS = Path(__file__).parent / "page_parts"
_RUNTIME = 5_200_000  # about the bytes of onnxruntime-web in a page
_REST = 600_000  # allowance for graph, samples and page
_SAMPLES, _SAMPLE_BYTES = 12, 900_000  # most samples, and most bytes of all together
_BITS = {"float32": 32, "float16": 16, "int8": 8}


def fitting_dtype(models: Sequence[Loaded]) -> str:
    """Returns the first of float32, float16 and int8 with which a page of these models surely fits; else int8."""
    numbers = sum(_size(loaded) for loaded in models)
    for kind in KINDS:
        if _RUNTIME + _REST + numbers * _BITS[kind] // 8 * 4 // 3 <= LIMIT:
            return kind
    return KINDS[-1]


def samples_of(source: Any) -> tuple[tuple[np.ndarray, str], ...]:
    """Returns images of a split for a page: the first of each class, in the order of the split; 8 to 12."""
    _, labels, good = source.batch(np.arange(min(len(source), 1000)))
    readable = np.flatnonzero(good)
    firsts = readable[np.sort(np.unique(labels[readable], return_index=True)[1])]
    rows = np.concatenate([firsts, np.setdiff1d(readable, firsts)])[: min(max(len(firsts), 8), _SAMPLES)]
    images = source.batch(rows)[0]
    return tuple((image, source.class_names[label]) for image, label in zip(images, labels[rows], strict=True))


def find_browser() -> tuple[str, str]:
    """Returns (path of Chromium, '') if a page can be checked in it, else ('', why not).

    Raises:
      UsageError: `JAXVIT_BROWSER` names no program.
    """
    named = os.environ.get(BROWSER, "")
    if named and shutil.which(named) is None:
        raise UsageError(f"{BROWSER}={named}: there is no such program; name that of Chromium or Chrome")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return "", f"there is no Chromium on PATH; install it, or set {BROWSER}"
    if importlib.util.find_spec("playwright") is None:
        return "", "playwright is not installed: pip install 'jaxvit[browser]'"
    return found, ""


def write(model: ExportModel, path: Path) -> None:
    """Writes the page.

    Raises:
      UsageError: onnxruntime-web is not available, or the page would be too large.
    """
    runtime = browser_runtime()
    models = (model, *model.beside)
    graphs = [_graph(each) for each in models]
    parts = {"runtime-script": runtime.script, "runtime-wasm": runtime.wasm}
    parts |= {f"model-{i}": gzip.compress(graph, 9, mtime=0) for i, (graph, _) in enumerate(graphs)}
    encoded = {name: base64.b64encode(data).decode("ascii") for name, data in parts.items()}
    heading, titles = _titles(models)
    about = [_about(each, title, maps) for each, title, (_, maps) in zip(models, titles, graphs, strict=True)]
    page = render(heading, about, encoded, _samples(model), model.loaded.limits.pixels).encode()
    if len(page) > LIMIT:
        raise UsageError(_too_large(len(page), models, encoded, about))
    path.write_bytes(page)


def render(
    title: str,
    models: Sequence[dict[str, Any]],
    parts: dict[str, str],
    samples: Sequence[dict[str, str]],
    max_pixels: int,
) -> str:
    """Returns the page.

    Args:
      title: title of the page.
      models: a dict for each model: title, about (phrases), class_names, image_shape, maps.
      parts: {id: compressed bytes in base64}: the runtime, and a graph for each model.
      samples: dicts of image (PNG in base64) and name.
      max_pixels: height × width of the largest image that the page reads.
    """
    import jinja2
    from markupsafe import Markup

    script, style = ((_PARTS / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (_PARTS / "page.html").read_text(encoding="utf-8")
    )
    who = "This model classifies" if len(models) == 1 else f"These {len(models)} models classify"
    return template.render(
        title=title,
        subtitle=f"{who} pictures in your browser. No picture leaves it.",
        producer=f"jaxvit {__version__}",
        runtime_version=VERSION,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
        facts={"models": list(models), "samples": list(samples), "max_pixels": max_pixels, "passes": pillow_passes()},
        parts=list(parts.items()),
    )


def _hash(text: str) -> str:
    """The hash that the page's security policy allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def pillow_passes() -> str:
    """Returns the rule by which the installed Pillow chooses the order of the two passes of a resize.

    The order changes how values are rounded. 'across first' is the only order up to Pillow 12.0. Later releases go down
    the columns first 'by shape', for images more than 100 times as high as wide, or from 13.0 'by rows saved'.
    """

    def goes_down_first(size: tuple[int, int]) -> bool:
        noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
        image, how = Image.fromarray(noise), Image.Resampling.BILINEAR
        direct = image.resize((8, 20), how)
        down = image.resize((size[0], 20), how).resize((8, 20), how)
        return direct.tobytes() == down.tobytes()

    if goes_down_first((16, 100)):
        return "by rows saved"
    return "by shape" if goes_down_first((16, 2000)) else "across first"


def _graph(model: ExportModel) -> tuple[bytes, list[MapFacts]]:
    facts: list[MapFacts] = []

    def outputs(images_BHWC: Any, by: Any) -> Any:
        arrays, facts[:] = outputs_of(model, images_BHWC, by)
        return tuple(arrays)

    graph = convert(model, outputs)
    return graph.SerializeToString(), facts


def _about(model: ExportModel, title: str, maps: Sequence[MapFacts]) -> dict[str, Any]:
    loaded = model.loaded
    phrases = [f"{_size(loaded):,} parameters", _stored(model.kind), f"trained on {_data_name(loaded)}"]
    if model.result:
        phrases.append(f"top-1 {model.result['top1']:.2%} of {model.result['count']:,} {model.result['split']} images")
    return {
        "title": title,
        "about": [terminal(phrase) for phrase in phrases],
        "class_names": [terminal(name) for name in loaded.class_names],
        "image_shape": [int(side) for side in loaded.image_shape],
        "maps": [each.as_json() for each in maps],
    }


def _stored(kind: str) -> str:
    if kind == "float32":
        return "float32 weights"
    return f"{'kernels' if kind == 'int8' else 'weights'} stored as {kind}, computed in float32"


def _data_name(loaded: Loaded) -> str:
    return public_name(loaded.config.data.name).rpartition(":")[2]


def _titles(models: Sequence[ExportModel]) -> tuple[str, list[str]]:
    """A title of the page, and one for each model: with the folder of the run where two would be equal."""
    names = [each.loaded.config.model.name for each in models]
    data = [_data_name(each.loaded) for each in models]
    if len(models) == 1:
        return (title := terminal(f"{names[0]} on {data[0]}")), [title]
    titles = names
    if len(set(data)) > 1:
        titles = [f"{name} on {its_data}" for name, its_data in zip(names, data, strict=True)]
    folders = [each.loaded.workdir.resolve().name for each in models]
    titles = [
        terminal(f"{title} ({folder})" if titles.count(title) > 1 else title)
        for title, folder in zip(titles, folders, strict=True)
    ]
    same = f" on {data[0]}" if len(set(data)) == 1 else ""
    return terminal(f"{len(models)} models{same}"), titles


def _samples(model: ExportModel) -> list[dict[str, str]]:
    samples, total = [], 0
    for image, name in model.samples:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
        total += len(buffer.getvalue())
        if total > _SAMPLE_BYTES and samples:
            break
        samples.append({"name": terminal(name), "image": base64.b64encode(buffer.getvalue()).decode("ascii")})
    return samples


def _size(loaded: Loaded) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(loaded.variables["params"]))


def _too_large(
    size: int, models: Sequence[ExportModel], encoded: dict[str, str], about: Sequence[dict[str, Any]]
) -> str:
    """The message for a page over the limit: its parts, and what to do."""
    graphs = [len(encoded[f"model-{i}"]) for i in range(len(models))]
    parts = [f"{each['title']} {graph / 1e6:.1f} MB" for each, graph in zip(about, graphs, strict=True)]
    runtime = sum(len(encoded[name]) for name in ("runtime-script", "runtime-wasm"))
    kind = models[0].kind
    smaller = [
        (other, (size - sum(graphs) + sum(graphs) * _BITS[other] / _BITS.get(kind, 16)) / 1e6)
        for other in KINDS
        if _BITS[other] < _BITS.get(kind, 16)
    ]
    remedies = [
        f"--dtype={other} (about {megabytes:.0f} MB)" for other, megabytes in smaller if megabytes * 1e6 < LIMIT
    ]
    remedies += ["fewer models in --beside"] if len(models) > 1 else []
    remedies += ["--to=onnx, which has no limit"] if remedies else ["a smaller model, or --to=onnx, which has no limit"]
    return terminal(
        f"--to=page: with {kind} weights the page would have {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}: "
        f"onnxruntime-web {runtime / 1e6:.1f} MB, {', '.join(parts)}; take {', or '.join(remedies)}"
    )
