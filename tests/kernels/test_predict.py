"""Predictions against neural-tangents 0.6.5, against scipy's integration, and in their limits.

Of each comparison one case is called as users do; the others put all their calls into one jax.jit,
which compiles once what they would compile in dozens.
"""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from poster_jax.kernels import predict

TIMES = {
    "scalar": 3.0,
    "zero": 0.0,
    "grid": np.array([[0.0, 0.5, 2.0], [7.0, 40.0, 1e3]]),
    "none": None,
}
CASES = {
    "logits": (-1,),
    "full": (),
    "vector": (),
    "images": (2,),
    "middle": (1,),
    "two": (-1, 1),
}
Both = namedtuple("Both", "nngp ntk")


def kernel_fn(x1, x2, get, scale=1.0):
    base = x1 @ (x1 if x2 is None else x2).T / x1.shape[1] + 1.0
    kernels = {"nngp": scale * base**2, "ntk": scale * (base**2 + base**3)}
    if isinstance(get, str):
        return kernels[get]
    return namedtuple("K", get)(*(kernels[g] for g in get))


def cross_entropy(fx, y):
    return -jnp.mean(jax.nn.log_softmax(fx) * y)


def half_mse(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def random_kernel(n, seed=0, rank=None):
    half = np.random.default_rng(seed).normal(size=(n, rank or n + 2))
    return half @ half.T / half.shape[1]


def assert_same(ours, figures, name, tolerance=1e-9):
    leaves = jax.tree.leaves(ours)
    assert f"{name}/{len(leaves)}" not in figures
    for i, leaf in enumerate(leaves):
        theirs = figures[f"{name}/{i}"]
        assert leaf.shape == theirs.shape, name
        np.testing.assert_allclose(leaf, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def predicted(figures):
    return figures("predict")


def given(figures, case):
    data = {k.split("/")[1]: v for k, v in figures.items() if k.startswith(f"{case}/")}
    kernels = [Both(data[f"nngp_{k}"], data[f"ntk_{k}"]) for k in ("dd", "td", "tt")]
    return data["y"], data["f_train"], data["f_test"], *kernels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("case", "reg", "absolute"),
    [
        *(
            pytest.param(c, 0.0, False, marks=() if c in ("logits", "full") else pytest.mark.slow)
            for c in CASES
        ),
        ("images", 0.1, False),
        ("logits", 0.2, True),
    ],
)
def test_mse_and_inference_are_those_of_neural_tangents(predicted, case, reg, absolute):
    y, f_train, f_test, k_dd, k_td, k_tt = given(predicted, case)
    args, tag = (reg, absolute, CASES[case]), f"{case}/mse/{reg}"
    gets = {g: g for g in ("nngp", "ntk", "ntkgp")} | {"both": ("ntk", "nngp"), "none": None}

    def answers(y, f_train, f_test, k_dd, k_td, k_tt):
        fn, td = predict.gradient_descent_mse(k_dd.ntk, y, 0.7, *args), k_td.ntk
        infer = predict.gp_inference(k_dd, y, *args)
        found = {}
        for name, t in TIMES.items():
            found[f"{name}/pair"] = fn(t, f_train, f_test, td)
            found[f"{name}/default"] = fn(t, 0.0, 0.0, td)
            found[f"{name}/train"] = fn(t, f_train)
            found[f"{name}/test"] = fn(t, None, f_test, td)
        for name, get in gets.items():
            found[f"gp/{name}/mean"] = infer(get, k_td)
            found[f"gp/{name}/cov"] = infer(get, k_td, k_tt)
            found[f"gp/{name}/train"] = infer(get, None, True)
        return found

    answers = answers if (case, reg) == ("logits", 0.0) else jax.jit(answers)
    for name, found in answers(y, f_train, f_test, k_dd, k_td, k_tt).items():
        assert_same(found, predicted, f"{tag}/{name}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", ["logits", "full"])
@pytest.mark.parametrize("loss", [half_mse, cross_entropy])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_any_loss_is_integrated_as_by_neural_tangents(predicted, case, loss, momentum):
    y, f_train, f_test, k_dd, k_td, _ = given(predicted, case)
    ts, tag = np.array([0.0, 0.3, 1.0, 5.0]), f"{case}/ode/{loss.__name__}/{momentum}"

    def answers(y, f_train, f_test, k_dd, td):
        fn = predict.gradient_descent(loss, k_dd, y, 0.5, momentum, CASES[case])
        found = {"pair": fn(ts, f_train, f_test, td)}
        if loss is cross_entropy and case == "full":
            found["scalar"] = fn(2.0, f_train, f_test, td)
            found["train"] = fn(2.0)
            found["test"] = fn(2.0, None, f_test, td)
        if momentum != 0.0:
            found["state"] = fn(1.0, predict.ODEState(f_train, f_test), None, td)
            found["resumed"] = fn(ts.reshape(2, 2), found["state"], None, td)
        return found

    answers = answers if (case, momentum) == ("logits", None) else jax.jit(answers)
    # The same solver; its tolerance is 1.4e-8 and roundings may change a step.
    for name, found in answers(y, f_train, f_test, k_dd.ntk, k_td.ntk).items():
        assert_same(found, predicted, f"{tag}/{name}", 1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reg", [0.0, 0.1])
@pytest.mark.parametrize("time", TIMES)
def test_ensembles_are_those_of_neural_tangents(predicted, reg, time):
    x, x_test, y = (predicted[f"ensemble/{k}"] for k in ("x", "x_test", "y"))
    gets = {"nngp": "nngp", "ntk": "ntk", "both": ("ntk", "nngp"), "none": None}

    def answers(x, x_test, y):
        fn = predict.gradient_descent_mse_ensemble(kernel_fn, x, y, 0.5, reg, scale=1.5)
        found = {}
        for name, get in gets.items():
            for where, points in (("train", None), ("test", x_test)):
                found[f"{name}/{where}/mean"] = fn(TIMES[time], points, get)
                found[f"{name}/{where}/cov"] = fn(TIMES[time], points, get, True)
        return found

    answers = answers if (time, reg) == ("grid", 0.0) else jax.jit(answers)
    for name, found in answers(x, x_test, y).items():
        assert_same(found, predicted, f"ensemble/{reg}/{time}/{name}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_any_loss_follows_the_equation_as_scipy_integrates_it(momentum):
    kernel, y = random_kernel(7), np.random.default_rng(1).normal(size=(5, 1))
    k_dd, k_td, lr = kernel[:5, :5], kernel[5:, :5], 0.3
    slope = jax.jit(jax.grad(lambda f: jnp.mean(jnp.log(jnp.cosh(f - y)))))

    def right_hand_side(t, state):
        f, q = np.split(state, 2)
        force = -kernel[:, :5] @ np.asarray(slope(f[:5, None]))[:, 0]
        if momentum is None:
            return np.concatenate([lr * force, 0 * q])
        return np.concatenate([lr**0.5 * q, (momentum - 1) * q + lr**0.5 * force])

    path = scipy.integrate.solve_ivp(
        right_hand_side, (0, 4), np.zeros(14), t_eval=[1.0, 4.0], rtol=1e-11, atol=1e-12
    )
    loss = lambda f, y: jnp.mean(jnp.log(jnp.cosh(f - y)))  # noqa: E731
    fn = predict.gradient_descent(loss, k_dd, y, lr, momentum)
    train, test = fn(np.array([4.0, 1.0]), 0.0, 0.0, k_td)  # in any order
    ours = np.concatenate([train, test], axis=1)[::-1, :, 0]
    np.testing.assert_allclose(ours, path.y[:7].T, atol=3e-7)  # odeint's tolerance over the path


@pytest.mark.usefixtures("x64")
def test_closed_form_is_the_matrix_exponential():
    kernel, y = random_kernel(6), np.random.default_rng(1).normal(size=(4, 3))
    f0, t, lr = np.random.default_rng(2).normal(size=(4, 3)), 2.5, 0.4
    gone = scipy.linalg.expm(-lr * t * kernel[:4, :4] / y.size) - np.eye(4)
    fn = predict.gradient_descent_mse(kernel[:4, :4], y, lr)
    train, test = fn(t, f0, 0.0, kernel[4:, :4])
    np.testing.assert_allclose(train, f0 + gone @ (f0 - y), atol=1e-12)
    expected = kernel[4:, :4] @ np.linalg.solve(kernel[:4, :4], gone @ (f0 - y))
    np.testing.assert_allclose(test, expected, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_infinite_time_is_the_limit_of_late_times():
    kernel, y = random_kernel(6), np.random.default_rng(1).normal(size=(4, 1))
    fn = predict.gradient_descent_mse(kernel[:4, :4], y)
    ode = predict.gradient_descent(half_mse, kernel[:4, :4], y)

    @jax.jit
    def closed(k_td):
        return [fn(t, 0.0, 0.0, k_td) for t in (np.inf, 1e9, None)], fn(1.0)

    (*late, limit), early = closed(kernel[4:, :4])
    for found in late:
        for a, b in zip(found, limit, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)
    for t in (None, np.inf):
        np.testing.assert_allclose(ode(t), y, atol=1e-6)
    mixed = ode(np.array([1.0, np.inf]))
    np.testing.assert_allclose(mixed, [early, y], atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", [None, np.inf, 50.0])
def test_equal_inputs_are_learned_as_their_mean(t):
    # Two equal training inputs with labels 0 and 2 act as one of weight two and label 1.
    kernel = random_kernel(4)
    twice = np.array([0, 0, 1])
    y, once = np.array([[0.0], [2.0], [-1.0]]), np.array([[1.0], [-1.0]])
    fn = predict.gradient_descent_mse(kernel[np.ix_(twice, twice)], y)
    _, test = fn(t, 0.0, 0.0, kernel[2:, twice])
    if t == 50.0:
        weighted = kernel[:2, :2] @ np.diag([2.0, 1.0]) / 3
        gone = np.eye(2) - scipy.linalg.expm(-t * weighted)
        expected = kernel[2:, :2] @ np.linalg.solve(kernel[:2, :2], gone @ once)
    else:
        expected = kernel[2:, :2] @ np.linalg.solve(kernel[:2, :2], once)
    np.testing.assert_allclose(test, expected, atol=1e-11)


def test_singular_kernels_give_finite_answers_in_float32():
    kernel = np.asarray(random_kernel(12, rank=4), np.float32)
    y = np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)
    k_dd, k_td, k_tt = kernel[:9, :9], kernel[9:, :9], kernel[9:, 9:]
    for t in (None, 0.0, 1.0, 1e8, np.inf):
        train, test = predict.gradient_descent_mse(k_dd, y)(t, 0.0, 0.0, k_td)
        assert np.isfinite(train).all()
        assert np.isfinite(test).all()
    mean, covariance = predict.gp_inference(k_dd, y)("nngp", k_td, k_tt)
    # Four directions are all there is: the test outputs are known from the training set.
    np.testing.assert_allclose(covariance, 0, atol=2e-5)
    expected = k_td @ np.linalg.pinv(k_dd.astype(float), rcond=1e-5) @ y
    np.testing.assert_allclose(mean, expected, rtol=1e-3, atol=1e-4)
    under_jit = jax.jit(lambda k: predict.gp_inference(k, y)("nngp", k_td))(k_dd)
    np.testing.assert_allclose(under_jit, mean, rtol=1e-4, atol=1e-5)


def test_noise_in_a_kernel_of_another_program_is_forgiven():
    kernel = np.asarray(random_kernel(30, rank=5), np.float32)
    noise = np.random.default_rng(0).normal(size=(30, 30)) * 1e-5
    fn = predict.gradient_descent_mse(
        (kernel + noise + noise.T).astype(np.float32), np.ones((30, 1), np.float32)
    )
    assert np.isfinite(fn(3.0)).all()


def test_largest_rate_divides_convergence_from_divergence():
    kernel = random_kernel(5)
    for momentum in (0.0, 0.8):
        rate = predict.max_learning_rate(kernel, y_train_size=5, momentum=momentum)
        for factor, grows in ((0.99, False), (1.01, True)):
            f, q = np.ones(5), np.zeros(5)
            for _ in range(4000):
                q = momentum * q - factor * rate * kernel @ f / 5
                f = f + q
            assert (np.linalg.norm(f) > 1) == grows
    assert predict.max_learning_rate(kernel) == predict.max_learning_rate(kernel, 5)
    traced = jax.jit(predict.max_learning_rate)(jnp.asarray(kernel))
    np.testing.assert_allclose(traced, predict.max_learning_rate(kernel), rtol=1e-5)


def test_factorisation_is_kept_and_never_a_tracer():
    kernel, y = random_kernel(4).astype(np.float32), np.ones((4, 1), np.float32)
    fn = predict.gradient_descent_mse(kernel, y)
    traced = jax.jit(lambda t: fn(t, 0.0, 0.0, kernel))(1.0)  # first use inside jit
    np.testing.assert_allclose(fn(1.0, 0.0, 0.0, kernel)[1], traced[1], rtol=1e-5)
    ensemble = predict.gradient_descent_mse_ensemble(kernel_fn, kernel, y, diag_reg=1e-2)
    for t in (1.0, None):
        inside = jax.jit(lambda x: ensemble(t, x, "ntk", True))(kernel[:2])  # noqa: B023
        np.testing.assert_allclose(
            inside.mean, ensemble(t, kernel[:2], "ntk"), rtol=1e-3, atol=1e-4
        )


@pytest.mark.usefixtures("x64")
def test_predictions_are_differentiable_by_kernel_and_regularisation():
    kernel, y = jnp.asarray(random_kernel(5)), jnp.ones((4, 1))

    def mean(reg, t):
        fn = predict.gradient_descent_mse(kernel[:4, :4], y, diag_reg=reg)
        return fn(t, 0.0, 0.0, kernel[4:, :4])[1].sum()

    step, program = 1e-5, jax.jit(mean, static_argnums=1)
    for t in (None, 2.0):
        numeric = (program(0.1 + step, t) - program(0.1 - step, t)) / (2 * step)
        slope = jax.jit(jax.grad(mean), static_argnums=1)(0.1, t)
        np.testing.assert_allclose(slope, numeric, rtol=1e-7)


def test_vmap_over_kernels_is_a_loop():
    kernels = jnp.stack([jnp.asarray(random_kernel(4, seed), jnp.float32) for seed in range(3)])
    y = jnp.ones((4, 1))

    def test_outputs(kernel):
        return predict.gradient_descent_mse(kernel, y)(None, 0.0, 0.0, kernel)[1]

    loop = jnp.stack([test_outputs(k) for k in kernels])
    np.testing.assert_allclose(jax.jit(jax.vmap(test_outputs))(kernels), loop, atol=1e-4)


def test_state_is_a_pytree_with_the_fields_of_the_original():
    state = predict.ODEState(fx_train=jnp.ones(2), fx_test=None)
    assert state.replace(fx_test=1.0).astuple()[1] == 1.0
    assert list(state.asdict()) == ["fx_train", "fx_test", "qx_train", "qx_test"]
    assert len(jax.tree.leaves(state)) == 1


BAD = {
    "k_train_train must have every kept axis": lambda: predict.gradient_descent_mse(
        np.eye(3), np.ones((4, 1))
    ),
    "k_train_train must be finite": lambda: predict.gradient_descent_mse(
        np.eye(2) * np.nan, np.ones((2, 1))
    ),
    "y_train must be finite": lambda: predict.gradient_descent_mse(
        np.eye(2), np.full((2, 1), np.inf)
    ),
    "k_train_train must be positive semi-definite.*diag_reg above 5": lambda: (
        predict.gradient_descent_mse(np.array([[0.2, 1.2], [1.2, 0.2]]), np.ones((2, 1)))(
            None, 0.0, 0.0, np.eye(2)
        )
    ),
    "must be symmetric": lambda: predict.gradient_descent_mse(
        np.array([[1.0, 0.9], [0.1, 1.0]]), np.ones((2, 1))
    )(1.0),
    "trace_axes must lie": lambda: predict.gradient_descent_mse(
        np.eye(2), np.ones((2, 1)), trace_axes=(2,)
    ),
    "fx_train_0 and fx_test_0 are both None": lambda: predict.gradient_descent_mse(
        np.eye(2), np.ones((2, 1))
    )(1.0, None),
    "k_test_train must be given": lambda: predict.gradient_descent_mse(np.eye(2), np.ones((2, 1)))(
        1.0, 0.0, 0.0
    ),
    "k_test_train must have the axes": lambda: predict.gradient_descent_mse(
        np.eye(2), np.ones((2, 1))
    )(1.0, 0.0, 0.0, np.eye(3)),
    "diag_reg must be finite and at least 0": lambda: predict.gp_inference(
        np.eye(2), np.ones((2, 1)), diag_reg=-1.0
    ),
    "k_train_train must hold nngp beside ntk": lambda: predict.gp_inference(
        np.eye(2), np.ones((2, 1))
    )("ntk", np.eye(2), np.eye(2)),
    "k_train_train must hold the ntk": lambda: predict.gp_inference(
        Both(np.eye(2), None), np.ones((2, 1))
    )("ntk", np.eye(2)),
    "get must name 'nngp', 'ntk' or 'ntkgp'": lambda: predict.gp_inference(
        np.eye(2), np.ones((2, 1))
    )("nngpp"),
    "every kernel once": lambda: predict.gp_inference(np.eye(2), np.ones((2, 1)))(("ntk", "ntk")),
    "at least one kernel": lambda: predict.gp_inference(np.eye(2), np.ones((2, 1)))(()),
    "t must be finite and at least 0": lambda: predict.gradient_descent(
        half_mse, np.eye(2), np.ones((2, 1))
    )(-1.0),
    "t must be finite here": lambda: predict.gradient_descent(cross_entropy, np.eye(2), np.eye(2))(
        None
    ),
    "None without momentum": lambda: predict.gradient_descent(half_mse, np.eye(2), np.ones((2, 1)))(
        1.0, predict.ODEState(0.0, None, 0.0)
    ),
    "fx_test_0 must be None": lambda: predict.gradient_descent(
        half_mse, np.eye(2), np.ones((2, 1))
    )(1.0, predict.ODEState(0.0), 0.0, np.eye(2)),
    "scale must be given for the training inputs": lambda: predict.gradient_descent_mse_ensemble(
        kernel_fn, np.eye(2), np.ones((2, 1))
    )(1.0, np.eye(2), scale=2.0),
    "scale must be the same": lambda: predict.gradient_descent_mse_ensemble(
        kernel_fn, np.eye(2), np.ones((2, 1)), scale=1.0
    )(1.0, np.eye(2), scale=2.0),
    "ntk_train_train must have every axis twice": lambda: predict.max_learning_rate(
        np.ones((2, 3))
    ),
    "y_train_size must be at least 1": lambda: predict.max_learning_rate(np.eye(2), 0),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
