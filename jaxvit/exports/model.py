"""The function that is exported, and the metadata stored with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvit._version import __version__
from jaxvit.devices.runtime import forward_options
from jaxvit.ops.implementations import traced_for
from jaxvit.trained.load import Loaded
from jaxvit.weights.stored import restore, store


@dataclasses.dataclass(frozen=True)
class ExportModel:
    """A trained model with its weights converted for storage. It computes in float32, whatever dtype it was trained in.

    Attributes:
      loaded: the trained model.
      kind: dtype of the stored weights, see `jaxvit.weights.stored`.
      stored: the parameters as returned by `weights.store`.
      result: evaluation of the stored weights: split, data, count, top1, top5, loss, ece; None = not evaluated.
      beside: for a page: models that it shows beside this one.
      samples: for a page: images to start with, uint8 [H, W, C], each with the name of its class.
    """

    loaded: Loaded
    kind: str
    stored: Any
    result: dict[str, Any] | None = None
    beside: tuple[ExportModel, ...] = ()
    samples: tuple[tuple[Any, str], ...] = ()

    @classmethod
    def of(cls, loaded: Loaded, kind: str) -> ExportModel:
        """Converts the parameters of `loaded` to `kind`."""
        if getattr(loaded.model, "dtype", "float32") != "float32":
            loaded = dataclasses.replace(loaded, model=loaded.model.clone(dtype="float32"))
        return cls(loaded, kind, store(loaded.variables["params"], kind))

    @property
    def restored(self) -> Loaded:
        """The trained model with the stored weights."""
        return dataclasses.replace(self.loaded, variables=self._variables())

    def _variables(self) -> dict[str, Any]:
        return {**self.loaded.variables, "params": restore(self.stored)}

    def probabilities(self, images_BHWC: Any, by: Mapping[str, str] | None = None) -> jax.Array:
        """Maps uint8 images [B, *image_shape] to float32 probabilities [B, K]. Tracing makes the weights constants.

        A file runs on all platforms, so its operations must not depend on the machine that writes it: they are always
        those that are fastest on a CPU.

        Args:
          images_BHWC: the images.
          by: {operation: implementation}, see `jaxvit.ops.implementations`; the others are computed as in training.
        """
        with traced_for("cpu"):
            return self._of_classes(self._variables(), images_BHWC, by)

    def _of_classes(self, variables: Any, images_BHWC: Any, by: Mapping[str, str] | None = None) -> jax.Array:
        # A model may have more outputs than classes: they take part in the softmax, as in training, and are cut off.
        logits_BK = self.loaded.apply(variables, images_BHWC, by)
        return jax.nn.softmax(logits_BK, axis=-1)[:, : len(self.loaded.class_names)]

    def compiled(self, *, reference: bool = False) -> Callable[[Any], jax.Array]:
        """Returns `probabilities`, jitted, with the weights as arguments.

        Args:
          reference: compute with full float32 precision, on the CPU if jax has one, as a reference to compare with.
            By default it runs at full speed on the default device.
        """
        device = _cpu() if reference else None
        program = jax.jit(self._of_classes, compiler_options=forward_options())
        variables = jax.device_put(self._variables(), device)

        def call(images_BHWC: Any) -> jax.Array:
            with jax.default_matmul_precision("highest" if reference else None):
                return program(variables, jax.device_put(jnp.asarray(images_BHWC), device))

        return call

    @property
    def reduce(self) -> str:
        """How the model merges or removes tokens, such as 'merge:r=8'; '' = it does not."""
        reduce = getattr(self.loaded.model, "reduce", "none")
        return "" if reduce == "none" else reduce

    def facts(self) -> dict[str, Any]:
        """Metadata for the user of the file, as plain Python values."""
        white = self.loaded.config.data.white
        return {
            "class_names": list(self.loaded.class_names),
            "image_shape": list(self.loaded.image_shape),
            "weights": self.kind,
            "model": self.loaded.config.model.name,
            "step": self.loaded.step,
            "producer": f"jaxvit {__version__}",
            **({"white": white} if white else {}),
            **({"reduce": self.reduce} if self.reduce else {}),
        }


def _cpu() -> jax.Device | None:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return None
