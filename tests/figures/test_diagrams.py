"""Diagrams agree with the models and operations: the tests read their texts back and compare."""

import functools
import re
import xml.etree.ElementTree as ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from matplotlib.figure import Figure

from jaxvit.figures import architecture, diagram, shift_block, style, token_learner
from jaxvit.figures.architecture import draw_architecture
from jaxvit.figures.shift_block import draw_shift_block, shift_widths
from jaxvit.figures.steps import model_steps
from jaxvit.figures.token_learner import draw_token_learner
from jaxvit.layers import Attention, Classifier, ShiftBlock
from jaxvit.models import count_params, create_model, input_shape
from jaxvit.models.count import abstract_variables
from jaxvit.models.summarize import summarize

facts_of = functools.lru_cache(summarize)  # the same large models are looked at by several tests
steps_of = functools.lru_cache(model_steps)


def texts(files):
    """The lines of text in a diagram's SVG."""
    svg = next(file for file in files if file.suffix == ".svg")
    assert {file.suffix for file in files} == {".png", ".svg"} and all(file.stat().st_size > 1000 for file in files)
    return [
        "".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.fixture(autouse=True)
def sheets(monkeypatch):
    """The figures drawn during a test."""
    kept: list[Figure] = []

    def save(figure, file):
        kept.append(figure)
        return style.save(figure, file)

    for module in (architecture, shift_block, token_learner):
        monkeypatch.setattr(module, "save", save)
    monkeypatch.setattr(architecture, "model_steps", steps_of)
    monkeypatch.setattr(token_learner, "summarize", facts_of)
    return kept


def clashes(figure):
    """Overlapping texts, texts outside the figure, unreadably small texts, and texts that were cut."""
    renderer = figure.canvas.get_renderer()
    found = [(t.get_text(), t.get_window_extent(renderer), t.get_fontsize()) for t in figure.axes[0].texts]
    width, height = figure.bbox.width, figure.bbox.height
    wrong = [text for text, b, size in found if size < 9 or "…" in text.replace("… ", "")]
    wrong += [text for text, b, _ in found if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    boxes = [(text, b.padded(-0.5)) for text, b, _ in found]
    return wrong + [(s, t) for i, (s, a) in enumerate(boxes) for t, b in boxes[i + 1 :] if a.overlaps(b)]


TOKENS = {
    "tutorial_mini_vit_tl8": [64, 64, 64, 8, 8, 8],
    "tutorial_shiftvit": [144, 144, 36, 36, 9, 9, 4, 4],
    "tutorial_cct": [64, 64, 64, 64],
    "vit_b16_224": [196, 197, 197, 197, 197],
    "token_learner_fuser_vit_b16_224": [196, 196, 196, 16, 16, 196, 16, 16, 196, 16, 16, 196, 196],
}


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_architecture_shows_the_tokens_of_every_step(name, sheets, tmp_path):
    model, shape = create_model(name), input_shape(name)
    files = draw_architecture(model, shape, tmp_path / "diagram", name)
    lines = texts(files)
    shown = [int(line.replace(",", "")) for line in lines if re.fullmatch(r"[\d,]+", line)]
    steps, facts = steps_of(model, shape)
    # In a row: parameters, where one module has the box, then tokens. Both columns are rebuilt from the shown numbers.
    expected = []
    for step, count in zip(steps, [*TOKENS[name], *[None] * len(steps)], strict=False):
        expected += [step.params] * (step.repeats == 1) + ([] if count is None else [count])
    assert shown == expected
    assert sum(step.params * step.repeats for step in steps) == facts["params"]
    assert clashes(sheets[0]) == []
    assert name in lines and f"{model.num_classes:,} class scores" in lines


def test_architecture_merges_equal_blocks_and_names_them(tmp_path):
    name = "tutorial_shiftvit"
    lines = texts(draw_architecture(create_model(name), input_shape(name), tmp_path / "diagram"))
    places = [line for line in lines if line.startswith("stage")]
    assert places == [f"stage {i}, blocks 0–{depth - 1}" for i, depth in enumerate((2, 4, 8, 2))]
    assert "8 × 591,744" in lines and "3 × 3 × 384" in lines
    assert lines.count("merge 2 × 2") == 3 and "vector of 768" in lines and "mean of the map" in lines


def test_tokens_without_a_place_are_counted():
    model = create_model(
        "vit", pool="cls", registers=2, depth=3, learner="v11_mlp", learner_at=(1,), learner_tokens=5, fuse=True
    )
    steps, _ = model_steps(model, (32, 32, 3))
    seen = [(step.kind, step.tokens) for step in steps if step.type in ("PrefixTokens", "TokenLearner", "TokenFuser")]
    assert seen == [("class token", 65), ("register tokens", 67), ("TokenLearner", 8), ("TokenFuser", 67)]


def test_what_does_nothing_is_no_step():
    kinds = [step.kind for step in model_steps(create_model("cct", positions="none", depth=1), (32, 32, 3))[0]]
    expected = ["convolutions to tokens", "attention + MLP", "norm", "sequence pool", "classifier"]
    assert kinds == expected


class OwnBlock(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x + Attention(heads=2)(nn.LayerNorm()(x), train=train)


class OwnEncoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        for _ in range(4):
            x = OwnBlock()(x, train=train)
        return x


class Own(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(16, (4, 4), strides=(4, 4))(x)
        x = x.reshape(x.shape[0], -1, 16) + self.param("table", nn.initializers.zeros, (1, 6, 16))
        x = OwnEncoder()(x, train=train)
        return nn.Dense(7)(x.mean(axis=1))


def test_somebodys_own_model(tmp_path):
    model = Own()
    steps, facts = steps_of(model, (8, 12, 3))
    assert [(s.kind, s.repeats, s.tokens) for s in steps] == [
        ("convolution", 1, 6), ("OwnBlock", 4, 6), ("one vector for the image", 1, 1), ("dense layer", 1, 1)
    ]  # fmt: skip
    lines = texts(draw_architecture(model, (8, 12, 3), tmp_path / "diagram"))
    assert "7 class scores" in lines and "OwnEncoder 0, OwnBlocks 0–3" in lines and "Own" in lines
    assert "96 more parameters belong to the model itself, not to a box" in lines
    assert facts["params"] - sum(s.params * s.repeats for s in steps) == 96


class Bare(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return jnp.mean(Classifier(num_classes=3)(x, train=train), axis=(1, 2))


def test_the_chain_ends_with_what_the_model_gives():
    steps, _ = model_steps(Bare(), (4, 4, 3))
    assert [step.output for step in steps] == [(4, 4, 3), (3,)]


def moved_by_the_block(model, channels):
    """The direction in which a block shifts each channel, measured with a single lit pixel."""
    block = ShiftBlock(shift="true", groups=model.groups, divisions=model.divisions, pixels=model.pixels)
    probe = np.zeros((1, 7, 7, channels), np.float32)
    probe[0, 3, 3] = 1
    out = np.asarray(block._shift(jnp.asarray(probe)))[0]
    where = [tuple(np.argwhere(out[..., c])[0] - 3) for c in range(channels)]
    return tuple(where.count(step) for step in ((0, -1), (0, 1), (-1, 0), (1, 0), (0, 0)))


@pytest.mark.parametrize("name", ["tutorial_shiftvit", "shiftvit_tiny", "shiftvit_base"])
def test_shift_diagram_counts_what_the_shift_moves(name, sheets, tmp_path):
    model = create_model(name)
    lines = texts(draw_shift_block(model, tmp_path / "diagram"))
    counts = [moved_by_the_block(model, model.dim * 2**i) for i in range(len(model.depths))]
    assert [shift_widths(sum(c), groups=model.groups, divisions=model.divisions) for c in counts] == counts
    signs = "←→↑↓" if model.shift == "true" else ["", "", "", ""]
    for moved in counts:
        labels = [f"{sign} {n}".strip() for sign, n in zip(signs, moved, strict=False)] + [f"{moved[4]:,} stay"]
        assert any(lines[i : i + 5] == labels for i in range(len(lines)))
        assert any(line.startswith(f"{sum(moved[:4]):,} of {sum(moved):,} ") for line in lines)
        hidden = abstract_variables(ShiftBlock(mlp_ratio=model.mlp_ratio), (2, 2, sum(moved)))["params"]["mlp"]
        width = hidden["dense_0"]["kernel"].shape[1]
        assert f"{sum(moved):,} → {width:,} → {sum(moved):,}" in lines
    assert any("nothing moves" in line for line in lines) == (model.shift == "border")
    assert any("starts after" in line for line in lines) and clashes(sheets[0]) == []


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="four groups of 40 channels"):
        shift_widths(40, groups="width", divisions=12)
    with pytest.raises(ValueError, match="neither"):
        shift_widths(48, groups="half", divisions=12)


LEARNERS = {
    "tutorial_mini_vit_tl8": [
        "8 × 8 × 128",
        "128 → 8, gelu",
        "3×3 conv, 2 times",
        "sigmoid for",
        "weighted mean",
        "norm",
    ],
    "tutorial_fashion_fast_vit": ["5 × 5 × 128", "128 → 4, gelu", "3×3 conv, 3 times", "4 tokens × 128"],
    "tutorial_mini_vit_v11_g8t8": [
        "1×1 conv in 8 groups",
        "128 → 8",
        "softmax over",
        "weighted sum",
        "8 maps of 8 × 8",
    ],
    "token_learner_fuser_vit_b16_224": [
        "dense 768 → 64",
        "64 → 16",
        "over 196 places",
        "16 → 16, starts at 0",
        "196 × 768",
    ],
}


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_token_learner_diagram(name, sheets, tmp_path):
    model = create_model(name)
    lines = texts(draw_token_learner(model, input_shape(name), tmp_path / "diagram"))
    assert set(LEARNERS[name]) <= set(lines)
    variables = abstract_variables(model, input_shape(name))["params"]["encoder"]
    learner = variables[f"token_learner_{model.learner_at[0]}"]
    assert any(f"{count_params({'params': learner}):,} parameters" in line for line in lines)
    assert ("norm" in lines) == ("norm" in learner)
    assert ("TokenFuser" in lines) == model.fuse
    assert clashes(sheets[0]) == []


def test_the_boxes_of_a_token_learner_make_up_its_kernels():
    for convs in (1, 2, 3, 6):
        model = create_model("vit", learner="v1", learner_at=(1,), learner_convs=convs)
        learner = abstract_variables(model, (32, 32, 3))["params"]["encoder"]["token_learner_1"]
        kernels = [learner[f"conv_{i}"]["kernel"].shape[2:] for i in range(convs)]
        drawn = []
        for text in token_learner.scoring_steps(model):
            times = re.search(r"(\d+) times", text)
            drawn += [tuple(map(int, re.search(r"(\d+) → (\d+)", text).groups()))] * (int(times[1]) if times else 1)
        assert drawn == kernels


def test_a_model_without_a_token_learner_is_refused(tmp_path):
    for name in ("vit", "cct"):
        with pytest.raises(ValueError, match="no TokenLearner"):
            draw_token_learner(create_model(name), (32, 32, 3), tmp_path / "diagram")


@pytest.mark.parametrize("name", ["shiftvit_light_base", "tutorial_vit_cifar100", "cct_14_7x2_384"])
def test_no_text_of_an_architecture_meets_another(name, sheets, tmp_path):
    draw_architecture(create_model(name), input_shape(name), tmp_path / "diagram", name)
    assert [clashes(figure) for figure in sheets] == [[]]


@pytest.mark.parametrize(
    "settings", [{"shift": "none"}, {"divisions": 4, "pixels": 3}, {"shift": "border", "pixels": 2}]
)
def test_no_text_of_a_shift_block_meets_another(settings, sheets, tmp_path):
    draw_shift_block(create_model("shiftvit", **settings), tmp_path / "diagram")
    assert [clashes(figure) for figure in sheets] == [[]]


def test_text_is_made_smaller_and_then_cut():
    axis = diagram.new_sheet(5, 1)
    smaller = diagram.write(axis, 0, 0.3, "a text of some length", size=14, width=1.9)
    cut = diagram.write(axis, 0, 0.6, "a text of some length", size=14, width=0.8)
    assert smaller.get_text() == "a text of some length" and 9 <= smaller.get_fontsize() < 14
    assert cut.get_text().endswith("…") and cut.get_fontsize() == 9
    assert cut.get_window_extent().width <= 0.8 * axis.figure.dpi
