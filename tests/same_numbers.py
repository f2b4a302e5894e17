"""Shows that a change of the code changes no number: record before it, compare after it.

    python tests/same_numbers.py record /tmp/before
    python tests/same_numbers.py compare /tmp/before

Recorded are the lowered StableHLO of a training step of the nine tutorial models (without locations) with their
initial parameters, a run of 6 epochs of four digits models with its result and `evaluate`, `summary` of every named
model, and the hashes of all configs. All but times must be equal. It takes some five minutes on two CPU cores; the same
machine and the same versions are needed for both. Run folders of before must still be evaluated, and resume.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import jaxvit
from jaxvit.config import load_config_file
from jaxvit.config.identity import config_hash
from jaxvit.devices.sharding import make_mesh, shard_state
from jaxvit.run.program import jit_train_step, make_feed
from jaxvit.speed.subject import document_config, make_subject

ROOT = Path(__file__).parents[1]
NINE = (
    *("tutorial_fashion_vit", "tutorial_fashion_fast_vit", "tutorial_mini_vit", "tutorial_mini_vit_8l"),
    *("tutorial_mini_vit_tl4", "tutorial_mini_vit_tl8", "tutorial_vit_cifar100", "tutorial_shiftvit", "tutorial_cct"),
)
RUNS = ("vit", "cct", "shiftvit", "token_fuser")
TIMES = ("seconds",)


def step_of(name: str) -> tuple[str, str]:
    """(StableHLO of a model's training step, hash of its initial parameters with their names)."""
    subject = make_subject(document_config(name), synthetic=True, origin="document")
    plan, assembly = subject.plan, subject.assembly
    mesh = make_mesh(1)
    layout = shard_state(mesh, assembly.abstract_state)
    state = jax.jit(assembly.create_state, out_shardings=layout)(assembly.init_key())
    feed = make_feed(plan, assembly, subject.dataset.read(plan.data.train), mesh, 1)
    call = feed(0, 1)
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(jax.device_get(leaf).tobytes())
    return jit_train_step(assembly, feed, state, mesh, 1).lower(state, feed, call).as_text(), digest.hexdigest()


def hashes() -> dict[str, str]:
    """{'digits:cct': config hash, …} of every config and variant."""
    found = {}
    for file in sorted((ROOT / "configs").glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for variant in module.VARIANTS:
            found[f"{file.stem}:{variant}"] = config_hash(load_config_file(f"{file}:{variant}"))
    return found


def record(folder: Path) -> None:
    """Writes everything into a folder."""
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"params": {}, "results": {}, "evaluations": {}, "summaries": {}, "hashes": hashes()}
    for name in NINE:
        text, facts["params"][name] = step_of(name)
        (folder / "steps" / f"{name}.mlir").write_text(text)
    for variant in RUNS:
        config = load_config_file(f"{ROOT / 'configs' / 'digits.py'}:{variant}")
        config.train.duration = "6 epochs"
        facts["results"][variant] = jaxvit.train(config, folder / "runs" / variant)
        facts["evaluations"][variant] = jaxvit.evaluate(folder / "runs" / variant)
    facts["summaries"] = {name: jaxvit.summary(name) for name in jaxvit.list_models()}
    (folder / "facts.json").write_text(json.dumps(facts, default=list))


def compare(before: Path) -> list[str]:
    """Records again, and returns a line for everything that differs."""
    with tempfile.TemporaryDirectory() as name:
        now = Path(name)
        record(now)
        wrong = [
            f"the step of {file.stem}"
            for file in sorted((before / "steps").glob("*.mlir"))
            if file.read_text() != (now / "steps" / file.name).read_text()
        ]
        old, new = (json.loads((folder / "facts.json").read_text()) for folder in (before, now))
        wrong += [
            f"{kind}: {key}"
            for kind, values in old.items()
            for key, value in values.items()
            if _timeless(value) != _timeless(new[kind].get(key))
        ]
        for variant in RUNS:
            copy = now / "old" / variant
            shutil.copytree(before / "runs" / variant, copy)
            if _timeless(jaxvit.evaluate(copy)) != _timeless(old["evaluations"][variant]):
                wrong.append(f"the old run {variant} is evaluated otherwise")
            images = now / "images"
            if not images.exists():
                draw_digits(images)
            if not all(said.top for said in jaxvit.predict(copy, images)):
                wrong.append(f"the old run {variant} does not predict")
            if not all(file.exists() for file in jaxvit.export(copy, "stablehlo,hub")):
                wrong.append(f"the old run {variant} is not exported")
            config = load_config_file(f"{ROOT / 'configs' / 'digits.py'}:{variant}")
            config.train.duration = "7 epochs"
            if jaxvit.train(config, copy)["steps"] != 7 * old["results"][variant]["steps"] // 6:
                wrong.append(f"the old run {variant} does not resume")
    return wrong


def draw_digits(folder: Path) -> None:
    """Three images to predict."""
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]))
    else:
        found = compare(Path(sys.argv[2]))
        print("\n".join(found) or "the same")
        sys.exit(bool(found))
