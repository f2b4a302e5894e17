"""How an encoder computes with fewer tokens: which blocks merge or remove how many.

`TokenReduction` describes it for a whole encoder, and has a text form, the model attribute `reduce`:

| text | meaning |
|---|---|
| `merge:r=8` | every block merges 8 pairs of tokens, between attention and MLP (`jaxvit.ops.merge_tokens`) |
| `merge:r=8,at=2-5` | the blocks 2 to 5 do; `at=1+3` = the blocks 1 and 3 |
| `prune:keep=.7` | three blocks, at a quarter, half and three quarters of the depth, keep 70 % of the tokens each |
| `prune:keep=.7,by=norm` | ranked by norm; or `attention` (the default) or `random` |

Merging after attention, with attention weights proportional to size, follows Bolya et al. 2022 (ToMe,
arXiv:2210.09461); removing tokens in three stages follows Liang et al. 2022 (EViT, arXiv:2202.07800).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax

from jaxvit.ops.reduction import CRITERIA, Reduced, merge_tokens, most_merged, prune_tokens, token_scores

KINDS = ("merge", "prune")


class ReductionStep(NamedTuple):
    """The reduction of the tokens of one block.

    Attributes:
      kind: 'merge' or 'prune'.
      left: number of tokens after the prefix that are left.
      prefix: number of leading tokens that always stay.
      by: criterion of 'prune'; see `jaxvit.ops.token_scores`.
      class_token: whether the first token is a class token.
      seed: seed of the criterion 'random'.
    """

    kind: str
    left: int
    prefix: int
    by: str = "attention"
    class_token: bool = False
    seed: int = 0

    def __call__(
        self,
        x_BNC: jax.Array,
        *,
        keys_BND: jax.Array,
        attention_BMQN: jax.Array,
        sizes_BN: jax.Array | None = None,
    ) -> Reduced:
        """Applies the step to tokens (B, N, C), given the block's keys, attention weights and earlier sizes."""
        if self.kind == "merge":
            r = x_BNC.shape[1] - self.prefix - self.left
            return merge_tokens(x_BNC, keys_BND, r, prefix=self.prefix, sizes_BN=sizes_BN)
        scores_BN = token_scores(
            self.by, x_BNC, attention_BMQN=attention_BMQN, class_token=self.class_token, seed=self.seed
        )
        return prune_tokens(x_BNC, scores_BN, self.left, prefix=self.prefix, sizes_BN=sizes_BN)


