"""The machine: devices and where arrays lie on them, several processes as one run, how XLA is set up."""
