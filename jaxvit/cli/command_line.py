"""The command line: which verbs there are, how one is run, and errors as one line with the right exit code.

What a verb takes and does stands in the file of its name beside this one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxvit import errors
from jaxvit._version import __version__
from jaxvit.cli.other_libraries import quieten_libraries
from jaxvit.config.overrides import ELSEWHERE
from jaxvit.devices.runtime import choose_cpu_libraries, keep_compiled_programs, take_huge_pages, why_refused
from jaxvit.errors import UsageError, nearest
from jaxvit.shown import terminal

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


_USAGE = """usage: jaxvit VERB [options]      (the same as: python -m jaxvit VERB [options])

verbs:
{verbs}

  jaxvit VERB --help    what a verb takes, with examples
  jaxvit --version

start here:
  jaxvit train --config=digits --workdir=runs/digits
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
            if flag.startswith("--model."):
                raise UsageError(f"{tokens[0]}: a model's attributes are config keys; write --config.{tokens[0][2:]}")
            known = [o for action in self._actions for o in action.option_strings]
            near = nearest(flag, known)
            if "--config" in known and flag.lstrip("-") in ELSEWHERE:
                near = f" (did you mean '--config.{ELSEWHERE[flag.lstrip('-')]}'?)"
            raise UsageError(f"unknown argument '{tokens[0]}'{near}; see {self.prog} --help")


def run(verb: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb and leaves the process: every known failure is one line on stderr and its exit code.

    Args:
      verb: takes the words of the command and returns the exit code.
      argv: the words; None = those of the process.
    """
    if argv is None and _is_the_process():
        take_huge_pages(sys.orig_argv[1:])
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no '×' gets an escape for it, and not an error.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    quieten_libraries()
    keep_compiled_programs()
    choose_cpu_libraries()
    _leave(*_carry_out(verb, list(sys.argv[1:] if argv is None else argv)))


def _carry_out(verb: Callable[[list[str]], int], words: list[str]) -> tuple[int, BaseException | None]:
    """The exit code of a verb, and the error that ended it, which has been printed; None = there was none.

    Raises:
      Exception: a mistake of ours, in a process that is alone: Python shows where.
    """
    try:
        return verb(words), None
    except UsageError as error:
        return _complain(error, errors.USAGE), error
    except errors.RunFailedError as error:
        return _complain(error, errors.CANNOT_GO_ON), error
    except errors.StoppedError as error:
        return _complain(error, error.exit_code), None
    except KeyboardInterrupt as error:
        return _complain("stopped at once; what was saved before is kept", errors.INTERRUPTED), error
    except BrokenPipeError as error:
        # The reader of our output (`| head`) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.SOME_INPUTS_FAILED, error
    except Exception as error:
        if isinstance(error, OSError) and errors.is_disk_full(error):
            return _complain(errors.disk_full(error), errors.CANNOT_GO_ON), error
        if reason := why_refused(error):
            return _complain(reason, errors.USAGE), UsageError(reason)
        if not _joined():
            raise
        traceback.print_exc()
        return 1, error


def _leave(code: int, met: BaseException | None) -> NoReturn:
    """Ends the process with an exit code; of several that are one run, together with the others where they agreed."""
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
    """`jaxvit.devices.processes`, if this is one of several processes that are one run."""
    processes = sys.modules.get("jaxvit.devices.processes")
    return processes if processes and processes.is_joined() else None


def _complain(message: object, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it; the exit code says it too
        sys.stdout.flush()
        print(f"jaxvit: {terminal(message)}", file=sys.stderr)
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
    return importlib.import_module(f"jaxvit.cli.{verb}").main(rest)
