"""Puts a TokenLearner into a ViT that is already trained: `jaxvit retrofit`.

Plain initialisation does not help there (google-research/scenic, issue 112). So the new layer starts as average pooling
over a grid (`learner_start='grid'`), and the original model teaches. First only the new layer is trained, then the
whole model at a small rate. Both stages are ordinary runs, made of the keys `init.*`, `distill.*` and `optim.freeze`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ml_collections import ConfigDict

from jaxvit.config.keys import set_value
from jaxvit.config.reader import ConfigReader
from jaxvit.errors import UsageError, first_line
from jaxvit.models.count import count_macs
from jaxvit.models.registry import create_model, resolve_class
from jaxvit.models.vit import ViT
from jaxvit.run.folder import read_config
from jaxvit.run.result_types import Result
from jaxvit.run.train import train
from jaxvit.training.stopping import StopRequest
from jaxvit.weights.model_json import ModelFacts, read_model

NEW = "*/token_learner_*|*/token_fuser_*"  # parameters that the original does not have
_ALL_BUT_NEW = "!*/token_*"


@dataclass(frozen=True)
class Retrofit:
    """The two runs of a retrofit.

    Attributes:
      new_part: config of the first: only the new layer is trained.
      whole: config of the second, which starts from the first.
      before, after: multiply-adds per image of the original and of the new model.
    """

    new_part: ConfigDict
    whole: ConfigDict
    before: int
    after: int


def plan_retrofit(
    run: Path, workdir: Path, *, at: int, tokens: int, fuse: bool = False, first: str, then: str, rate: float
) -> Retrofit:
    """Derives the configs of both runs from that of the original.

    Args:
      run: folder of the original run, of a ViT.
      workdir: folder of the second run; that of the first has the suffix '-new-part'.
      at: index of the block that the TokenLearner precedes.
      tokens: number of learned tokens.
      fuse: put a TokenFuser after each block from `at` on, so that the head sees the whole map.
      first, then: durations of the runs, such as '1 epochs'.
      rate: learning rate of the second run, as a factor of the original's `optim.peak_lr`, above 0.

    Raises:
      UsageError: the run is not of a ViT without a TokenLearner, or the numbers do not fit it.
    """
    if not 0 < rate < float("inf"):
        raise UsageError(f"--rate={rate:g}: must be above 0, and finite")
    config, facts = read_config(run), read_model(run)
    if ":" in facts.name or not issubclass(resolve_class(facts.name), ViT):
        raise UsageError(f"{run}: {facts.name} is not a ViT; a TokenLearner pools the patches of a ViT")
    attributes = dict(facts.attributes)
    if attributes.get("learner", "none") != "none":
        raise UsageError(f"{run}: this model has a TokenLearner already; name a run of a plain ViT")
    if attributes.get("pool") == "flatten":
        raise UsageError(f"{run}: pool='flatten' has weights for each token, which fewer tokens do not fit")
    depth = attributes.get("depth", 0)
    if not (isinstance(depth, int) and 0 <= at < depth):
        raise UsageError(f"--at={at}: the blocks of {run} are 0 to {cast(int, depth) - 1}")
    learner = {
        "learner": "v11_mlp",
        "learner_at": tuple(range(at, depth)) if fuse else (at,),
        "learner_tokens": tokens,
        "learner_reduce": "sum",
        "learner_start": "grid",
        "fuse": fuse,
        "reduce": "none",
    }
    before, after = _macs(facts, {"reduce": "none"}), _macs(facts, learner)
    if after >= before:
        raise UsageError(
            f"--at={at} --tokens={tokens}: this needs {after:,} multiply-adds per image, and the original only "
            f"{before:,}; choose an earlier block or fewer tokens"
        )

    def stage(start: Path, duration: str, **values: object) -> ConfigDict:
        made = config.copy_and_resolve_references()
        for key, value in {
            **{f"model.{name}": value for name, value in learner.items()},
            "init.from": str(start),
            "init.hash": "",
            "init.allow": NEW,
            "distill.from": str(run),
            "distill.hash": "",
            "train.duration": duration,
            "train.hooks": (),
            "seeds": (),
            **values,
        }.items():
            set_value(made, key, value)
        return made

    peak = ConfigReader(config)("optim.peak_lr", float)
    return Retrofit(
        stage(run, first, **{"optim.freeze": _ALL_BUT_NEW}),
        stage(first_folder(workdir), then, **{"optim.peak_lr": rate * peak, "init.allow": "", "optim.freeze": ""}),
        before,
        after,
    )


def first_folder(workdir: Path) -> Path:
    """The folder of the first run."""
    return workdir.with_name(f"{workdir.name}-new-part")


def retrofit(planned: Retrofit, workdir: Path, *, stop: StopRequest | None = None) -> Result:
    """Trains both runs, or resumes or reports them; returns the result of the second.

    Raises:
      UsageError, RunFailedError, StoppedError: see `jaxvit.train`.
    """
    train(planned.new_part, first_folder(workdir), stop=stop)
    return train(planned.whole, workdir, stop=stop)


def _macs(facts: ModelFacts, changes: dict[str, object]) -> int:
    known = dict(facts.attributes)
    try:
        model = create_model(facts.name, **{**known, **changes})
        return count_macs(model, facts.input_shape)["all"]
    except ValueError as error:
        raise UsageError(f"{facts.file}: {first_line(error)}") from None
