"""What `config.init` asks for, in one model: checked, measured on the training images, and put into its variables."""

from __future__ import annotations

import base64
import zlib
from typing import cast

import flax.linen as nn
import jax
import numpy as np

from jaxvit.config.plan_types import Plan
from jaxvit.data.augment import preprocess
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.devices import processes
from jaxvit.errors import UsageError, first_line
from jaxvit.models.initial_sites import Stem, start_attention, start_positions, start_stem, stem_input, survey
from jaxvit.ops.initial_values import patches_of, whitening_filters
from jaxvit.ops.trees import Params, Variables

MOST_VALUES = 4096  # of a patch that is whitened: the work grows with their cube
Pair = tuple[int, int]
_IMAGES = 64  # measured at a time


class InitialValues:
    """The initial values of a plan that follow a formula.

    Args:
      plan: its `init` says which.
      model: the plan's.

    Raises:
      UsageError: the model has no place for something that is asked for.
    """

    def __init__(self, plan: Plan, model: nn.Module):
        self._plan, self._init, self._model = plan, plan.init, model
        self._sites = survey(model, plan.input_shape)
        name, init, sites = plan.model.name, self._init, self._sites
        if init.attention and not sites.attention:
            raise UsageError(f"config.init.attention='{init.attention}': {name} has no self-attention; set it to ''")
        if init.positions and not sites.positions:
            raise UsageError(
                f"config.init.positions='{init.positions}': {name}, as it is set, has no position table to train; set "
                "it to ''"
            )
        stem, where = sites.stem, f"config.init.stem='{init.stem}': the first layer of {name}"
        if init.stem and stem is None:
            raise UsageError(f"{where} is neither dense nor a plain convolution of images; set it to ''")
        if init.stem and stem is not None and stem.values > MOST_VALUES:
            many = f"takes patches of {stem.values} values, and at most {MOST_VALUES} can be whitened"
            raise UsageError(f"{where} {many}; set it to ''")

    def __call__(
        self, variables: Variables, key: jax.Array, filters: jax.Array | np.ndarray | None = None
    ) -> dict[str, Params]:
        """The variables with these values; pure, to be traced.

        Args:
          variables: as the model's own initialisers have them.
          key: that they were made with.
          filters: what `measure` has found; None leaves the stem as it is, for shapes and speed.
        """
        init, sites, params = self._init, self._sites, variables["params"]
        if init.attention:
            params = start_attention(
                params,
                sites.attention,
                jax.random.fold_in(key, zlib.crc32(b"attention")),
                query_key=init.query_key,
                value_output=init.value_output,
                joint=init.attention == "mimetic_joint",
            )
        if init.positions:
            try:
                params = start_positions(params, sites.positions, scale=init.positions_scale)
            except ValueError as error:
                raise UsageError(f"config.init.positions='{init.positions}': {first_line(error)}") from None
        if filters is not None and sites.stem:
            params = start_stem(params, sites.stem, filters)
        return {**variables, "params": params}

    def measure(self, source: Source | StreamedSource) -> np.ndarray | None:
        """Filters (P, P) for the stem, where they are asked for, from images of the training split.

        A function of the images and the config alone, whatever the seed. Process 0 measures and broadcasts the result.
        """
        stem = self._sites.stem
        if not self._init.stem or stem is None:
            return None

        def work() -> str:
            moments_PP = self._moments(stem, source)
            return base64.b64encode(whitening_filters(moments_PP, self._init.stem_eps).tobytes()).decode()

        values = base64.b64decode(processes.broadcast_from_first(work))
        return np.frombuffer(values, np.float32).reshape(stem.values, stem.values)

    def _moments(self, stem: Stem, source: Source | StreamedSource) -> np.ndarray:
        """Mean of x xᵀ (P, P) over the patches x that the stem takes, where it takes them, of evenly spread images.

        The images are as in evaluation: of the model's size, normalised, not augmented.
        """
        look = jax.jit(lambda images: stem_input(self._model, stem, preprocess(images, self._plan.augment)))
        count = min(self._init.stem_images, len(source))
        rows = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
        total, patches = np.zeros((stem.values, stem.values)), 0
        for begin in range(0, len(rows), _IMAGES):
            images, _, good = source.batch(rows[begin : begin + _IMAGES])
            if not good.any():
                continue
            given = np.asarray(look(images[good]))
            if stem.window:
                x = patches_of(given, cast(Pair, stem.window), cast(Pair, stem.strides))
            else:
                x = given.reshape(-1, stem.values)
            x = x.astype(np.float64)
            total += x.T @ x
            patches += len(x)
        return total / max(patches, 1)


def initial_values(plan: Plan, model: nn.Module) -> InitialValues | None:
    """What the plan asks for; None where the model's own initialisers say it all."""
    return None if plan.init.is_empty else InitialValues(plan, model)
