"""A TokenLearner in a ViT that is already trained."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import tiny_config, train_family

import jaxvit
from jaxvit.cli.retrofit import main
from jaxvit.config.plan import resolve
from jaxvit.errors import UsageError
from jaxvit.run.assembly import assemble
from jaxvit.run.retrofit import plan_retrofit

HOW = {"first": "2 steps", "then": "2 steps", "rate": 0.5}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run of a ViT with 4 × 4 patches and two blocks."""
    config = tiny_config(train__duration="2 steps", data__validation="")
    config.model.patch, config.model.depth = 2, 2
    folder = tmp_path_factory.mktemp("retrofit") / "run"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, folder)
    return folder


def params_of(folder):
    return {
        "/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(jaxvit.load(folder).variables["params"]).items()
    }


def test_the_new_part_first_and_then_the_whole(original, tmp_path, capsys):
    words = [
        str(original),
        "--at=1",
        "--tokens=4",
        f"--workdir={tmp_path / 'new'}",
        "--first=2 steps",
        "--then=2 steps",
    ]
    assert main([*words, "--dry_run"]) == 0 and not (tmp_path / "new").exists()
    assert " multiply-adds per image instead of " in capsys.readouterr().out
    with jax.numpy_dtype_promotion("standard"):
        assert main(words) == 0
    before, first, then = (params_of(each) for each in (original, tmp_path / "new-new-part", tmp_path / "new"))
    new = {path for path in first if path.startswith("encoder/token_learner_1/")}
    assert set(first) == set(then) == {*before, *new} and "encoder/token_learner_1/places" in new
    for path, leaf in before.items():
        np.testing.assert_array_equal(first[path], leaf)
    assert first["encoder/token_learner_1/scale"].any()
    moved = [path for path in before if (then[path] != before[path]).any()]
    assert len(moved) > len(before) / 2
    loaded = jaxvit.load(tmp_path / "new")
    assert loaded.model.learner_at == (1,) and loaded.config.optim.peak_lr == 0.25 * tiny_config().optim.peak_lr
    with jax.numpy_dtype_promotion("standard"):
        assert main(words) == 0  # finished: reported, not repeated


def test_it_begins_as_average_pooling(original, tmp_path):
    planned = plan_retrofit(original, tmp_path / "new", at=1, tokens=4, **HOW)
    with jax.numpy_dtype_promotion("standard"):
        assembly = assemble(resolve(planned.new_part))
        variables = jax.jit(assembly.create_state)(None, None, assembly.load()).variables
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("f")
    loaded = jaxvit.load(original)
    rest, params = loaded.model.clone(depth=1), loaded.variables["params"]
    found = {}

    def pooled(module):
        """Block 0, the means of the four cells of 2 × 2 places, block 1, and the head."""
        x = module.embed(images)
        x = module.position_embed(x.reshape(3, 16, -1), grid=(4, 4))
        x = module.encoder(x, train=False, grid=(4, 4))
        return x.reshape(3, 2, 2, 2, 2, -1).mean(axis=(2, 4)).reshape(3, 4, -1)

    tokens = rest.apply({"params": {**params, "encoder": {"block_0": params["encoder"]["block_0"]}}}, method=pooled)

    def finish(module):
        x = module.encoder(tokens, train=False, grid=(2, 2))
        return module.head(module.pooling(module.norm(x), train=False), train=False)

    block = {"block_0": params["encoder"]["block_1"]}
    found = rest.apply({"params": {**params, "encoder": block}}, method=finish)
    got = assembly.model.clone(dropout=0.0).apply(variables, images, train=False)
    np.testing.assert_allclose(got, found, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"at": 2}, "--at=2: the blocks of .* are 0 to 1"),
        ({"tokens": 7}, "7 tokens do not divide a map of 4x4 into cells"),
        ({"tokens": 16}, "and the original only"),
        ({"rate": 0.0}, "--rate=0: must be above 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(original, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        plan_retrofit(original, tmp_path / "new", **{"at": 1, "tokens": 4, **HOW, **changes})


def test_other_models_are_refused(tmp_path):
    for family, said in (("shiftvit", "is not a ViT"), ("token_learner_vit", "has a TokenLearner already")):
        with pytest.raises(UsageError, match=said):
            plan_retrofit(train_family(tmp_path / family, family), tmp_path / "new", at=0, tokens=2, **HOW)
