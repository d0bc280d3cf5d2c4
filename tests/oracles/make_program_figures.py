"""Writes program_figures.npz: what programs like those of Neural Tangents' cookbook answer there.

    VENV_NT/bin/python tests/oracles/make_program_figures.py

in an environment with neural-tangents==0.6.5, jax==0.5.3, jaxlib==0.5.3 and scipy. The test runs
`programs` with poster_jax in the place of neural_tangents: the same lines, draws of parameters and
of dropout included, must give the same figures.
"""

import json
import pathlib

import numpy as np


def programs(nt):
    """Answers by name; trees of arrays."""
    import jax
    import jax.numpy as jnp

    stax = nt.stax
    wave = lambda *s: jnp.sin(1.3 * jnp.arange(np.prod(s)).reshape(s) + len(s))  # noqa: E731
    x1, x2, y = wave(4, 3), wave(6, 3), wave(4, 2)
    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(32, W_std=1.2, b_std=0.3), stax.Relu(), stax.Dropout(0.7), stax.Dense(2)
    )
    key = jax.random.PRNGKey(0)
    out = {"init": init_fn(key, (-1, 3))[1]}

    # Cookbook: an ensemble over time, its kernels in tiles.
    batched = nt.batch(kernel_fn, batch_size=2, device_count=0)
    out["tiles"] = batched(x2, x1, ("ntk", "nngp"))
    out["kernel"] = [batched(x1).cov1, batched(x1, x2).cov2]
    fn = nt.predict.gradient_descent_mse_ensemble(batched, x1, y, 0.5, diag_reg=1e-3)
    out["ensemble"] = fn(t=jnp.array([[0.0, 5.0]]), x_test=x2, get="ntk", compute_cov=True)

    # README: kernels of finite networks, one and on average.
    params = out["init"]
    emp = nt.empirical_kernel_fn(apply_fn, trace_axes=(), vmap_axes=None, implementation=2)
    out["empirical"] = emp(x1, x2, ("nngp", "ntk"), params, rng=key)
    for name, batch_size in (("mean", 0), ("mean in tiles", 2)):
        fn = nt.monte_carlo_kernel_fn(init_fn, apply_fn, key, (1, 3), batch_size, device_count=0)
        out[name] = list(fn(x1, None, ("ntk", "nngp")))

    # Function space linearization: logits under momentum, from the state of another time.
    plain = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]  # noqa: E731
    params = [wave(3, 8), wave(8, 2)]
    ntk_fn = nt.batch(nt.empirical_ntk_fn(plain, trace_axes=(), vmap_axes=0), 2, 0)
    loss = lambda fx, y: jnp.mean(jax.nn.softplus(-fx * y))  # noqa: E731
    g_dd, g_td = ntk_fn(x1, None, params), ntk_fn(x2, x1, params)
    out["tangent"] = [g_dd, g_td]
    predictor = nt.predict.gradient_descent(loss, g_dd, y, 0.1, momentum=0.8, trace_axes=())
    state = nt.predict.ODEState(plain(params, x1), plain(params, x2))
    state = predictor(2.0, state, None, g_td)
    out["state"] = predictor(jnp.array([0.0, 3.0]), state, None, g_td).fx_test
    out["series"] = nt.taylor_expand(plain, params, 2)([1.1 * p for p in params], x2)

    # Graphs: one pattern for each side, through tiles and ensembles.
    *_, graphs = stax.serial(
        stax.Dense(1), stax.Aggregate(1, 0, -1), stax.Relu(), stax.GlobalAvgPool()
    )
    g1, g2, p1, p2 = wave(4, 3, 2), wave(2, 3, 2), wave(4, 3, 3), wave(2, 3, 3)
    out["graphs"] = nt.batch(graphs, 2, 0)(g1, g2, "ntk", pattern=(p1, p2))
    fn = nt.predict.gradient_descent_mse_ensemble(graphs, g1, y, diag_reg=0.1, pattern=(p1, p1))
    out["graph ensemble"] = fn(x_test=g2, get=("ntk", "nngp"), compute_cov=True, pattern=(p2, p2))
    return out


def flatten(out):
    """The leaves by name and number."""
    import jax

    leaves = {name: jax.tree_util.tree_leaves(value) for name, value in out.items()}
    return {f"{n}/{i}": np.asarray(x, float) for n, xs in leaves.items() for i, x in enumerate(xs)}


if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    import neural_tangents

    # One vector and the names and shapes of its parts: an array a file would be mostly headers.
    path = pathlib.Path(__file__).with_name("program_figures.npz")
    parts = flatten(programs(neural_tangents))
    np.savez_compressed(
        path,
        values=np.concatenate([part.ravel() for part in parts.values()]),
        index=json.dumps({name: part.shape for name, part in parts.items()}),
    )
