"""`jaxvit embed`: writes features of image files, which the model computes before its head, and draws a map of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.cli.options import (
    Progress,
    add_image_options,
    add_run_options,
    figure_file,
    load_run,
    named_images,
    say_how_images_were_read,
)
from jaxvit.data.depth import Depth
from jaxvit.data.image_files import PassedOver
from jaxvit.errors import UsageError
from jaxvit.files import local_path
from jaxvit.shown import terminal
from jaxvit.trained.embed import ENDINGS, FEWEST, MAPS, Embedded, MapSample, embed_files, place_on_map, write_features
from jaxvit.trained.image_files import Converted, refuse_among
from jaxvit.trained.rows import output_file

POINTS = 1000  # images on a map, by default

_EXAMPLES = """examples:
  jaxvit embed --workdir=runs/digits images --out=features.npz
  jaxvit embed --workdir=runs/digits images --out=features.parquet --figure=map.png
  jaxvit embed --workdir=runs/digits images --figure=map.svg --map=pca --points=300

Images are read as by jaxvit predict. FILE.npz holds the arrays features (float32, a row for each image), files, true
and predicted: np.load(FILE)["features"]. FILE.parquet has the columns file, true, predicted and features. On the map,
the colour is that of the class that the folder of a file names, else of the predicted class. Files that cannot be read
are reported and left out; the exit code is then 1.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run, no images, or neither --out nor --figure.
    """
    parser = command_line.Parser("embed", "Writes the features of images before the head of a model.", _EXAMPLES)
    add_image_options(parser)
    add_run_options(parser)
    parser.add_argument("--out", default="", type=local_path, metavar="FILE", help="a .npz or .parquet file")
    parser.add_argument("--figure", default="", type=local_path, metavar="FILE", help="draw a map of the images")
    parser.add_argument("--map", choices=MAPS, default="tsne", help="how images are placed on it (default: tsne)")
    parser.add_argument("--points", type=int, default=POINTS, help=f"images on the map, at most (default: {POINTS})")
    options, rest = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(rest)
    if not options.images:
        raise UsageError("name images: files, folders, patterns, or - for a list on stdin; see jaxvit embed --help")
    if not (options.out or options.figure):
        raise UsageError(
            "name a file to write, such as --out=features.npz, or --figure=map.png; see jaxvit embed --help"
        )
    if options.points < 1:
        raise UsageError(f"--points={options.points}: must be 1 or more")
    figure, out = figure_file(options.figure), output_file(options.out, ENDINGS) if options.out else None
    loaded = load_run(options)
    passed_over, depth, converted = PassedOver(), Depth(loaded.config.data.white), Converted()
    names = named_images(options.images, passed_over)
    if figure and figure.exists():
        names = refuse_among(names, figure)
    sample, counts = MapSample(options.points), {"done": 0, "failed": 0}

    def found() -> Iterator[Embedded]:
        how = {"batch": options.batch_size, "devices": options.devices, "depth": depth, "converted": converted}
        with Progress() as advance:
            for pixels, one in embed_files(loaded, names, **how):
                advance()
                counts["failed" if one.error else "done"] += 1
                if pixels is None:
                    print(terminal(f"jaxvit: {one.file}: {one.error}"), file=sys.stderr)
                elif figure:
                    sample.add(pixels, one)
                yield one

    if out:
        write_features(found(), out)
    else:
        for _ in found():
            pass
    if figure and sample.images:
        from jaxvit.figures.embedding import draw_map

        places_N2 = place_on_map(np.stack([one.features for one, _ in sample.images]), options.map)
        classes = [one.truth or one.predicted for one, _ in sample.images]
        kind = "t-SNE" if options.map == "tsne" and len(classes) >= FEWEST else "PCA"
        title = f"{kind} of the features of {len(classes):,} images, {loaded.config.model.name}"
        draw_map(places_N2, classes, [thumbnail for _, thumbnail in sample.images], figure, title)
    say_how_images_were_read(passed_over, converted, depth)
    parts = [f"{counts['done']:,} image{'s' * (counts['done'] != 1)}"]
    parts += [f"{counts['failed']:,} could not be read"] if counts["failed"] else []
    parts += [str(file) for file in (out, figure if sample.images else None) if file]
    print(terminal("; ".join(parts)), file=sys.stderr)
    return errors.SOME_INPUTS_FAILED if counts["failed"] else errors.DONE
