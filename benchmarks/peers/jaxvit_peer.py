"""jaxvit with its own training step, including metrics and norms that the other peers do not compute."""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp

from jaxvit.devices.runtime import forward_options
from jaxvit.models import create_model
from jaxvit.ops.implementations import use
from jaxvit.ops.labels import one_hot
from jaxvit.training.optimizer import OptimizerSettings, make_optimizer
from jaxvit.training.state import create_state, derive_key
from jaxvit.training.step import train_step

from .workloads import Workload, images, labels


class JaxvitPeer:
    """See `benchmarks.peers.timing.Peer`."""

    name = "jaxvit"

    def __init__(self, *, amp: bool = False, implementations: str = "fast"):
        self._dtype = "bfloat16" if amp else "float32"
        self._implementations = implementations

    def prepare(self, workload: Workload) -> None:
        w = workload
        model = create_model(w.model, dtype=self._dtype)

        def init(key: jax.Array) -> Any:
            return dict(model.init(key, jnp.zeros((1, *w.input)), train=False))

        def apply(variables: Any, images_BHWC: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
            with use(self._implementations):
                return model.apply(variables, images_BHWC, train=train, rngs={"dropout": key} if train else None)

        def as_is(key: jax.Array, step: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            del key, step
            return batch["image"], one_hot(batch["label"], w.classes, w.label_smoothing)

        optimizer = make_optimizer(
            OptimizerSettings(
                name=w.optimizer,
                schedule="constant",
                peak_lr=w.learning_rate,
                weight_decay=w.weight_decay,
                decay_mask="all",
                eps=w.epsilon,
            )
        )
        step = partial(train_step, key=derive_key(0, "step"), apply=apply, transform=as_is, optimizer=optimizer)
        self._step = jax.jit(step, donate_argnums=0)
        self._state = jax.jit(lambda key: create_state(init, optimizer, key))(derive_key(0, "init"))
        self._apply = jax.jit(
            lambda variables, images_BHWC: apply(variables, images_BHWC, train=False),
            compiler_options=forward_options(),
        )
        self._images = cache(lambda count: jax.device_put(images(w, count)))
        label_B = jax.device_put(labels(w, w.batch))
        self._batch = {"image": self._images(w.batch), "label": label_B, "mask": jnp.ones(w.batch)}

    def parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self._state.params))

    def train_step(self) -> jax.Array:
        self._state, sums = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, sums))
        return sums["loss"] / sums["count"]

    def infer(self, batch: int) -> jax.Array:
        return jax.block_until_ready(self._apply(self._state.variables, self._images(batch)))

    def device(self) -> str:
        return jax.devices()[0].device_kind

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
