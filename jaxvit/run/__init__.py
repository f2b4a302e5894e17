"""One run, from a config to a finished folder; several seeds of it; a sweep over its config's values.

train        the way in, `jaxvit.train`: refuses, goes on, or begins
folder       what lies in a run's folder, and which config it belongs to
environment  what the run ran on
assembly     model, transforms and optimizer, made as the Plan says
program      these tied to data and devices, and compiled
execution    one run: from what its folder holds to its result
seeds        several seeds: a run each, trained together or in turn, and their mean and spread
sweep        a grid of runs, and their table
dry_run      what `--dry_run` prints in place of all that
messages     what a run says on the terminal
"""
