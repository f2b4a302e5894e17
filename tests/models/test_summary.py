"""The summary verb and its JSON."""

import json

import pytest

from jaxvit.cli.summary import main
from jaxvit.errors import UsageError
from jaxvit.models import create_model, input_shape
from jaxvit.models.summarize import summarize


def test_json(capsys):
    assert main(["--model=tutorial_mini_vit_tl4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["name", "params", "macs", "input", "tokens", "layers"]
    assert (facts["name"], facts["params"], facts["input"]) == ("tutorial_mini_vit_tl4", 1_349_946, [48, 48, 3])
    assert facts["macs"]["all"] == 78_065_920 and set(facts["macs"]) == {"all", "keras_profiler", "cct"}
    assert facts["tokens"] == [64, 64, 64, 4]
    rows = {row["path"]: row for row in facts["layers"]}
    assert rows[""]["params"] == facts["params"]
    learner = {"path": "encoder/token_learner_3", "type": "TokenLearner", "output": [4, 128], "params": 5_296}
    assert rows["encoder/token_learner_3"] == learner
    assert sum(row["params"] for path, row in rows.items() if path.count("/") == 0 and path) == facts["params"]
    parts = [row["params"] for path, row in rows.items() if path.startswith("encoder/block_0/attention/")]
    assert len(parts) == 4 and sum(parts) == rows["encoder/block_0/attention"]["params"]


def test_table_overrides_and_size(capsys):
    words = ["--config.model.depths=(1,3)", "--config.model.shift", "border", "--image_size=16x24", "--depth=0"]
    words = ["--model=shiftvit", *words]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "16x24x3" in out and "ShiftBlock" in out and "96 in 1 block, 24 in 3 blocks" in out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--model=cct_7_3x1_3"], "did you mean 'cct_7_3x1_32'"),
        (["--model=vit", "--config.model.detph=2"], "did you mean 'model.depth'"),
        (["--model=vit", "--config.model.depth=deep"], "expected a whole number, got 'deep'"),
        (["--model=vit", "--config.model.heads=7"], "heads"),
        (["--model=vit", "--config.model.name=cct"], "--config.model.name: set the model with --model"),
        (["--model=vit", "--config.train.batch_size=8"], "--config.train.batch_size: only model attributes"),
        (["--model=vit", "--model.dim=64"], "write --config.model.dim=64"),
        (["--model=vit", "--model.dim", "64"], "write --config.model.dim"),
        (["--model=vit", "--dept=2"], "unknown argument '--dept=2' (did you mean '--depth'?)"),
        (["--model=vit", "--image_size=big"], "--image_size=big"),
        (["--model=vit", "--image_size=30"], "patch=4 does not divide"),
        ([], "--model is missing"),
    ],
)
def test_mistakes_are_one_line(words, sentence):
    with pytest.raises(UsageError) as error:
        main(words)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_names_are_listed(capsys):
    assert main(["--list"]) == 0
    assert "tutorial_cct" in capsys.readouterr().out.split()


def test_every_way_to_run_is_summarised_alike():
    shape = input_shape("vit")
    plain = summarize(create_model("vit"), shape)
    assert summarize(create_model("vit", scan=True, remat="full"), shape) == plain
    assert plain["name"] == "ViT" and plain["tokens"] == [64] * 6
