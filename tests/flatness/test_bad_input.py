"""Bad input is refused in one sentence that names the argument, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poster_jax import curvature, flatness

pytestmark = pytest.mark.bad_input
KEY = jax.random.key(0)


@pytest.fixture
def problem(net):
    return jax.tree.map(
        jnp.asarray, (net.make_params(dtype=np.float32), net.make_batch(dtype=np.float32))
    )


def _call(net, params, batch, **options):
    options = {"layer": "Dense_1/kernel", "num_probes": 4, "key": KEY} | options
    key = options.pop("key")
    return flatness.relative_flatness(net.loss_fn, params, batch, key, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "Dense_1/kernle"}, ValueError, r"Nearest: \['Dense_1/kernel'"),
        ({"layer": "Dense_1"}, ValueError, "layer must be the path of a single kernel, got dict"),
        ({"layer": "Dense_1/bias"}, ValueError, r"at least 2 axes, .* got shape \(5,\)"),
        ({"layer": 1}, TypeError, "path must be a string"),
        ({"num_probes": 0}, ValueError, "num_probes must be at least 1, got 0. The standard"),
        ({"num_probes": 1.5}, TypeError, "num_probes must be an integer"),
        ({"key": 0}, TypeError, "key must be a PRNG key"),
        ({"neuron_axis": 2}, ValueError, "neuron_axis must be an axis"),
        ({"neuron_axis": "out"}, TypeError, "neuron_axis must be an integer"),
        (
            {"input_axis": 1, "feature_scales": jnp.ones(6)},
            ValueError,
            "input_axis must be an axis of the kernel .* other than neuron_axis",
        ),
        ({"feature_scales": jnp.ones(5)}, ValueError, r"feature_scales must have shape \(6,\)"),
        ({"feature_scales": -jnp.ones(6)}, ValueError, "feature_scales must be finite and at"),
        ({"feature_scales": jnp.full(6, jnp.nan)}, ValueError, "feature_scales must be finite"),
        ({"microbatch": 0}, ValueError, "microbatch must be at least 1, got 0"),
        ({"mesh": 8}, TypeError, "mesh must be a jax.sharding.Mesh"),
    ],
)
def test_arguments(net, problem, options, error, message):
    with pytest.raises(error, match=message):
        _call(net, *problem, **options)


def test_params_and_batches(net, problem):
    params, (x, y) = problem
    bad = {**params, "Dense_0": {**params["Dense_0"], "bias": jnp.full(6, jnp.nan)}}
    with pytest.raises(ValueError, match=r"params\['Dense_0'\]\['bias'\] must be finite"):
        _call(net, bad, (x, y))
    with pytest.raises(ValueError, match="do not fit"):
        _call(net, {**params, "Dense_0": params["Dense_1"]}, (x, y))
    with pytest.raises(ValueError, match="do not fit"):
        _call(net, params, (x[:, :3], y))
    with pytest.raises(ValueError, match="at least 1 example"):
        _call(net, params, (x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"batch\[0\] must be finite"):
        _call(net, params, (x.at[0, 0].set(jnp.inf), y))
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        flatness.relative_flatness(3, params, (x, y), KEY, layer="Dense_1/kernel", num_probes=4)
    with pytest.raises(TypeError, match="must be a floating point array"):
        _call(net, jax.tree.map(lambda a: a.astype(int), params), (x, y))


def test_nothing_is_compiled_before_the_refusal(net, problem):
    traced = []

    def loss_fn(params, batch):
        traced.append(1)
        return net.loss_fn(params, batch)

    with pytest.raises(ValueError, match="num_probes"):
        flatness.relative_flatness(loss_fn, *problem, KEY, layer="Dense_1/kernel", num_probes=0)
    assert len(traced) <= 1  # the shapes of the loss, nothing else


def test_measures_want_a_layer(problem, net):
    params, batch = problem
    op = curvature.block_operator(net.loss_fn, params, batch, path="Dense_1/kernel")
    for name in ("layer_trace", "neuronwise_trace", "columnwise_trace", "normalized_layer_trace"):
        with pytest.raises(TypeError, match="hessian must be a LayerHessian"):
            getattr(flatness, name)(op, KEY, num_probes=3)
    for name in ("layer_max_eigenvalue", "neuronwise_max_eigenvalue"):
        with pytest.raises(TypeError, match="hessian must be a LayerHessian"):
            getattr(flatness, name)(op, KEY)
        hessian = flatness.layer_hessian_from_operator(op)
        with pytest.raises(ValueError, match="tol must be finite and above 0"):
            getattr(flatness, name)(hessian, KEY, tol=0.0)
    wrong = flatness.LayerHessian(jnp.ones((2, 3)), curvature.matrix_operator(jnp.eye(6)))
    with pytest.raises(ValueError, match=r"must act on arrays like its weights, \(2, 3\)"):
        flatness.neuronwise_trace(wrong, KEY, num_probes=3)


def test_several_layers(net, problem):
    def refused(message, **options):
        options = {"layers": ["Dense_1/kernel"], "num_probes": 2} | options
        with pytest.raises(ValueError, match=message):
            flatness.relative_flatness_all_layers(net.loss_fn, *problem, KEY, **options)

    refused("at least one", layers=[])
    refused("at least one", layers="Dense_1/kernel")
    refused("different paths", layers=["Dense_1/kernel"] * 2)
    refused(r"not measured: \['Dense_0/kernel'\]", feature_scales={"Dense_0/kernel": jnp.ones(4)})


def test_last_layers():
    phi, z, w = jnp.ones((5, 3)), jnp.ones((5, 2)), jnp.ones((3, 2))
    good = (phi, z, w)
    for call in (flatness.last_layer_relative_flatness, flatness.hessian_of_last_layer):
        for args, message in (
            ((phi, z[:4], w), "share the leading example axis"),
            ((phi, z, w.T), "kernel must have 3 inputs and 2 neurons"),
            ((phi[:0], z[:0], w), "at least 1 example"),
            ((phi[:, 0], z, w), "features must have shape"),
            ((phi, z, jnp.ones(3)), "at least 2 axes"),
            ((phi, z, jnp.ones((3, 3, 2))), "dense layer, 2 axes"),
            ((phi.at[0, 0].set(jnp.nan), z, w), "must be finite"),
            ((phi, z, w.at[0, 0].set(jnp.inf)), "kernel must be finite"),
        ):
            with pytest.raises(ValueError, match=message):
                call(*args)
    with pytest.raises(ValueError, match="weight_decay must be finite and at least 0"):
        flatness.last_layer_relative_flatness(*good, weight_decay=-1.0)
    with pytest.raises(ValueError, match="kernel must have 3 inputs"):
        flatness.least_squares_relative_flatness(phi, jnp.ones((4, 2)))


def test_comparison_measures(net, problem):
    params, batch = problem
    args = (net.loss_fn, params, batch)
    for call, message in (
        (lambda: flatness.keskar_sharpness(*args, KEY, radius=0.0), "radius"),
        (lambda: flatness.keskar_sharpness(*args, KEY, num_steps=0), "num_steps"),
        (lambda: flatness.keskar_sharpness(*args, KEY, num_starts=0), "num_starts"),
        (lambda: flatness.sam_sharpness(*args, radius=-1.0), "radius"),
        (lambda: flatness.expected_sharpness(*args, KEY, sigma=0.0, num_samples=3), "sigma"),
        (lambda: flatness.expected_sharpness(*args, KEY, sigma=1.0, num_samples=0), "num_samples"),
        (lambda: flatness.pac_bayes_sigma(*args, KEY, displacement=2.0), "displacement"),
        (lambda: flatness.pac_bayes_sigma(*args, KEY, tolerance=0.0), "tolerance"),
        (lambda: flatness.pac_bayes_sigma(*args, KEY, num_draws=0), "num_draws"),
        (lambda: flatness.pac_bayes_sigma(*args, KEY, max_sigma=0.0), "max_sigma"),
        (lambda: flatness.pac_bayes_sigma(*args, KEY, max_steps=0), "max_steps"),
        (lambda: flatness.pac_bayes_bound(-1.0, 1.0, 10), "squared_norm"),
        (lambda: flatness.pac_bayes_bound(1.0, 0.0, 10), "sigma"),
        (lambda: flatness.pac_bayes_bound(1.0, 1.0, 0), "num_examples"),
        (lambda: flatness.squared_norm({}), "params"),
        (lambda: flatness.kernel_paths({}), "params"),
        (
            lambda: flatness.fisher_rao_norm(jnp.ones((3, 2)), jnp.zeros(3, int), num_layers=0),
            "num_layers",
        ),
        (
            lambda: flatness.fisher_rao_norm(jnp.ones((3, 2)), jnp.zeros((3, 2)), num_layers=2),
            "labels",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="labels must be integers"):
        flatness.fisher_rao_norm(jnp.ones((3, 2)), jnp.zeros(3), num_layers=2)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        flatness.pac_bayes_sigma(*args, 0)


def test_feature_robustness(net, problem):
    def refused(message, error=ValueError, **options):
        options = {"layer": "Dense_1/kernel", "delta": 0.1, "num_samples": 2} | options
        with pytest.raises(error, match=message):
            flatness.feature_robustness(net.loss_fn, *problem, KEY, **options)

    refused("delta must be finite and above 0", delta=0.0)
    refused("num_samples must be at least 1", num_samples=0)
    refused("names nothing", layer="Dense_7/kernel")
    refused("at least 2 axes", layer="Dense_1/bias")
    refused("neuron_axis must be an axis", neuron_axis=5)
