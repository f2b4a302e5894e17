"""`jaxvit retrofit`: puts a TokenLearner into a trained ViT, and trains it with the original as the teacher."""

from __future__ import annotations

from pathlib import Path

from jaxvit.cli import command_line
from jaxvit.errors import DONE, UsageError
from jaxvit.files import local_path
from jaxvit.run.retrofit import first_folder, plan_retrofit, retrofit
from jaxvit.shown import terminal

_EXAMPLES = """examples:
  jaxvit retrofit runs/vit --at=2 --tokens=16 --workdir=runs/vit16
  jaxvit retrofit runs/vit --at=2 --tokens=16 --workdir=runs/vit16 --dry_run      prints the saving only
  jaxvit evaluate --workdir=runs/vit16                                            an ordinary run

The new layer starts as average pooling over a grid. First it alone is trained (DIR-new-part), then the whole model at a
smaller rate (DIR), both with the original as the teacher. The data set of the original run must be there. The same
command resumes. docs/tokens.md explains the method.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run, or numbers that do not fit its model.
    """
    parser = command_line.Parser("retrofit", "Puts a TokenLearner into a trained ViT.", _EXAMPLES)
    parser.add_argument("run", nargs="?", default="", type=local_path, metavar="RUN", help="folder of the trained run")
    parser.add_argument("--at", type=int, metavar="BLOCK", help="index of the block that the new layer precedes")
    parser.add_argument("--tokens", type=int, metavar="N", help="number of learned tokens")
    parser.add_argument("--fuse", action="store_true", help="put a TokenFuser after each block from there on")
    parser.add_argument("--workdir", default="", type=local_path, metavar="DIR", help="folder of the new run")
    parser.add_argument("--first", default="1 epochs", help="training of the new layer alone (default: 1 epochs)")
    parser.add_argument("--then", default="4 epochs", help="training of the whole model (default: 4 epochs)")
    parser.add_argument(
        "--rate", type=float, default=0.25, help="its learning rate, times the original's (default: .25)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the saving; train nothing")
    options, rest = parser.parse_known_intermixed_args(argv)
    parser.refuse_unknown(rest)
    for name, example in (
        ("run", "runs/vit"),
        ("at", "--at=2"),
        ("tokens", "--tokens=16"),
        ("workdir", "--workdir=new"),
    ):
        if getattr(options, name) in ("", None):
            raise UsageError(f"{'the trained run' if name == 'run' else f'--{name}'} is missing, such as {example}")
    if options.tokens < 1:
        raise UsageError(f"--tokens={options.tokens}: must be 1 or more")
    run, workdir = Path(options.run).absolute(), Path(options.workdir).absolute()
    if not run.is_dir():
        raise UsageError(f"{options.run}: there is no such folder; name that of a run")
    if workdir in (run, first_folder(run)):
        raise UsageError(f"--workdir={options.workdir}: this is the original run; name another folder")
    how = {"fuse": options.fuse, "first": options.first, "then": options.then, "rate": options.rate}
    planned = plan_retrofit(run, workdir, at=options.at, tokens=options.tokens, **how)
    share = planned.after / planned.before
    print(
        terminal(f"{planned.after:,} multiply-adds per image instead of {planned.before:,} ({share:.1%})"), flush=True
    )
    if options.dry_run:
        print("dry run: nothing was trained")
        return DONE
    retrofit(planned, workdir)
    return DONE
