"""The command line: `jaxvit VERB …`, config overrides, and errors as one line with the right exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxvit import errors
from jaxvit._version import __version__
from jaxvit.errors import UsageError, first_line, nearest
from jaxvit.training.runtime import choose_cpu_libraries, keep_compiled_programs, take_huge_pages

VERBS = {
    "train": "train a model as a config says, into a run directory; resume by the same command",
    "sweep": "train a grid of runs over values of config keys; one table and one figure",
    "evaluate": "measure a trained model on a split: per class, confusion, calibration",
    "predict": "say what a trained model sees in image files",
    "report": "draw a run's figures; compare runs in one table",
    "export": "write a trained model as files that run without jaxvit: StableHLO, ONNX, SavedModel, safetensors",
    "benchmark": "measure the speed and the memory of models on this machine",
    "reproduce": "run the documents' experiments and compare with what they report",
    "summary": "show a model's modules, shapes, parameters, tokens and multiply-adds",
    "data": "prepare a data set, show what training sees of it, export images, measure the input",
}

_USAGE = """usage: jaxvit VERB [options]      (the same as: python -m jaxvit.VERB [options])

verbs:
{verbs}

  jaxvit VERB --help    what a verb takes, with examples
  jaxvit --version

start here:
  jaxvit train --config=configs/digits.py --workdir=runs/digits
"""


class Parser(argparse.ArgumentParser):
    """argparse with one clear line in place of a usage dump, and the nearest real flag for a wrong one."""

    def __init__(self, verb: str, description: str, epilog: str = ""):
        super().__init__(
            prog=f"jaxvit {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, tokens: Sequence[str]) -> None:
        """Raises UsageError for the first of the tokens that `parse_known_args` could not place."""
        if tokens:
            flag = tokens[0].partition("=")[0]
            known = [o for action in self._actions for o in action.option_strings]
            near = nearest(flag, known)
            if "--config" in known and flag.lstrip("-") in _ELSEWHERE:
                near = f" (did you mean '--config.{_ELSEWHERE[flag.lstrip('-')]}'?)"
            raise UsageError(f"unknown argument '{tokens[0]}'{near}; see {self.prog} --help")


def parse_config_arguments(spec: str, tokens: Sequence[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """Load the config file and apply ``--config.key=value`` overrides through ml_collections.

    Args:
      spec: value of ``--config``: a file, with ``:variant`` if wanted.
      tokens: the command line's remaining words.

    Returns:
      (config, overrides {key: value}, words that are no overrides).

    Raises:
      UsageError: unknown key, or a value of the wrong type.
    """
    from jaxvit.config import load_config_file

    overrides, _ = split_overrides(tokens)
    chosen_model = [value for key, value, _ in overrides if key == "model.name"]
    return parse_overrides(load_config_file(spec, chosen_model[-1] if chosen_model else ""), tokens)


def parse_overrides(config: Any, tokens: Sequence[str]) -> tuple[Any, dict[str, Any], list[str]]:
    """Apply ``--config.key=value`` overrides to a config; see `parse_config_arguments`."""
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from jaxvit.config import flatten

    overrides, rest = split_overrides(tokens)
    types = {path: type(value) for path, value in flatten(config)}
    for key, _, token in overrides:
        if key not in types:
            if isinstance(_lookup(config, key), ConfigDict):
                inner = [path for path in types if path.startswith(key + ".")]
                raise UsageError(f"{token}: '{key}' is a section; set one of its keys, such as config.{inner[0]}")
            why = _why_no_model_key(config, key)
            raise UsageError(f"{token}: there is no key config.{key}{f': {why}' if why else _suggest(key, types)}")
    values = flags.FlagValues()
    argv = ["jaxvit", *(token for _, _, token in overrides)]
    for (key, value, _), position in zip(overrides, range(1, len(argv)), strict=True):
        if types[key] is not bool:  # one spelling for absl: --config.key=value
            argv[position] = f"--config.{key}={value}"
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UsageError(_explain_value_error(overrides, types, error)) from None
    applied = dict(values["config"].override_values)
    for key, value in applied.items():
        # absl's parser takes what is no Python literal for a tuple of one string.
        if types[key] is tuple and any(isinstance(v, str) and v.startswith(("(", "[")) for v in value):
            raise UsageError(f"--config.{key}={value[0]}: expected {_TYPE_NAMES[tuple]}")
    return values.config, applied, rest


def _why_no_model_key(config: Any, key: str) -> str:
    """What a class of one's own lacks for one of its attributes to be a key."""
    section, _, attribute = key.partition(".")
    name = _lookup(config, "model.name") or ""
    if section != "model" or ":" not in name:
        return ""
    from jaxvit.models.registry import why_no_key

    return why_no_key(name, attribute)


