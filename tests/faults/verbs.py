"""Runs verbs of jaxvit one after another, each in a forked process whose parent has imported everything.

`python tests/faults/verbs.py` reads one JSON object per line from stdin, and answers each with one on stdout::

    {"argv": ["train", …], "fault": {"folder": "/…", "kinds": 15, "number": 7, "errno": 5, "stays": false}}
    {"code": 70, "out": "…", "err": "…", "cpu": 0.9, "calls": ["2 /…", …]}

`fault` needs libfaults.so preloaded (see `faults.c`); without a number nothing fails, and `calls` has what could have.
`closed` lists streams (0, 1, 2) that the process is started without; `stdout` is a file to use as standard output, or
"broken" for a pipe that nobody reads. The fork comes before jax starts any thread.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path


def warm_up() -> None:
    """Imports what the verbs import; jax itself is started by none of it."""
    from jaxvit.cli import command_line

    for verb in ("train", "evaluate", "predict", "export", "report"):
        importlib.import_module(f"jaxvit.cli.{verb}")
    for name in (
        *(
            "array_record.python.array_record_module",
            "matplotlib.backends.backend_agg",
            "tensorboardX.event_file_writer",
        ),
        *("safetensors.numpy", "jaxvit.figures.history", "jaxvit.figures.predictions", "jaxvit.pages.gallery"),
        *("jaxvit.exports.hub", "jaxvit.data.digits", "jaxvit.data.image_folder", "sklearn.datasets"),
    ):
        importlib.import_module(name)
    command_line.quieten_libraries()
    from jaxvit.data.prepared import import_tfds
    from jaxvit.figures.history import draw_history

    import_tfds()
    with tempfile.TemporaryDirectory() as folder:  # fonts are looked up once
        record = {"step": 1, "epoch": 1, "loss": 1.0, "top1": 0.5}
        draw_history([record | {"split": s} for s in ("train", "validation")], Path(folder) / "x.png", 1, "x", 0.0)


def begin(asked: dict, files: dict[int, tempfile.SpooledTemporaryFile], calls: int) -> None:
    """Makes the forked process one that was started with these streams, and has the fault lie in wait."""
    sys.stdin.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = files[1].fileno()
    if asked.get("stdout") == "broken":
        reader, out = os.pipe()
        os.close(reader)
    elif "stdout" in asked:
        out = os.open(asked["stdout"], os.O_WRONLY)
    for number, source in ((0, nothing), (1, out), (2, files[2].fileno())):
        os.dup2(source, number)
    os.close(nothing)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", closefd=False) for n in range(3))
    sys.stderr.reconfigure(line_buffering=True)
    for number in asked.get("closed", ()):
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["jaxvit", *asked["argv"]]
    os.chdir(asked.get("cwd", "."))
    os.environ.update(asked.get("env", {}))
    if fault := asked.get("fault"):
        arm = ctypes.CDLL(None).faults_arm
        arm.argtypes = [
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
        ]
        folder, name = os.fsencode(fault["folder"]), os.fsencode(fault.get("name", ""))
        arm(
            folder,
            name,
            fault["kinds"],
            fault.get("number", 0),
            fault.get("errno", 0),
            fault.get("stays", False),
            calls,
        )


def main() -> None:
    warm_up()
    warnings.filterwarnings("ignore", message=".*fork")
    gc.freeze()  # else the first collection of each child writes to, and so copies, all of the memory that it shares
    reader, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    for line in reader:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as calls:
            child = os.fork()
            if not child:
                answers.close()
                begin(asked, {1: out, 2: err}, calls.fileno())
                from jaxvit.cli.command_line import main as jaxvit

                jaxvit(asked["argv"])  # leaves
            _, status, used = os.wait4(child, 0)
            texts = []
            for file in (out, err, calls):
                file.seek(0)
                texts.append(file.read().decode(errors="backslashreplace"))
        answer = {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}
        answer |= {"cpu": used.ru_utime + used.ru_stime, "calls": texts[2].splitlines()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
