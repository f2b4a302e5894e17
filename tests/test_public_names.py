"""The public names that users' code and commands rely on: every change must be deliberate.

`python tests/test_public_names.py` updates public_names.txt; the diff shows what changes for users.
"""

from pathlib import Path

import jaxvit
from jaxvit import config
from jaxvit.cli.command_line import VERBS
from jaxvit.config.key_table import KEYS

FILE = Path(__file__).with_name("public_names.txt")


def public_names() -> str:
    sections = {
        "jaxvit": jaxvit.__all__,
        "jaxvit.layers": jaxvit.layers.__all__,
        "jaxvit.ops": jaxvit.ops.__all__,
        "jaxvit.models": jaxvit.models.__all__,
        "jaxvit.config": config.__all__,
        "verbs": VERBS,
        "config keys and their defaults": [f"{path} = {key.default!r}" for path, key in KEYS.items()],
    }
    return "\n\n".join("\n".join([f"[{title}]", *sorted(names)]) for title, names in sections.items()) + "\n"


def test_the_public_names_are_those_of_the_list():
    assert public_names() == FILE.read_text(), "if this change is meant, run: python tests/test_public_names.py"


if __name__ == "__main__":
    FILE.write_text(public_names())
