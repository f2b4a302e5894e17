"""Architecture diagram: a chain of boxes from the image to the class scores, with the number of tokens."""

from __future__ import annotations

from pathlib import Path

from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from jaxvit.figures.diagram import SMALL, arrow, box, new_sheet, tint, write
from jaxvit.figures.steps import Part, model_steps
from jaxvit.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, save

# One colour for each operation on tokens: make, mix, learn or merge, spread, pool, classify.
_COLOURS = {
    **dict.fromkeys(("PatchEmbed", "ConvTokenizer", "PositionEmbed", "PrefixTokens", "Conv"), SKY),
    **dict.fromkeys(("EncoderBlock", "ShiftBlock", "Attention", "Mlp"), BLUE),
    **dict.fromkeys(("TokenLearner", "Downsample"), VERMILION),
    "TokenFuser": ORANGE,
    **dict.fromkeys(("Pool", "SequencePool", "AttentionPool", ""), GREEN),
    "Classifier": PURPLE,
}
# Left edges and widths of the columns, in inches.
_BOX, _BOX_WIDTH, _OUTPUT, _PARAMS_END, _BARS, _BARS_WIDTH, _WIDTH = 0.2, 3.7, 4.15, 7.3, 7.6, 1.5, 9.9
_TOP, _PITCH, _HEIGHT = 1.3, 0.47, 0.34


def draw_architecture(model: nn.Module, input_shape: tuple[int, ...], file: Path, title: str = "") -> list[Path]:
    """Draws a model as a vertical chain of boxes.

    Beside each box stand the shape of its output, its number of parameters, and a bar whose length is the number of
    output tokens (for feature maps, H × W). Equal consecutive modules share a box. Residual connections are not drawn.

    Args:
      model: any Flax module that is called as `model(images, train=False)`.
      input_shape: shape of one image, (H, W, C).
      file: path to write to; the suffixes .png and .svg are added.
      title: title of the diagram; '' = name of the model's class.

    Returns:
      The files written.

    Raises:
      ValueError: the model does not accept images of this shape.
    """
    steps, facts = model_steps(model, input_shape)
    below = _TOP + _PITCH * (len(steps) + 1)
    own = facts["params"] - sum(step.params * step.repeats for step in steps)
    axis = new_sheet(_WIDTH, below + (0.35 if own else 0.1))
    write(axis, _BOX, 0.32, title or facts["name"], size=15, weight="bold", width=_WIDTH - 2 * _BOX)
    about = f"{facts['params']:,} parameters, {short(facts['macs']['all'])} multiply-adds for one image"
    write(axis, _BOX, 0.66, about, color=GREY)
    small = {"size": SMALL, "color": GREY}
    write(axis, _BOX, 1.05, "step", **small)
    write(axis, _OUTPUT, 1.05, "output", **small)
    write(axis, _PARAMS_END, 1.05, "parameters", ha="right", **small)
    write(axis, _BARS, 1.05, "tokens (places of a map)", **small)
    axis.plot((_BOX, _WIDTH - _BOX), (1.18, 1.18), color=GREY, linewidth=0.8)

    image = Part("image", "image", "", tuple(input_shape))
    most = max((step.tokens for step in steps if len(step.output) > 1), default=1)
    for i, step in enumerate([image, *steps]):
        top = _TOP + i * _PITCH
        _draw_step(axis, top, step, most, last=i == len(steps))
        if i:
            centre = _BOX + _BOX_WIDTH / 2
            arrow(axis, [(centre, top - _PITCH + _HEIGHT), (centre, top)])
    if own:
        write(axis, _BOX, below + 0.12, f"{own:,} more parameters belong to the model itself, not to a box", **small)
    return save(axis.figure, file)


def _draw_step(axis: Axes, top: float, step: Part, most: int, *, last: bool) -> None:
    """Draws one row of the diagram; a bar of full length stands for `most` tokens."""
    middle = top + _HEIGHT / 2
    is_image = step.type == "image"
    colour = _COLOURS.get(step.type, GREY)
    box(axis, _BOX, top, _BOX_WIDTH, _HEIGHT, colour=colour)
    kind = write(axis, _BOX + 0.12, middle, step.kind, weight="bold", width=0.64 * _BOX_WIDTH)
    left = _BOX_WIDTH - 0.34 - kind.get_window_extent().width / axis.figure.dpi
    if step.names not in ("", step.kind) and left > 0.3:
        end = _BOX + _BOX_WIDTH - 0.12
        write(axis, end, middle, step.names, size=SMALL, ha="right", color=GREY, width=left)
    write(axis, _OUTPUT, middle, _shape(step.output, last=last), width=_PARAMS_END - _OUTPUT - 1.35)
    if not is_image:
        times = f"{step.repeats} × " if step.repeats > 1 else ""
        write(axis, _PARAMS_END, middle, f"{times}{step.params:,}", ha="right", color=BLACK if step.params else GREY)
    if len(step.output) > 1 and not is_image:  # the pixels of the image are not tokens
        length = _BARS_WIDTH * step.tokens / most
        axis.add_patch(Rectangle((_BARS, middle - 0.1), length, 0.2, facecolor=tint(colour, 0.7)))
        write(axis, _BARS + length + 0.08, middle, f"{step.tokens:,}")


def _shape(output: tuple[int, ...], *, last: bool) -> str:
    if not output:
        return "–"
    if len(output) == 1:
        return f"{output[0]:,} class scores" if last else f"vector of {output[0]:,}"
    if len(output) == 2:
        return f"{output[0]:,} tokens × {output[1]:,}"
    return " × ".join(f"{size:,}" for size in output)


def short(number: float) -> str:
    """A large number with three digits and a word: '79.8 million' for 79,836,416."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,.0f}"
