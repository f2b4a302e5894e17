"""`python -m jaxvit VERB …`, the same as `jaxvit VERB …`."""

import os
import sys


def _forget_working_folder() -> None:
    """Removes the working folder from the front of `sys.path`, where `python -m` puts it.

    Otherwise a file `PIL.py` in a downloaded folder would be imported instead of Pillow. The user's own code is still
    found there: `jaxvit.own_code.search_working_folder` adds the folder at the end of the path when it is needed.
    """
    try:
        here = os.getcwd()
    except OSError:  # the folder was deleted
        here = ""
    if sys.flags.safe_path or not sys.path or sys.path[0] not in ("", here):
        return
    del sys.path[0]
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == here and here not in sys.path:
        sys.path.append(here)  # jaxvit itself is imported from here: a checkout that is not installed


_forget_working_folder()

from jaxvit.cli.command_line import main  # noqa: E402

main()
