"""Runs the docstring examples of public ops, in the session that the package's docstring describes."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit import ops
from jaxvit.ops import arguments, attention, implementations, labels

SESSION = {"jax": jax, "jnp": jnp, "np": np, **{name: getattr(ops, name) for name in ops.__all__}}
# Examples of names that are not exported.
MORE = {
    "AttentionKernels": attention.AttentionKernels,
    "dtype_name": arguments.dtype_name,
    "implementation": implementations.implementation,
    "one_hot": labels.one_hot,
    "use": implementations.use,
}


@pytest.mark.parametrize("name", sorted([*ops.__all__, "dtype_name", "one_hot", "use"]))
def test_example(name):
    session = {**SESSION, **MORE}
    (test,) = doctest.DocTestFinder(recurse=False).find(session[name], name, globs=session)
    assert test.examples, f"the docstring of {name} has no example"
    assert not doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed
