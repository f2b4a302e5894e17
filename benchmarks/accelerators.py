"""Compiles training steps for accelerators that are not here, and writes the results into a file and a page.

    python benchmarks/accelerators.py --platform=tpu          compiles what is missing in accelerators.jsonl
    python benchmarks/accelerators.py --table                 writes the table of docs/accelerators.md

Needs `pip install 'jaxvit[tpu]'` or `'jaxvit[cuda13]'`. A step in the file is not compiled again, so the command can
be stopped and repeated. `--only=WORD` compiles the steps whose line contains a word.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks" / "accelerators.jsonl"
PAGE = ROOT / "docs" / "accelerators.md"

TUTORIALS = (
    "tutorial_cct", "tutorial_mini_vit", "tutorial_fashion_fast_vit", "tutorial_shiftvit", "tutorial_mini_vit_tl4",
    "tutorial_fashion_vit", "tutorial_vit_cifar100", "tutorial_mini_vit_8l", "tutorial_mini_vit_tl8",
)  # fmt: skip
LARGE = ("vit_b16_224", "cct_14_7x2_224", "shiftvit_small", "token_learner_vit_b16_224")
# Chips and batch: 64 images on each TPU, 128 on each GPU.
GROUPS = (("v5e:4x4", 1024), ("v5p:4x4x4", 4096), ("h100x8", 1024))
_STREAM = ("--config.data.feed=stream",)  # ImageNet does not stay on a chip


def steps() -> list[tuple[str, str, int, int, str, tuple[str, ...]]]:
    """(model or config, topology, batch or 0, fsdp, dtype or '', overrides) of each step, the most telling first."""
    scan = (*_STREAM, "--config.model.scan=True")
    two = (*_STREAM, "--config.model.depth=2")  # unrolled, 2 of the 12 blocks
    mixup = ("--config.augment.mixup=0.8",)
    listed = [
        ("vit_b16_224", "v5e:4x4", 1024, 4, "bfloat16", two),
        ("tutorial_mini_vit", "h200", 0, 1, "", ()),
        ("tutorial_cct", "v5e:2x2", 0, 1, "", mixup),
        ("vit_b16_224", "h100x8", 1024, 1, "bfloat16", two),
        ("vit_b16_224", "v5e:4x4", 1024, 1, "bfloat16", two),
        ("shiftvit_tiny", "v5e:4x4", 1024, 1, "bfloat16", scan),
        ("cct:authors", "h200", 0, 1, "", ()),
        ("cct:authors", "v5e", 0, 1, "", ()),
        ("tutorial_cct", "v5e:2x2", 0, 1, "", ()),
        ("tutorial_cct", "h200", 0, 1, "", ()),
        ("vit_b16_224", "v5e:4x4", 1024, 4, "bfloat16", scan),
        ("vit_b16_224", "v5e:4x4", 1024, 1, "bfloat16", scan),
        *((model, chips, 0, 1, "", ()) for model in TUTORIALS for chips in ("v5e", "h200")),
        *((model, chips, batch, 1, "bfloat16", scan) for chips, batch in GROUPS for model in LARGE),
        *(("vit_b16_224", chips, batch, 4, "bfloat16", scan) for chips, batch in GROUPS),
    ]
    return list(dict.fromkeys(listed))


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=("tpu", "cuda"), help="compile for these chips")
    parser.add_argument("--only", action="append", default=[], help="only the steps whose line contains the word")
    parser.add_argument("--label", default="now", help="what the lines are called in the file (default: now)")
    parser.add_argument("--out", type=Path, default=FILE, help="file of the lines")
    parser.add_argument("--dump", type=Path, help="keep the programs as text in this folder")
    parser.add_argument("--table", action="store_true", help="write the table into docs/accelerators.md")
    options = parser.parse_args()
    if options.platform:
        compile_missing(options)
    if options.table:
        write_table(options.out)
    return 0


def compile_missing(options: argparse.Namespace) -> None:
    """Compiles the steps that the file lacks, and adds a line for each."""
    from jaxvit.ahead.topology import parse_topology, prepare_environment

    prepare_environment()

    from jaxvit.ahead.compiling import compile_ahead
    from jaxvit.errors import RunFailedError, UsageError
    from jaxvit.speed.subject import configure

    done = {(line["label"], line["step"]) for line in read(options.out)}
    for one in steps():
        name, chips, batch, fsdp, dtype, words = one
        step, topology = " ".join(map(str, (name, chips, batch, fsdp, dtype, *words))), parse_topology(chips)
        if topology.chip.platform != options.platform or (options.label, step) in done:
            continue
        if not all(word in step for word in options.only):
            continue
        model, config = ("", name) if ":" in name else (name, "")
        settings, overrides, origin, _ = configure(
            model, config, [*words, f"--config.train.fsdp={fsdp}"], batch=batch, dtype=dtype
        )
        print(time.strftime("%H:%M:%S"), step, flush=True)
        dump = options.dump / step.replace(" ", "_").replace("/", "_") if options.dump else None
        if dump:
            dump.mkdir(parents=True, exist_ok=True)
        try:
            found = compile_ahead(settings, topology, overrides=overrides, synthetic=True, origin=origin, dump=dump)
        except (RunFailedError, UsageError) as error:
            print(f"{step}: {error}", file=sys.stderr, flush=True)
            continue
        found.pop("machine", None)
        with options.out.open("a") as file:
            file.write(json.dumps({"label": options.label, "step": step, "config": config, **found}) + "\n")


def read(file: Path) -> list[dict]:
    """The lines of the file; [] = there is none."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_table(file: Path) -> None:
    """Replaces the table between the two marks of the page."""
    from jaxvit.ahead.page import markdown

    page, lines = PAGE.read_text(), [line for line in read(file) if line["label"] == "now"]
    first, last = "<!-- table: benchmarks/accelerators.py -->\n", "<!-- end of the table -->"
    before, _, rest = page.partition(first)
    _, _, after = rest.partition(last)
    order = {" ".join(map(str, (*one[:5], *one[5]))): place for place, one in enumerate(steps())}
    lines.sort(key=lambda line: order.get(line["step"], len(order)))
    PAGE.write_text(f"{before}{first}{markdown(lines)}{last}{after}")


if __name__ == "__main__":
    sys.exit(main())
