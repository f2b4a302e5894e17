"""Compares models and recipes on small data sets, from scratch: the variants of configs/photos.py, by cross-validation.

    python benchmarks/photos_recipe.py runs/recipe                       everything; takes hours on two CPU cores
    python benchmarks/photos_recipe.py runs/recipe --sets=cifar --variants=cct,plain
    python benchmarks/photos_recipe.py runs/short --duration='40 epochs'             instead of the chosen duration
    python benchmarks/photos_recipe.py runs/recipe --table               only the table of finished runs

The script writes two data sets with five classes of 100 images each as folders of PNGs: the first training images of
CIFAR-10's classes airplane to deer, and of Fashion-MNIST's t-shirt to coat. It trains each variant like a user, with
`jaxvit train --data=SET --config=photos:VARIANT --folds=5`. The same command resumes and skips finished runs.

It writes OUT/table.md and OUT/table.csv: test accuracy, mean ± standard deviation over the folds; each image is tested
once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from jaxvit.data.image_folder import save_images
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import open_dataset
from jaxvit.files import csv_text, read_json, write_text

SETS = {"cifar": ("cifar10", (0, 1, 2, 3, 4)), "fashion": ("fashion_mnist", (0, 1, 2, 3, 4))}
VARIANTS = ("muon", "plain", "cct", "vit", "shiftvit", "token_learner")
IMAGES, FOLDS = 100, 5  # images per class, folds


def make_set(name: str, folder: Path, images: int = IMAGES) -> None:
    """Writes a data set as folder/CLASS/NUMBER.png, unless the folder exists."""
    if folder.is_dir():
        return
    prepared, classes = SETS[name]
    source = open_dataset(prepared, data_dir(""), classes=classes).read("train")
    chosen = [i for c in range(len(classes)) for i in (source.labels == c).nonzero()[0][:images]]
    beside = folder.with_name(f".{folder.name}")
    pictures = ((source.images[int(i)], source.class_names[source.labels[i]], f"{int(i):05d}") for i in chosen)
    save_images(beside, pictures)
    beside.rename(folder)


def command(name: str, variant: str, out: Path, duration: str) -> list[str]:
    """The command that trains a variant on a set, for `duration`; '' = the duration that `--data` chooses."""
    words = [
        f"--data={out / name}",
        f"--config=photos:{variant}",
        f"--folds={FOLDS}",
        f"--workdir={out / name}-{variant}",
    ]
    words += [f"--config.train.duration={duration}"] if duration else []
    return [sys.executable, "-m", "jaxvit", "train", *words]


def rows(out: Path) -> list[dict[str, object]]:
    """The results of finished runs."""
    found = []
    for name in SETS:
        for variant in VARIANTS:
            file = out / f"{name}-{variant}" / "result.json"
            if not file.exists():
                continue
            result = read_json(file)
            test = result["test"]
            found.append(
                {
                    "set": name,
                    "variant": variant,
                    "accuracy": round(100 * test["top1"], 2),
                    "sd": round(100 * test["std"]["top1"], 2),
                    "loss": round(test["loss"], 4),
                    "folds": test["n"],
                    "images": test["count"],
                    "params": result["params"],
                    "steps": result["steps"],
                    "train_seconds_a_fold": round(result["seconds"]["train"] / test["n"], 1),
                }
            )
    return found


def markdown(found: list[dict[str, object]]) -> str:
    """A Markdown table with a line per variant and a column per data set."""
    lines = ["| variant | parameters | " + " | ".join(SETS) + " |", "|---" * (2 + len(SETS)) + "|"]
    for variant in VARIANTS:
        by_set = {row["set"]: row for row in found if row["variant"] == variant}
        if by_set:
            cells = [f"{by_set[n]['accuracy']} ± {by_set[n]['sd']}" if n in by_set else "" for n in SETS]
            params = next(iter(by_set.values()))["params"]
            lines.append(f"| {variant} | {params:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Trains the unfinished runs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of sets, runs and table")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--duration", default="", help="duration of all runs, such as '40 epochs'")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    failed = 0
    for name in () if options.table else options.sets.split(","):
        make_set(name, options.out / name)
        for variant in options.variants.split(","):
            failed += subprocess.run(command(name, variant, options.out, options.duration), check=False).returncode != 0
    found = rows(options.out)
    if found:
        write_text(options.out / "table.md", markdown(found))
        write_text(options.out / "table.csv", csv_text(list(found[0]), found))
        print(markdown(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
