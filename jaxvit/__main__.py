"""`python -m jaxvit VERB …`, the same as `jaxvit VERB …`."""

from jaxvit.cli.command_line import main

main()
