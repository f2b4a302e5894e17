"""Initial values by `config.init`: checks them, measures the training images, and sets the parameters."""

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

MOST_VALUES = 4096  # most values of a patch to be whitened: the cost grows with their cube
Pair = tuple[int, int]
_IMAGES = 64  # images per batch of a measurement


class InitialValues:
    """The initial values of a plan that follow a formula.

    Args:
      plan: plan of the run; `plan.init` says which values.
      model: model of the plan.

    Raises:
      UsageError: the model has no layer that such a value applies to.
    """

    def __init__(self, plan: Plan, model: nn.Module):
        self._plan, self._init, self._model = plan, plan.init, model
        self._sites = survey(model, plan.input_shape)
        name, init, sites = plan.model.name, self._init, self._sites
        if init.attention and not sites.attention:
            raise UsageError(f"config.init.attention='{init.attention}': {name} has no self-attention; set it to ''")
        if init.positions and not sites.positions:
            raise UsageError(
                f"config.init.positions='{init.positions}': {name} has no trained position table with "
                "these attributes; set it to ''"
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
        """Returns the variables with these values; pure, can be jitted.

        Args:
          variables: variables from the model's own initializers.
          key: random key that they were initialized with.
          filters: result of `measure`; None leaves the stem as it is, where only shapes and speed count.
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
        """Computes filters (P, P) for the stem from images of the training split; None if the plan has none.

        They depend on the images and the config, not on the seed. Process 0 measures and broadcasts the result.
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
        """Computes the mean of x xᵀ (P, P) over the patches x that the stem reads from evenly spaced images.

        The images are preprocessed as in evaluation, without augmentation.
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
    """Returns the `InitialValues` of a plan; None if the model's own initializers suffice."""
    return None if plan.init.is_empty else InitialValues(plan, model)
