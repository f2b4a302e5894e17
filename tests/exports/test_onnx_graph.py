"""Graphs rewritten for onnxruntime."""

import itertools

import jax
import numpy as np
import pytest

from jaxvit.ops import implementations, max_pool

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from jaxvit.exports.onnx_graph import rewrite  # noqa: E402

SIZES = dict(zip("bcdekmnqs", (2, 3, 4, 5, 6, 7, 8, 9, 1), strict=True))
NUMBERS = np.random.default_rng(0)


def run(model, *arrays):
    """Runs a model or a graph with onnxruntime."""
    if isinstance(model, onnx.GraphProto):
        model = onnx.helper.make_model(model, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)})[0]


def sum_over(equation, *shapes):
    """A graph with a single Einsum."""
    inputs = [onnx.helper.make_tensor_value_info(f"in_{i}", 1, shape) for i, shape in enumerate(shapes)]
    node = onnx.helper.make_node("Einsum", [each.name for each in inputs], ["out"], equation=equation)
    result = onnx.helper.make_tensor_value_info("out", 1, [None] * len(equation.partition("->")[2]))
    return onnx.helper.make_graph([node], "g", inputs, [result])


@pytest.mark.parametrize(
    ("equation", "product"),
    [
        ("bqe,bke->bqk", True),
        ("bqk,bke->bqe", True),
        ("bqmd,bkmd->bmqk", True),
        ("bmqk,bkmd->bqmd", True),
        ("bqk,kc->bqc", True),
        ("cmd,emd->cme", True),
        ("bsn,bnc->bsc", True),
        ("qk,ck->cq", True),
        ("bk,bkc->bc", False),  # no row
        ("bqmd,mdc->bqc", False),  # two summed
        ("bqk,kbc->cqbe", None),  # names what nothing has
        ("bqk,bcn->bqcn", False),  # nothing summed
        ("bqk,kc->qc", False),  # sums over what one alone has
        ("bbk,bkc->bc", False),
        ("b...k,bkc->b...c", False),
        ("bqk->bkq", False),
    ],
)
def test_sums_over_named_axes_are_matrix_products(equation, product):
    names = equation.partition("->")[0].split(",")
    shapes = [[SIZES[axis] for axis in axes.replace("...", "s")] for axes in names]
    graph = sum_over(equation, *shapes)
    rewrite(graph)
    kinds = [node.op_type for node in graph.node]
    assert ("MatMul" in kinds) == bool(product) and ("Einsum" in kinds) != bool(product)
    if product is None:
        return
    arrays = [NUMBERS.normal(size=shape).astype(np.float32) for shape in shapes]
    if not product:  # the node stays as it was
        assert [*graph.node] == [*sum_over(equation, *shapes).node]
        return
    np.testing.assert_allclose(run(graph, *arrays), np.einsum(equation, *arrays), rtol=1e-5, atol=1e-5)


def written(function, shape):
    """Converts a function with jax2onnx, for any batch size."""
    to_onnx = pytest.importorskip("jax2onnx").to_onnx
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), implementations.use("plain"):
        return to_onnx(function, inputs=[jax.ShapeDtypeStruct(("B", *shape[1:]), np.float32)])


def kinds(graph):
    """Node types of a graph, including branches and loops."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            found += kinds(attribute.g)
    return found


MAPS = NUMBERS.normal(size=(3, 8, 7, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, ((1, 1), (1, 1))), (2, 2, ((0, 0), (0, 0))), (3, 1, ((0, 1), (2, 1)))]
)
def test_pooling_of_maps_is_onnxruntimes(window, stride, padding):
    def pooled(x):
        return max_pool(x, window=window, stride=stride, padding=padding)

    model = written(pooled, MAPS.shape)
    rewrite(model.graph)
    assert kinds(model.graph) == ["Transpose", "MaxPool", "Transpose"] and not model.graph.initializer
    np.testing.assert_array_equal(run(model, MAPS), pooled(MAPS))


def dilated(x):
    return jax.lax.reduce_window(
        x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 3, 1)
    )


def twice(x):
    """One pooled map is read twice, another is pooled again."""
    once = max_pool(x)
    return once + max_pool(once, stride=1) + max_pool(x)


def in_a_loop(x):
    weight = jax.numpy.asarray(NUMBERS_OF_A_MATRIX)
    step = lambda carry, _: (max_pool(carry, stride=1) @ weight, None)  # noqa: E731
    return jax.lax.scan(step, x, None, length=2)[0]


def in_a_branch(x):
    weight = jax.numpy.asarray(NUMBERS_OF_A_MATRIX)
    return jax.lax.cond(x.sum() > 0, lambda x: x @ weight, lambda x: x @ (weight + 1), x)


NUMBERS_OF_A_MATRIX = NUMBERS.normal(size=(5, 5)).astype(np.float32)


@pytest.mark.parametrize("function", [dilated, twice, in_a_loop, in_a_branch])
def test_whatever_is_around_them(function):
    model = written(function, MAPS.shape)
    rewrite(model.graph)
    assert "Einsum" not in kinds(model.graph)
    with implementations.use("plain"):
        wanted = function(MAPS)
    np.testing.assert_allclose(run(model, MAPS), wanted, rtol=1e-5, atol=1e-5)


def test_a_constant_that_is_an_output_stays():
    graph = sum_over("qk,kc->qc", [2, 3], [3, 4])
    constant = onnx.numpy_helper.from_array(np.ones(2, np.float32), "known")
    graph.initializer.append(constant)
    graph.output.append(onnx.helper.make_tensor_value_info("known", 1, [2]))
    rewrite(graph)
    assert [each.name for each in graph.initializer] == ["known"]
    assert run(graph, np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)).tolist() == [[3.0] * 4] * 2


def test_names_that_are_taken_are_not_taken_again():
    graph = sum_over("qk,ck->cq", [2, 3], [4, 3])
    graph.node[0].input[1] = graph.input[1].name = "out_kc"
    rewrite(graph)
    arrays = [NUMBERS.normal(size=shape).astype(np.float32) for shape in ([2, 3], [4, 3])]
    np.testing.assert_allclose(run(graph, *arrays), np.einsum("qk,ck->cq", *arrays), rtol=1e-5)


def test_other_nodes_between_are_kept_in_their_order():
    make = onnx.helper.make_node
    nodes = [make("Relu", ["in_0"], ["a"]), *sum_over("qk,kc->qc", [2, 3], [3, 4]).node, make("Neg", ["out"], ["b"])]
    nodes[1].input[0] = "a"
    graph = sum_over("qk,kc->qc", [2, 3], [3, 4])
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output[0].name = "b"
    rewrite(graph)
    made = set(each.name for each in graph.input)
    for node in graph.node:
        assert set(node.input) <= made
        made |= set(node.output)
    assert [node.op_type for node in graph.node] == ["Relu", "MatMul", "Neg"]
    assert all(a.output[0] in b.input for a, b in itertools.pairwise(graph.node))
