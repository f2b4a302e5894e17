"""The examples in the layers' docstrings run as they stand, in the session that the package's docstring describes."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxvit import layers

SESSION = {"jax": jax, "jnp": jnp, "partial": partial, **{name: getattr(layers, name) for name in layers.__all__}}


@pytest.mark.parametrize("name", layers.__all__)
def test_example(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(SESSION[name], name, globs=SESSION)
    assert test.examples, f"the docstring of {name} has no example"
    assert not doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed
