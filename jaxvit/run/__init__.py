"""Runs: from a config to a finished run folder; several seeds, folds, and sweeps over config values.

train          `jaxvit.train`, the entry point: starts or resumes a run, or returns its result
folder         the files in a run folder, and the config that it belongs to
environment    versions and devices of a run
assembly       model, transforms and optimizer of a plan, and the functions that they make
initial_state  initial values that follow a formula
program        feeds and compiled functions
execution      one run, from the state of its folder to its result
seeds          several seeds, trained together or in turn; their mean and standard deviation
folds          cross-validation: a run per fold
sweep          a grid of runs and its table
dry_run        the output of `--dry_run`
messages       what a run prints
"""
