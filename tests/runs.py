"""Helpers for tests with runs: stop them, and read their files."""

import jax

from jaxvit.config.plan import dataset_of, resolve
from jaxvit.run.assembly import assemble
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import read_jsonl
from jaxvit.training.stopping import StopRequest


class StopAt(StopRequest):
    """A stop request that triggers when it is read for the n-th time."""

    def __init__(self, reads, code):
        self.reads, self.code = reads, code
        super().__init__()

    @property
    def exit_code(self):
        self.reads -= 1
        return self.code if self.reads < 0 else 0

    @exit_code.setter
    def exit_code(self, value):
        pass


def newest_state(workdir, config):
    assembly = assemble(resolve(config))
    like = jax.jit(assembly.create_state)()
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, progress = checkpoints.restore(checkpoints.latest_step(), like)
    checkpoints.close()
    return state, progress


def parts(config):
    """(assembly, source of the training images) of a config."""
    dataset = dataset_of(config)
    plan = resolve(config, dataset=dataset)
    return assemble(plan), dataset.read(plan.data.train)


def metrics(workdir):
    return read_jsonl(workdir / "metrics.jsonl")


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
