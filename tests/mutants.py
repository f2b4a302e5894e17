"""Shows that the tests notice mistakes: makes ten, one at a time, in a copy of the checkout, and runs the tests.

    python tests/mutants.py              # all of them
    python tests/mutants.py shift top-k

Each mutant names the tests that must fail; without it they must pass. The exit code is 1 if a mutant survives. A line
or a test that is no longer there is an error: adapt the mutant.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PASSED, FAILED = 0, 1  # exit codes of pytest; all others mean that the tests did not run


class Mutant(NamedTuple):
    """One mistake: `line` of `file` becomes `mistake`. `line` must occur exactly once."""

    file: str
    line: str
    mistake: str
    tests: tuple[str, ...]


MUTANTS = {
    "step": Mutant(  # the mean is over the padded batch, not over its images
        "jaxvit/training/step.py",
        'return total / examples["count"], (logits_BK, loss_B)',
        "return total / loss_B.shape[0], (logits_BK, loss_B)",
        ("tests/training/test_step.py::test_padding_changes_nothing",),
    ),
    "loop": Mutant(  # a last epoch that is cut short is not evaluated
        "jaxvit/training/loop.py",
        "epoch_end = step % program.steps_per_epoch == 0 or step == program.steps",
        "epoch_end = step % program.steps_per_epoch == 0",
        ("tests/training/test_loop.py::test_a_last_epoch_that_is_cut_short_is_evaluated_too",),
    ),
    "checkpoint": Mutant(  # each checkpoint names itself as the best, so the best is deleted
        "jaxvit/training/checkpoint.py",
        'metrics={"best_step": best_step}, force=True)',
        'metrics={"best_step": step}, force=True)',
        ("tests/training/test_checkpoint.py::test_the_newest_and_the_best_survive",),
    ),
    "shift": Mutant(  # moves in the opposite direction
        "jaxvit/ops/shift.py",
        'padding[axis] = (0, step) if empty == "last" else (step, 0)',
        'padding[axis] = (step, 0) if empty == "last" else (0, step)',
        ("tests/ops/test_shift_ops.py::test_both_operations",),
    ),
    "token-pooling": Mutant(  # the mean counts masked tokens
        "jaxvit/ops/tokens.py",
        "weights_BSN = weights_BSN / count[:, None, None]",
        "weights_BSN = weights_BSN / x_BNC.shape[1]",
        ("tests/ops/test_token_ops.py::test_pooling",),
    ),
    "decay-mask": Mutant(  # attention biases, which have two axes, decay
        "jaxvit/training/optimizer.py",
        'return jnp.ndim(value) > 1 and name != "bias"',
        "return jnp.ndim(value) > 1",
        ("tests/training/test_optimizer.py::test_not_1d_is_the_rank_of_the_authors_arrays",),
    ),
    "schedule": Mutant(  # the rate falls too slowly: a warm-up does not shorten the cosine
        "jaxvit/training/optimizer.py",
        "length = s.total_steps - s.warmup_steps - s.cooldown_steps",
        "length = s.total_steps - s.cooldown_steps",
        ("tests/training/test_optimizer.py::test_schedule",),
    ),
    "split-parsing": Mutant(  # a percentage rounds down
        "jaxvit/data/splits.py",
        'value = round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)',
        'value = int(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)',
        ("tests/data/test_sources.py::test_split_expressions",),
    ),
    "padding-mask": Mutant(  # images that fill a batch up count
        "jaxvit/data/batches.py",
        "return np.resize(chosen, batch_size), (np.arange(batch_size) < len(chosen)).astype(np.float32)",
        "return np.resize(chosen, batch_size), np.ones(batch_size, np.float32)",
        ("tests/data/test_batches.py",),
    ),
    "top-k": Mutant(  # a sixth place counts as one of the first five
        "jaxvit/training/metrics.py",
        '"top5": total(ahead_B < min(top, logits_BK.shape[-1])),',
        '"top5": total(ahead_B <= min(top, logits_BK.shape[-1])),',
        ("tests/training/test_metrics.py::test_against_loops",),
    ),
}


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """(pytest's exit code, its output)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def kill(copy: Path, mutant: Mutant) -> bool:
    """Whether the mutant's tests fail. The copy is left as it was."""
    file = copy / mutant.file
    before = file.read_text()
    if before.count(mutant.line) != 1:
        sys.exit(f"{mutant.file} has this line {before.count(mutant.line)} times, not once: {mutant.line}")
    try:
        file.write_text(before.replace(mutant.line, mutant.mistake))
        code, output = run_tests(copy, list(mutant.tests))
    finally:
        file.write_text(before)
    if code not in (PASSED, FAILED):
        sys.exit(f"the tests {', '.join(mutant.tests)} did not run:\n{output}")
    return code == FAILED


def main(names: list[str]) -> int:
    """Runs the mutants of these names, or all; returns the exit code."""
    for name in names:
        if name not in MUTANTS:
            sys.exit(f"there is no mutant '{name}': {', '.join(MUTANTS)}")
    chosen = {name: MUTANTS[name] for name in names or MUTANTS}
    with tempfile.TemporaryDirectory(prefix="jaxvit-mutants-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv", "runs"))
        code, output = run_tests(copy, sorted({test for mutant in chosen.values() for test in mutant.tests}))
        if code != PASSED:
            sys.exit(f"the tests must pass before a mistake is made:\n{output}")
        survivors = []
        for name, mutant in chosen.items():
            started = time.monotonic()
            dead = kill(copy, mutant)
            print(f"{name:14} {'caught' if dead else 'SURVIVES'} {time.monotonic() - started:6.1f} s", flush=True)
            survivors += [] if dead else [name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
