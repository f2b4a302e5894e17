"""One TokenLearner that is trained for several numbers of tokens: training, use, cascade."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import family_config, train_config

import jaxvit
from jaxvit.cli.evaluate import main as evaluate
from jaxvit.cli.predict import main as predict
from jaxvit.config.plan import resolve
from jaxvit.errors import UsageError
from jaxvit.exports import hub
from jaxvit.exports.model import ExportModel
from jaxvit.layers import TokenLearner
from jaxvit.models.count import count_macs
from jaxvit.run.assembly import assemble
from jaxvit.trained.cascade import CascadePredictor, choose_threshold, combined, parse_cascade
from jaxvit.trained.evaluate import evaluate_cascade, read_split
from jaxvit.trained.inference import Outcomes, Predictor


def config(**changes):
    how = {"train__duration": "4 steps", "train__elastic": (1, 3), "optim__schedule": "constant", **changes}
    return family_config("token_learner_vit", **how)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_config(tmp_path_factory.mktemp("elastic") / "run", config())


def test_the_first_tokens_are_those_of_the_whole_layer():
    x = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)
    for kind in ("v1", "v11_mlp", "v11_conv"):
        layer = TokenLearner(tokens=3, kind=kind)
        variables = layer.init(jax.random.key(0), x, train=False)
        few = layer.clone(keep=2)
        got = few.apply(variables, x, train=False)
        np.testing.assert_allclose(got, layer.apply(variables, x, train=False)[:, :2], atol=1e-6)
    with pytest.raises(ValueError, match="keep=4 must be a whole number up to tokens"):
        TokenLearner(tokens=3, keep=4)


def test_each_step_draws_one_of_the_numbers():
    assembly = assemble(resolve(config()))
    variables = jax.jit(assembly.init)(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    rng = np.random.default_rng(1)  # the head starts at zero
    variables = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype("f"), jax.device_get(variables))
    wanted = [np.asarray(model.clone(dropout=0.0).apply(variables, images, train=False)) for model in assembly.elastic]
    drawn = jax.jit(lambda key: assembly.apply_elastic(variables, images, train=False, key=key))
    seen = set()
    for seed in range(12):
        got = np.asarray(drawn(jax.random.key(seed)))
        fits = [n for n, want in enumerate(wanted) if np.allclose(got, want, atol=1e-5)]
        assert len(fits) == 1
        seen.update(fits)
    assert seen == {0, 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__elastic": (3, 1)}, "two or more rising numbers"),
        ({"train__elastic": (1, 2)}, "the last number must be config.model.learner_tokens=3"),
        ({"attributes": {"fuse": True}}, "a TokenFuser needs all learned tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        assemble(resolve(config(**changes)))


def test_any_of_the_numbers_afterwards(run, capsys):
    loaded = jaxvit.load(run)
    few = loaded.with_tokens(1)
    assert few.model.learner_keep == 1 and loaded.with_tokens(3).model.learner_keep == 0
    with pytest.raises(UsageError, match=r"--tokens=2: this model was trained for 1, 3 tokens, not 2"):
        loaded.with_tokens(2)
    assert evaluate([f"--workdir={run}", "--tokens=1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["loss"] == jaxvit.evaluate(few)["loss"] != jaxvit.evaluate(loaded)["loss"]
    assert "note: 1 learned tokens: " in err
    macs = [count_macs(each.model, each.input_shape)["all"] for each in (few, loaded)]
    assert macs[0] < macs[1] and (json.loads(out)["tokens"], json.loads(out)["macs"]) == (1, macs[0])


def test_an_exported_folder_keeps_the_number(run, tmp_path):
    hub.write(ExportModel.of(jaxvit.load(run).with_tokens(1), "float32"), tmp_path / "hub")
    assert jaxvit.load(tmp_path / "hub").model.learner_keep == 1


def test_a_cascade_asks_again_where_unsure(run, capsys):
    loaded = jaxvit.load(run)
    source = read_split(loaded)[1]
    images, *_ = source.batch(np.arange(len(source)))
    stages = [np.asarray(next(Predictor(loaded.with_tokens(n), 25).logits([images]))) for n in (1, 3)]
    certain = np.asarray(jax.nn.softmax(stages[0])).max(axis=1)
    threshold = float(np.median(certain))
    cascade = parse_cascade(loaded, "1,3", threshold)
    predictor = CascadePredictor(cascade, 8)
    got = np.concatenate([*predictor.logits(images[i : i + 8] for i in range(0, 25, 8))])
    want = np.where((certain < threshold)[:, None], stages[1], stages[0])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (predictor.seen, predictor.again) == (25, int((certain < threshold).sum()))
    found, outcomes = evaluate_cascade(cascade, source)
    assert found["again"] == predictor.again / 25
    np.testing.assert_array_equal(outcomes.predicted, want.argmax(axis=1))
    macs = [count_macs(each.model, each.input_shape)["all"] for each in (cascade.few, cascade.more)]
    assert found["mean_macs"] == macs[0] + found["again"] * macs[1]
    assert evaluate([f"--workdir={run}", "--cascade=1,3", "--max_drop=0"]) == 0
    assert "of the images asked again; mean " in capsys.readouterr().out


def test_predict_with_a_cascade(run, tmp_path, capsys):
    from PIL import Image

    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    said = {}
    for words in (["--tokens=1"], ["--cascade=1,3", "--threshold=0"], ["--cascade=1,3", "--threshold=1"], []):
        assert predict([str(tmp_path), f"--workdir={run}", "--format=jsonl", *words]) == 0
        said[" ".join(words)] = capsys.readouterr().out
    assert said["--tokens=1"] == said["--cascade=1,3 --threshold=0"] != said[""]
    assert said[""] == said["--cascade=1,3 --threshold=1"]


def test_the_smallest_threshold_that_is_accurate_enough():
    rng = np.random.default_rng(0)

    def outcomes(right, confidence):
        n = len(right)
        zeros = np.zeros(n)
        return Outcomes(np.arange(n), zeros, zeros, confidence, zeros, np.where(right, 0, 1), zeros)

    confidence = np.round(rng.random(200), 2)  # with ties
    few = outcomes(rng.random(200) < confidence, confidence)
    more = outcomes(rng.random(200) < 0.9, rng.random(200))
    for drop in (0.0, 0.02, 0.5):
        threshold = choose_threshold(few, more, drop)
        needed = (more.rank == 0).mean() - drop - 1e-9
        assert (combined(few, more, threshold)[0].rank == 0).mean() >= needed
        lower = [t for t in {0.0, *confidence.tolist()} if t < threshold]
        assert all((combined(few, more, t)[0].rank == 0).mean() < needed for t in lower)
