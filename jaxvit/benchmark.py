"""`jaxvit benchmark`: how fast a model trains and infers here, what compiling it costs, how much memory it takes."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxvit
from jaxvit import command_line, errors
from jaxvit._version import __version__
from jaxvit.errors import RunFailedError, UsageError, first_line
from jaxvit.export.formats import format_of
from jaxvit.measurement import Effort, facts_of, measure
from jaxvit.run_directory import write_text
from jaxvit.speed_page import device_of, images_of, in_ms, markdown, show, show_lines, write_tables
from jaxvit.subject import Subject, document_config, make_subject
from jaxvit.training import hardware
from jaxvit.workloads import DOCUMENTS

PACKAGES = ("jax", "jaxlib", "flax", "optax")

_EXAMPLES = """examples:
  jaxvit benchmark --model=tutorial_cct                         its document's batch and optimizer, synthetic images
  jaxvit benchmark --model=tutorial_cct --batch=32 --dtype=bfloat16 --json
  jaxvit benchmark --model=tutorial_mini_vit,tutorial_mini_vit_tl4 --out=speed    benchmark.md and benchmark.csv there
  jaxvit benchmark --config=configs/digits.py --config.augment.policy=trivial     with the config's own data and feed
  jaxvit benchmark --model=vit --config.model.depth=4 --trace=profile --dry_run   what would be measured
  jaxvit benchmark --file=export/model.onnx,export/model.stablehlo --workdir=runs/digits   exported files, batches 1, 32

Everything is timed turn by turn, --rounds turns of --seconds each, several steps between two waits; medians and
quartiles are given. TFLOP/s are counted: 2 for each multiply-add of `jaxvit summary` ('all'), times 3 for training. Its
peak is that of large matrix products in the same dtype. Several models are measured one after the other, each in a
process of its own, so that the memory of one is not another's. docs/performance.md says what each figure means.
"""


def _parser() -> command_line.Parser:
    parser = command_line.Parser("benchmark", "Measures the speed and the memory of models on this machine.", _EXAMPLES)
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a registered name, or several: a,b,c"
    )
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="a config file in place of --model")
    parser.add_argument(
        "--file", action="append", default=[], metavar="FILE", help="exported files in place of --model; they are run"
    )
    parser.add_argument("--workdir", default="", metavar="RUN", help="with --file: the run that they were made of")
    parser.add_argument(
        "--own_code", action="store_true", help="with --workdir or a hub folder: as jaxvit evaluate has it"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images of a step (default: the document's)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the computation (default: the model's own)"
    )
    parser.add_argument("--synthetic", action="store_true", help="random images even where the config's data is there")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everything that is timed (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn (default: 2)")
    parser.add_argument("--trace", metavar="DIR", help="write a profile of some steps there")
    parser.add_argument("--out", metavar="DIR", help="write benchmark.md and benchmark.csv there")
    parser.add_argument("--json", action="store_true", help="one JSON object for each model, a line each")
    parser.add_argument("--dry_run", action="store_true", help="say what would be measured; stop")
    return parser


def main(argv: list[str]) -> int:
    """The verb.

    Raises:
      UsageError: no such model, config or key; values that do not go together.
      RunFailedError: the one model asked for cannot be run here.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.file or options.workdir or options.own_code:
        return _files(parser, options, rest)
    models = list(dict.fromkeys(name for value in options.model for name in value.split(",")))
    _check(options, models)
    # All of them are looked at before the first is measured.
    configured = [_configured(parser, options, rest, model) for model in (models or [""])]
    if options.dry_run:
        subjects = [
            make_subject(config, overrides=overrides, synthetic=options.synthetic, origin=origin)
            for config, overrides, origin in configured
        ]
        for subject in subjects:
            _show_plan(subject, options)
        print("dry run: nothing was measured")
        return errors.DONE
    for folder in filter(None, (options.out, options.trace)):
        _make_folder(Path(folder))
    if len(models) > 1:
        return _measure_each(options, rest, models)
    config, overrides, origin = configured[0]
    found = _measure(config, overrides, origin, options)
    if options.json:
        print(json.dumps(found), flush=True)
    else:
        show(found)
    if options.out:
        write_tables([found], Path(options.out))
    return errors.DONE


