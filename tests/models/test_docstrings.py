"""Tests of the families' docstrings: the annotated forward pass is correct, and the example runs."""

import doctest
import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from jaxvit.layers import EncoderBlock
from jaxvit.models import CCT, ShiftViT, ViT, create_model, input_shape
from jaxvit.models.blocks import encoder_block

FAMILIES = (ViT, CCT, ShiftViT)


def rows_of(family):
    """[(submodule's path, shape without the batch)] of the annotated forward pass, and the model that it is of."""
    text = inspect.getdoc(family)  # Python 3.13 stores docstrings without the indentation of the class
    name = re.search(r"forward pass of `(\w+)`", text)[1]
    rows, parents = [], []
    for spaces, path, shape in re.findall(r"^ {4}( *)(\S*) +\(B, ([\d, ]+)\)", text, re.M):
        depth = len(spaces) // 2
        if path:
            parents[depth:] = [path]
        rows.append(("/".join(parents) if path else "", tuple(map(int, shape.split(",")))))
    return name, rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_annotated_forward_pass_is_the_models(family):
    name, rows = rows_of(family)
    model, called, shapes = create_model(name), [], {}
    assert isinstance(model, family) and rows[0] == ("images", input_shape(name))

    def watch(call, args, kwargs, context):
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        called.append("/".join(context.module.path))
        out = call(*args, **kwargs)
        shapes["/".join(context.module.path)] = out.shape[1:]
        return out

    images = jax.ShapeDtypeStruct((1, *input_shape(name)), jnp.float32)
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)
    named = [(path, shape) for path, shape in rows[1:] if path]
    assert len(named) > 9
    assert [(path, shapes.get(path)) for path, _ in named] == named
    assert sorted((path for path, _ in named), key=called.index) == [path for path, _ in named]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_runs(family):
    session = {"jax": jax, "jnp": jnp, family.__name__: family}
    (test,) = doctest.DocTestFinder(recurse=False).find(family, family.__name__, globs=session)
    assert test.examples
    assert not doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed


def test_one_block_factory_passes_on_what_both_families_name():
    vit, cct = ViT(layer_scale=0.1, qk_norm=True, mlp_dim=7, dropout=0.3), CCT(norm_order="post", mlp_ratio=2.0)
    of_vit, of_cct = encoder_block(vit)(), encoder_block(cct)()
    assert isinstance(of_vit, EncoderBlock) and isinstance(of_cct, EncoderBlock)
    assert (of_vit.layer_scale, of_vit.qk_norm, of_vit.mlp_dim, of_vit.mlp_dropout) == (0.1, True, 7, 0.3)
    assert (of_vit.projection_dropout, of_vit.initialiser, of_vit.norm_eps) == (0.3, "vit", 1e-6)
    assert (of_cct.norm_order, of_cct.mlp_dim, of_cct.qkv_bias, of_cct.attention_dropout) == ("post", 256, False, 0.1)
    assert (of_cct.layer_scale, of_cct.initialiser, of_cct.norm_eps) == (0.0, "cct", 1e-5)
