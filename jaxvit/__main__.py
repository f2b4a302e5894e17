"""`python -m jaxvit VERB …`, the same as `jaxvit VERB …`."""

import os
import sys


def _forget_working_folder() -> None:
    """Takes the working folder away, where `python -m` looks for modules first.

    A PIL.py that came there with somebody's files would run in place of Pillow. When that folder is looked into after
    all, `jaxvit.own_code.search_working_folder` says.
    """
    try:
        here = os.getcwd()
    except OSError:  # it is gone
        here = ""
    if sys.flags.safe_path or not sys.path or sys.path[0] not in ("", here):
        return
    del sys.path[0]
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == here and here not in sys.path:
        sys.path.append(here)  # this package itself lies there, as in a checkout that is not installed


_forget_working_folder()

from jaxvit.cli.command_line import main  # noqa: E402

main()
