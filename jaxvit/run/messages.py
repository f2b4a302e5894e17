"""Prints what a run is about to do, and its result. `jaxvit.training.progress` prints its progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import jax

from jaxvit.config.plan_types import Plan
from jaxvit.models.count import count_params
from jaxvit.run.assembly import Assembly
from jaxvit.run.result_types import Result
from jaxvit.shown import terminal
from jaxvit.training.frozen import describe_frozen
from jaxvit.training.loop import Position


def print_start(plan: Plan, assembly: Assembly, position: Position) -> None:
    """Prints the model, the images, the number of steps, the warnings, and the step that the run resumes from."""
    t = plan.train
    if position.step == t.steps or position.stopped_early:
        print("the training is done; the test follows", flush=True)
        return
    devices = f"{t.devices} {jax.devices()[0].device_kind} device{'s' if t.devices > 1 else ''}"
    print(
        f"{plan.model.name} with {count_params(assembly.abstract_state.variables):,} parameters on {plan.data.name}: "
        f"{plan.data.train_count:,} images to train, {plan.data.validation_count:,} to validate, "
        f"{plan.data.test_count:,} to test; {t.steps:,} steps of {t.batch_size} on {devices}"
    )
    for line in assembly.initial.describe() if assembly.initial and not position.step else ():
        print(terminal(line))
    if plan.optim.freeze:
        print(terminal(describe_frozen(assembly.abstract_state.params, plan.optim.freeze)))
    for phrase in plan.warnings:
        print(terminal(f"warning: {phrase}"), file=sys.stderr, flush=True)
    if position.step:
        print(f"resuming from step {position.step:,}")
    print("compiling, or fetching what an earlier start has compiled", flush=True)


def print_finished(result: Result, path: Path) -> Result:
    """Prints and returns the result of a run that was already finished."""
    print_result(result, path, "this run is finished; nothing was trained")
    print("to take it further: the same command with a longer --config.train.duration")
    return result


def print_result(result: Result, path: Path, remark: str = "") -> None:
    """Prints the result of one run or of several seeds or folds, after an optional remark."""
    if remark:
        print(remark)
    test = result["test"]
    if "std" in test:
        print(
            f"test accuracy {test['top1']:.2%} ± {test['std']['top1']:.2%} (mean ± standard deviation of "
            f"{test.get('n')} {'folds' if 'folds' in result else 'seeds'}, {test['count']:,} images), "
            f"top-5 {test['top5']:.2%}, loss {test['loss']:.4f}"
        )
    elif test:
        right = round(test["top1"] * test["count"])
        print(
            f"test accuracy {test['top1']:.2%} ({right:,} of {test['count']:,} images), "
            f"top-5 {test['top5']:.2%}, loss {test['loss']:.4f}"
        )
    if "macro_f1" in test:
        values, spread = cast(Mapping[str, float], test), test.get("std")
        by_class = [
            f"{words} {values[name]:.2%}" + (f" ± {spread[name]:.2%}" if spread else "")
            for name, words in (("macro_f1", "macro F1"), ("balanced_accuracy", "balanced accuracy"))
        ]
        print(f"all classes alike: {', '.join(by_class)}")
    seconds = result["seconds"]
    early = ", stopped early" if result["stopped_early"] else ""
    several = result.get("seeds") or result.get("folds")
    if several:
        chosen = _chosen_of_each(several)
    elif result["weights_of"] == "best":
        chosen = f"weights of epoch {result['best_epoch']}, the best on validation"
    elif result["validation"]:
        chosen = f"last weights, since those of epoch {result['best_epoch']}, the best on validation, are damaged"
    else:
        chosen = "last weights"
    if several:
        steps = [one["steps"] for one in several]
        fewest = f"{min(steps):,} to " if min(steps) < max(steps) else ""
        print(f"{chosen}; {fewest}{max(steps):,} steps each; {seconds['train']:.1f} s of training in all")
    else:
        print(f"{chosen}; {result['steps']:,} steps{early}; {seconds['train']:.1f} s of training")
    print(terminal(f"run: {path}"), flush=True)


def _chosen_of_each(seeds: Sequence[Result]) -> str:
    """Describes which weights the tests of several seeds or folds used."""
    best = [one for one in seeds if one["weights_of"] == "best"]
    if not best:
        damaged = ", since the best on validation are damaged" if seeds[0]["validation"] else ""
        return f"last weights{damaged}"
    phrase = f"weights of epochs {', '.join(str(one['best_epoch']) for one in best)}, the best on validation"
    kind = "seed" if "seed" in seeds[0] else "fold"
    others = ", ".join(str(one.get(kind)) for one in seeds if one["weights_of"] != "best")
    return f"{phrase}; of {kind}s {others} the last, since the best are damaged" if others else phrase