def _files(parser: command_line.Parser, options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Measures exported files."""
    from jaxvit.file_speed import BATCHES, measure_files, page

    parser.refuse_unknown(rest)
    files = [Path(name) for value in options.file for name in value.split(",")]
    if not files:
        raise UsageError(
            "--workdir and --own_code are for --file: name exported files, such as --file=RUN/export/model.stablehlo"
        )
    for name in ("model", "config", "batch", "dtype", "synthetic", "trace"):
        if (value := getattr(options, name)) not in (None, "", []) and value is not False:
            raise UsageError(f"--{name} says nothing of exported files, which --file names; leave one of them out")
    _check_effort(options)
    for path in files:
        format_of(path).check()
    if options.dry_run:
        print(f"{', '.join(map(str, files))}: batches of {' and '.join(map(str, BATCHES))}")
        print("dry run: nothing was measured")
        return errors.DONE
    if options.out:
        _make_folder(Path(options.out))
    effort = Effort(options.rounds, options.seconds)
    found = measure_files(files, options.workdir, effort, own_code=options.own_code)
    circumstances = _circumstances(*PACKAGES, "onnxruntime", "tensorflow")
    said = page(found, circumstances)
    print(json.dumps({"files": found, **circumstances}) + "\n" if options.json else said, end="")
    if options.out:
        write_text(Path(options.out) / "files.md", said)
    return errors.DONE


def _check(options: argparse.Namespace, models: Sequence[str]) -> None:
    if bool(models) == bool(options.config):
        raise UsageError(
            "name a model, a config file or exported files: --model=NAME, --config=FILE or --file=FILE; see "
            "jaxvit benchmark --help"
        )
    if not all(models):
        raise UsageError(f"--model={','.join(options.model)}: a name is missing; write --model=a,b")
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch={options.batch}: must be 1 or more")
    _check_effort(options)


def _check_effort(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise UsageError(f"--rounds={options.rounds}: must be 1 or more")
    if not 0 < options.seconds < float("inf"):
        raise UsageError(f"--seconds={options.seconds:g}: must be above 0")


def _configured(
    parser: command_line.Parser, options: argparse.Namespace, rest: Sequence[str], model: str
) -> tuple[ConfigDict, dict[str, Any], str]:
    """(config, overrides, where batch and optimizer come from) of a model, or of --config."""
    keys = {key for key, _, _ in command_line.split_overrides(rest)[0]}
    flags = {}
    if options.batch is not None:
        flags["train.batch_size"] = ("--batch", options.batch)
    if options.dtype:
        flags["model.dtype"] = ("--dtype", options.dtype)
    for key, (flag, _) in flags.items():
        if key in keys:
            raise UsageError(f"{flag} and --config.{key} say the same thing; give one of them")
    words = [*rest, *(f"--config.{key}={value}" for key, (_, value) in flags.items() if key != "model.dtype")]
    if model:
        if "model.name" in keys:
            raise UsageError("--config.model.name: the model is named by --model")
        config, overrides, unknown = command_line.parse_overrides(document_config(model), words)
        origin = "document" if model in DOCUMENTS else "defaults"
    else:
        config, overrides, unknown = command_line.parse_config_arguments(options.config, words)
        origin = "config"
    parser.refuse_unknown(unknown)
    if options.dtype:
        if "dtype" not in config.model:
            raise UsageError(f"--dtype={options.dtype}: {config.model.name} has no attribute dtype; leave it out")
        config.model.dtype = options.dtype
    return config, overrides, origin


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "not allowed to write there")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; name another folder") from None


def _measure(config: ConfigDict, overrides: dict[str, Any], origin: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, in this process, with what they were measured on."""
    batch, model = config.train.batch_size, config.model
    subject = make_subject(config, overrides=overrides, synthetic=options.synthetic, origin=origin)
    settings = {
        "a smaller --batch, now": batch,
        "--dtype=bfloat16, now": model.get("dtype", "not there"),
        "--config.model.remat=full, now": model.get("remat", "not there"),
        "a larger --config.train.accumulate, now": config.train.accumulate,
    }
    with _device_errors_explained(settings):
        effort = Effort(options.rounds, options.seconds)
        found = measure(subject, effort, Path(options.trace) if options.trace else None)
    return found | {"overrides": overrides, **_circumstances(*PACKAGES)}


def _circumstances(*packages: str) -> dict[str, Any]:
    """The machine, the versions of this package and of those of `packages` that are there, and the date."""
    versions = {"jaxvit": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"machine": hardware.machine(), "versions": versions, "date": datetime.date.today().isoformat()}


@contextlib.contextmanager
def _device_errors_explained(settings: dict[str, object]) -> Iterator[None]:
    """Turns a device that fails, or has no memory left, into one line; the latter with the settings that help."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if hardware.is_out_of_memory(error):
            raise RunFailedError(hardware.explain_out_of_memory(error, settings)) from error
        raise RunFailedError(f"the device failed: {first_line(error)[:200]}") from error


def _measure_each(options: argparse.Namespace, rest: Sequence[str], models: Sequence[str]) -> int:
    """Measures models one after the other, each in a process of its own; tables are written after each."""
    found: list[dict[str, Any]] = []
    failed, mistake = False, None
    for model in models:
        try:
            one = _in_a_process(options, rest, model)
        except UsageError as error:
            mistake = error
            break
        except RunFailedError as error:
            print(f"jaxvit: {model}: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        found.append(one)
        if options.json:
            print(json.dumps(one), flush=True)
        else:
            line = f"{model}: {in_ms(one['train_ms_per_step'])} a step, {one['images_per_s']:,.4g} images/s"
            print(line, file=sys.stderr, flush=True)
        if options.out:
            write_tables(found, Path(options.out))
    if found and not options.json:
        print(markdown(found), end="")
    if mistake:
        raise mistake
    return errors.SOME_INPUTS_FAILED if failed else errors.DONE


def _in_a_process(options: argparse.Namespace, rest: Sequence[str], model: str) -> dict[str, Any]:
    """The figures of one model.

    Raises:
      UsageError: what was asked for does not suit this model.
      RunFailedError: it could not be measured; the process's own line says why.
    """
    words = [f"--model={model}", "--json", f"--rounds={options.rounds}", f"--seconds={options.seconds}", *rest]
    words += [f"--batch={options.batch}"] if options.batch else []
    words += [f"--dtype={options.dtype}"] if options.dtype else []
    words += ["--synthetic"] if options.synthetic else []
    words += [f"--trace={Path(options.trace) / model.replace(':', '.')}"] if options.trace else []
    paths = [str(Path(jaxvit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "jaxvit.benchmark", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode:
        why = said[-1].removeprefix("jaxvit: ") if said else f"ended with code {done.returncode}"
        raise UsageError(f"{model}: {why}") if done.returncode == errors.USAGE else RunFailedError(why)
    for line in said:
        print(f"{model}: {line}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def _show_plan(subject: Subject, options: argparse.Namespace) -> None:
    facts = facts_of(subject)
    sizes = sorted({1, facts["batch"]})
    of = {"document": "its document's", "defaults": "the defaults", "config": "the config's"}[facts["workload"]]
    show_lines(
        {
            "model": f"{facts['model']}, {facts['params']:,} parameters, {facts['macs']:,} multiply-adds an image",
            "images": f"{images_of(facts)}, {facts['classes']} classes, feed {facts['feed']}",
            "training": f"batch {facts['batch']}, {facts['optimizer']}: {of}",
            "dtype": facts["dtype"],
            "device": device_of(facts),
            "inference": f"batches of {' and '.join(map(str, sizes))}",
            "effort": f"{options.rounds} rounds of {options.seconds:g} s for everything timed",
        }
    )


if __name__ == "__main__":
    command_line.run(main)
