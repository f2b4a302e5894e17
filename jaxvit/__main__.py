"""`python -m jaxvit VERB …`, the same as `jaxvit VERB …`."""

from jaxvit.command_line import main

main()