@dataclass(frozen=True)
class TokenReduction:
    """How many tokens each block of an encoder merges or removes.

    Attributes:
      kind: 'merge' or 'prune'.
      r: for 'merge', the number of tokens that disappear in each block, 0 or more.
      keep: for 'prune', the share of the tokens after the prefix that each block keeps, above 0 and at most 1; rounded
        up.
      macs: the share of the multiply-adds that the whole model may need; `jaxvit.models.reduction` works out `r` or
        `keep` from it. 0 = not given.
      at: indices of the blocks, in rising order; () = all blocks for 'merge', and three for 'prune'.
      by: for 'prune', the criterion: 'attention', 'norm' or 'random'.

    Raises:
      ValueError: a value is not allowed, or does not apply.

    Example:
      >>> parse_reduction("merge:r=8,at=2-5")
      TokenReduction(kind='merge', r=8, keep=0.0, macs=0.0, at=(2, 3, 4, 5), by='attention')
      >>> str(TokenReduction("prune", keep=0.7))
      'prune:keep=0.7'
    """

    kind: str
    r: int = 0
    keep: float = 0.0
    macs: float = 0.0
    at: tuple[int, ...] = ()
    by: str = "attention"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"'{self.kind}' is neither 'merge' nor 'prune'")
        if self.r < 0:
            raise ValueError(f"r={self.r} must be 0 or more")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep={self.keep:g} must be above 0 and at most 1")
        if not 0 <= self.macs <= 1:
            raise ValueError(f"macs={self.macs:g} must be above 0 and at most 1: a share of the multiply-adds")
        if list(self.at) != sorted(set(self.at)) or any(i < 0 for i in self.at):
            raise ValueError(f"at={_listed(self.at)} must be a rising list of blocks from 0")
        if self.by not in CRITERIA:
            raise ValueError(f"by={self.by} is not one of {', '.join(CRITERIA)}")
        if self.kind == "merge" and (self.keep or self.by != "attention"):
            raise ValueError(f"{'keep' if self.keep else 'by'} belongs to prune; merge takes r, macs and at")
        if self.kind == "prune" and self.r:
            raise ValueError("r belongs to merge; prune takes keep, macs, by and at")
        if self.kind == "prune" and not (self.keep or self.macs):
            raise ValueError("prune needs keep, such as prune:keep=.7, or macs")
        if self.macs and (self.r or self.keep):
            raise ValueError(f"macs works out {'r' if self.r else 'keep'}: give only one of them")

    def __str__(self) -> str:
        words = (
            [f"macs={self.macs:g}"] if self.macs else [f"r={self.r}" if self.kind == "merge" else f"keep={self.keep:g}"]
        )
        words += [f"at={_listed(self.at)}"] if self.at else []
        words += [f"by={self.by}"] if self.by != "attention" else []
        return f"{self.kind}:{','.join(words)}"

    @property
    def nothing(self) -> bool:
        """True if no token is merged or removed."""
        return self.keep == 1 if self.kind == "prune" else not (self.r or self.macs)

    def blocks(self, depth: int, learner_at: Sequence[int] = (), *, fuse: bool = False) -> tuple[int, ...]:
        """The blocks that merge or remove tokens.

        Args:
          depth: number of blocks.
          learner_at: the blocks that a TokenLearner precedes. Unless `at` names them, the blocks from the first of
            them on do not reduce: they have few tokens already.
          fuse: whether a TokenFuser follows each of these.

        Raises:
          ValueError: there is no such block, or its tokens must not be reduced.
        """
        end = min([depth, *learner_at])
        if not self.at:
            stages = {end // 4, end // 2, 3 * end // 4} if self.kind == "prune" else range(end)
            return tuple(sorted(i for i in stages if i < end))
        if wrong := [i for i in self.at if i >= depth]:
            raise ValueError(f"at={_listed(self.at)}: there is no block {wrong[0]}; the blocks are 0 to {depth - 1}")
        if fuse and (wrong := [i for i in self.at if i in learner_at]):
            raise ValueError(
                f"at={_listed(self.at)}: block {wrong[0]} works on learned tokens that a TokenFuser spreads; leave it "
                "out"
            )
        return self.at

    def left(self, block: int, tokens: int) -> int:
        """The number of tokens that a block leaves of those after the prefix.

        Raises:
          ValueError: `r` is more than the block can merge.
        """
        if self.macs:
            raise ValueError(f"{self}: macs has not been worked out; give r or keep, or use --reduce")
        if self.kind == "prune":
            return max(1, math.ceil(self.keep * tokens - 1e-9))
        if self.r > most_merged(tokens):
            raise ValueError(
                f"{self}: block {block} has {tokens} tokens and can merge at most {most_merged(tokens)}; "
                "lower r, or name fewer blocks with at"
            )
        return tokens - self.r


def parse_reduction(text: str) -> TokenReduction:
    """Parses the text form of a `TokenReduction`, such as 'merge:r=8' or 'prune:keep=.7,at=2+4'.

    Raises:
      ValueError: the text is not of this form, or a value is not allowed.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS or not rest:
        raise ValueError("not of the form merge:r=8, merge:macs=.7 or prune:keep=.7")
    known = {field.name for field in fields(TokenReduction)} - {"kind"}
    values: dict[str, str] = {}
    for word in rest.split(","):
        name, equals, value = word.partition("=")
        if name not in known or not equals:
            raise ValueError(f"'{word}' is not one of r=, keep=, macs=, at= and by=")
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = value
    for name in ("keep", "macs"):
        if name in values and _number(name, values[name]) == 0:
            raise ValueError(f"{name}={values[name]} must be above 0 and at most 1")
    if kind == "merge" and not values.keys() & {"r", "macs"}:
        raise ValueError("merge needs r, such as merge:r=8, or macs")
    return TokenReduction(
        kind,
        r=_whole("r", values.get("r", "0")),
        keep=_number("keep", values.get("keep", "0")),
        macs=_number("macs", values.get("macs", "0")),
        at=_blocks(values["at"]) if "at" in values else (),
        by=values.get("by", "attention"),
    )


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}={text} must be a whole number, 0 or more")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={text} must be above 0 and at most 1")
    return value


def _blocks(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split("+"):
        start, dash, stop = part.partition("-")
        low = _whole("at", start)
        high = _whole("at", stop) if dash else low
        if not low <= high < 10_000:
            raise ValueError(f"at={text} must name blocks, such as at=2-5 or at=1+3")
        found += range(low, high + 1)
    return tuple(found)


def _listed(blocks: Sequence[int]) -> str:
    """'2-5' for neighbours, else '1+3'."""
    if len(blocks) > 1 and list(blocks) == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return "+".join(map(str, blocks))