def split_overrides(tokens: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Sorts words into overrides (key, value, as written) and the rest; takes `--config.k=v`, `--config.k v`.

    A switch takes the next word only if that is true or false: `--config.augment.flip DIR` is a flag and a word.
    """
    from jaxvit.config import KEYS

    switches = {path for path, key in KEYS.items() if isinstance(key.default, bool)}
    overrides, rest = [], []
    words = list(tokens)
    while words:
        word = words.pop(0)
        if not word.startswith(("--config.", "--noconfig.")):
            rest.append(word)
            continue
        name, equals, value = word.partition("=")
        key = name.removeprefix("--no").removeprefix("--").removeprefix("config.")
        takes_next = words and not words[0].startswith("--")
        if key in switches:
            takes_next = takes_next and words[0].lower() in ("true", "false", "0", "1", "t", "f")
        if not equals and not word.startswith("--no") and takes_next:
            value = words.pop(0)
            word = f"{name}={value}"
        overrides.append((key, value, word))
    return overrides, rest


def _lookup(config: Any, path: str) -> Any:
    for part in path.split("."):
        if not hasattr(config, "keys") or part not in config:
            return None
        config = config[part]
    return config


# What other trainers call it.
_ELSEWHERE = {
    "epochs": "train.duration",
    "num_epochs": "train.duration",
    "steps": "train.duration",
    "lr": "optim.peak_lr",
    "learning_rate": "optim.peak_lr",
    "wd": "optim.weight_decay",
    "batch": "train.batch_size",
    "batch_size": "train.batch_size",
    "dataset": "data.name",
    "data": "data.name",
    "optimizer": "optim.name",
}


def _suggest(key: str, known: Sequence[str] | dict) -> str:
    elsewhere = _ELSEWHERE.get(key.rpartition(".")[2])
    if elsewhere in known:
        return f" (did you mean '{elsewhere}'?)"
    leaves = {path.rpartition(".")[2]: path for path in known}
    if "." not in key and key in leaves:
        return f" (did you mean '{leaves[key]}'?)"
    direct = nearest(key, known)
    if direct:
        return direct
    by_leaf = nearest(key.rpartition(".")[2], leaves)
    return by_leaf and f" (did you mean '{leaves[by_leaf.split(chr(39))[1]]}'?)"


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple such as '(1, 2)'"}


def _explain_value_error(overrides: Sequence[tuple[str, str, str]], types: dict[str, type], error: Exception) -> str:
    for key, value, token in overrides:
        if not value and types[key] in (int, float):
            return f"{token}: the value is missing; write --config.{key}={'0.1' if types[key] is float else '1'}"
        if f"config.{key}" in str(error):
            return f"{token}: expected {_TYPE_NAMES.get(types[key], types[key].__name__)}, got '{value}'"
    return first_line(error)


def quieten_libraries() -> None:
    """Keeps other libraries' chatter off the user's terminal; with JAXVIT_VERBOSE set it is all shown.

    Among it: a missing OpenCV, TPU probing, and the tracebacks that background writers print beside the error that they
    raise in the main thread as well.
    """
    if os.environ.get("JAXVIT_VERBOSE"):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("jax._src.xla_bridge", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda args: None
    sys.unraisablehook = lambda unraisable: None


def run(verb: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and leaves the process: every known failure is one line on stderr and its exit code."""
    if argv is None and _is_the_process():
        take_huge_pages(sys.orig_argv[1:])
    quieten_libraries()
    keep_compiled_programs()
    choose_cpu_libraries()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: a model of one's own lies in the working folder
    code, met = errors.DONE, None
    try:
        code = verb(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        code, met = _complain(error, errors.USAGE), error
    except errors.RunFailedError as error:
        code, met = _complain(error, errors.CANNOT_GO_ON), error
    except errors.StoppedError as error:
        code = _complain(error, error.exit_code)
    except KeyboardInterrupt as error:
        code, met = _complain("stopped at once; what was saved before is kept", errors.INTERRUPTED), error
    except BrokenPipeError as error:
        # The reader of our output (`| head`) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, met = errors.SOME_INPUTS_FAILED, error
    except Exception as error:
        if isinstance(error, OSError) and errors.is_disk_full(error):
            code, met = _complain(errors.disk_full(error), errors.CANNOT_GO_ON), error
        elif _joined():
            traceback.print_exc()
            code, met = 1, error
        else:
            raise
    sys.stdout.flush()
    processes = _joined()
    agreed = not processes or met is None or processes.is_agreed(met)
    if processes and agreed:
        processes.leave()
    if not agreed or code not in (errors.DONE, errors.USAGE):
        # The others of the run know nothing of what has not been agreed on: to leave with them would be to wait. And
        # background writers of a run that ended badly would hold the process up, and complain.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_the_process() -> bool:
    """Whether this process is nothing but a verb: no test, debugger, notebook or program that calls one."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.partition(".")[0] if spec else os.path.basename(sys.argv[0])
    words = sys.argv[1:]
    given = sys.orig_argv[len(sys.orig_argv) - len(words) :]
    return name == "jaxvit" and given == words and sys.gettrace() is None and threading.active_count() == 1


def _joined() -> Any:
    """`jaxvit.training.processes`, if this is one of several processes that are one run."""
    processes = sys.modules.get("jaxvit.training.processes")
    return processes if processes and processes.is_joined() else None


def _complain(message: object, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it; the exit code says it too
        sys.stdout.flush()
        print(f"jaxvit: {message}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: picks the verb's module and runs its `main`."""
    run(_dispatch, argv)


def _dispatch(words: list[str]) -> int:
    listing = "\n".join(f"  {name:<12} {line}" for name, line in VERBS.items())
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE.format(verbs=listing))
        return errors.DONE if words else errors.USAGE
    if words[0] == "--version":
        print(f"jaxvit {__version__}")
        return errors.DONE
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise UsageError(f"there is no verb '{verb}'{nearest(verb, VERBS)}; jaxvit has {', '.join(VERBS)}")
    module = importlib.import_module(f"jaxvit.{verb}")
    if hasattr(module, "__path__"):  # a package's verb is what `python -m` runs
        module = importlib.import_module(f"jaxvit.{verb}.__main__")
    return module.main(rest)
