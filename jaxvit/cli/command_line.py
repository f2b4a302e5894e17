"""The entry point: lists the verbs, runs one (each has a file here), turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxvit import errors
from jaxvit._version import __version__
from jaxvit.cli.other_libraries import quieten_libraries
from jaxvit.cli.streams import (
    discard_output,
    escape_unknown_characters,
    needs_stdout,
    open_missing_streams,
    print_error,
    refuse_closed_stdout,
)
from jaxvit.config.overrides import ELSEWHERE
from jaxvit.devices.runtime import choose_cpu_libraries, keep_compiled_programs, take_huge_pages, why_refused
from jaxvit.errors import UsageError, nearest
from jaxvit.files import no_empty_folders

VERBS = {
    "train": "train a model from a config into a run folder; the same command resumes",
    "sweep": "train a grid of runs over values of config keys; prints a table, draws a figure",
    "retrofit": "put a TokenLearner into a trained ViT, with the original as the teacher",
    "evaluate": "evaluate a trained model on a split: per class, confusion matrix, calibration",
    "predict": "classify image files with a trained model",
    "embed": "write the features of images before the head; draw a map of them",
    "probe": "test how much a model's frozen features tell about a data set: linear, few images, nearest neighbours",
    "report": "compare runs in a table; draw the figures of each",
    "export": "export a trained model to files that run without jaxvit: StableHLO, ONNX, SavedModel, safetensors",
    "convert": "make a folder for the other verbs of published weights: PyTorch, safetensors or NumPy",
    "benchmark": "measure the speed and memory of models on this machine",
    "compile": "compile the training step for TPUs and GPUs that are not here: memory, kernels, communication",
    "reproduce": "run the documents' experiments and compare with their reported results",
    "summary": "show a model's modules, shapes, parameters, tokens and multiply-adds",
    "data": "prepare data sets, draw augmented batches, export images, measure input speed",
}

_USAGE = """usage: jaxvit VERB [options]      (the same as: python -m jaxvit VERB [options])

verbs:
{verbs}

  jaxvit VERB --help    options and examples of a verb
  jaxvit --version

start here: jaxvit train --config=digits --workdir=runs/digits
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a one-line UsageError, with the closest known flag for an unknown one."""

    def __init__(self, verb: str, description: str, epilog: str = ""):
        form, title = argparse.RawDescriptionHelpFormatter, f"jaxvit {verb}"
        super().__init__(title, description=description, epilog=epilog, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, tokens: Sequence[str]) -> None:
        """Raises UsageError for the first word that was not recognized."""
        if tokens:
            flag = tokens[0].partition("=")[0]
            if flag.startswith("--model."):
                raise UsageError(f"{tokens[0]}: a model's attributes are config keys; write --config.{tokens[0][2:]}")
            known = [o for action in self._actions for o in action.option_strings]
            near = nearest(flag, known)
            if "--config" in known and flag.lstrip("-") in ELSEWHERE:
                near = f" (did you mean '--config.{ELSEWHERE[flag.lstrip('-')]}'?)"
            raise UsageError(f"unknown argument '{tokens[0]}'{near}; see {self.prog} --help")


def run(verb: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and exits the process; known errors print one line on stderr and set the exit code.

    Args:
      verb: function from the arguments to the exit code.
      argv: arguments; None = from `sys.argv`.
    """
    closed = open_missing_streams()
    if argv is None and _is_the_process():
        take_huge_pages(sys.orig_argv[1:])
    escape_unknown_characters()
    quieten_libraries()
    keep_compiled_programs()
    choose_cpu_libraries()
    words = list(sys.argv[1:] if argv is None else argv)
    if "stdout" in closed and needs_stdout(words):
        verb = refuse_closed_stdout
    _leave(*_carry_out(verb, words))


def _carry_out(verb: Callable[[list[str]], int], words: list[str]) -> tuple[int, BaseException | None]:
    """Runs a verb; returns its exit code and the error that ended it, already printed, or None.

    Raises:
      Exception: an unexpected error (a bug) in a single-process run; Python prints the traceback.
    """
    try:
        with no_empty_folders():
            try:
                code = verb(words)
            except SystemExit as left:  # from argparse, after --help
                code = int(left.code or 0)
            sys.stdout.flush()  # a failure here is still reported as one line
        return code, None
    except UsageError as error:
        return _complain(error, errors.USAGE), error
    except errors.RunFailedError as error:
        return _complain(error, errors.CANNOT_GO_ON), error
    except errors.StoppedError as error:
        return _complain(error, error.exit_code), None
    except KeyboardInterrupt as error:
        return _complain("stopped immediately; state saved before is kept", errors.INTERRUPTED), error
    except BrokenPipeError as error:  # the reader of stdout, such as `| head`, has exited
        discard_output()
        return errors.SOME_INPUTS_FAILED, error
    except Exception as error:
        if reason := why_refused(error):
            return _complain(reason, errors.USAGE), UsageError(reason)
        if failed := errors.find_system_error(error):
            try:
                sys.stdout.flush()
            except OSError:  # standard output is what failed, as for `> /dev/full`
                failed.filename = failed.filename or "standard output"
                discard_output()
            return _complain(errors.describe_system_error(failed), errors.CANNOT_GO_ON), error
        if not _joined():
            raise
        traceback.print_exc()
        return 1, error


def _leave(code: int, met: BaseException | None) -> NoReturn:
    """Exits the process. In a multi-process run, waits for the other processes if they ended in agreement."""
    sys.stdout.flush()
    processes = _joined()
    agreed = not processes or met is None or processes.is_agreed(met)
    if processes and agreed:
        processes.leave()
    if not agreed or code not in (errors.DONE, errors.USAGE):
        # The other processes do not know about this error, so waiting for them would hang. After a failure, background
        # threads would also delay the exit and print errors.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_the_process() -> bool:
    """True if this process only runs a verb, not a test, debugger, notebook or other program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.partition(".")[0] if spec else os.path.basename(sys.argv[0])
    words = sys.argv[1:]
    given = sys.orig_argv[len(sys.orig_argv) - len(words) :]
    return name == "jaxvit" and given == words and sys.gettrace() is None and threading.active_count() == 1


def _joined() -> Any:
    """The module `jaxvit.devices.processes` if this process belongs to a multi-process run, else None."""
    processes = sys.modules.get("jaxvit.devices.processes")
    return processes if processes and processes.is_joined() else None


def _complain(message: object, code: int) -> int:
    print_error(message)
    return code


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: imports the verb's module and runs its `main`."""
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
        raise UsageError(f"there is no verb '{verb}'{nearest(verb, VERBS)}; verbs: {', '.join(VERBS)}")
    return importlib.import_module(f"jaxvit.cli.{verb}").main(rest)
