"""The experiment's networks, choices and claims; the paper's path on files in the real format."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _jacobian_claims as found_claims
from experiments import _jacobian_identities as identities
from experiments import _jacobian_networks as networks
from experiments import _jacobian_training as training
from experiments import _program
from experiments import orthogonal_jacobian as experiment
from experiments._jacobian_networks import ACTIVATIONS, Case, Recipe
from poster_jax.core import claims

TFDS = pathlib.Path(__file__).parents[1] / "data" / "tfds"
KINDS = ("tanh", "leaky ReLU", "ReLU")
NAMES = [
    *(f"C1 ({kind})" for kind in KINDS),
    "C1 (consistently)",
    *(f"{name} ({kind})" for name in ("C2", "C3") for kind in KINDS),
    "C4 (reconstruction)",
    "C4 (sides)",
    "C4 (noise)",
    "C5",
]
SMOKE = experiment.PRESETS["smoke"]


def _execute(workdir, preset="smoke", **changes):
    return _program.execute(
        experiment.experiment,
        name="orthogonal_jacobian",
        preset=preset,
        settings=dataclasses.replace(experiment.PRESETS[preset], **changes),
        workdir=workdir,
        seed=0,
    )


def test_the_laptop_compares_ten_seeds_of_every_method_and_chooses_on_others():
    laptop = experiment.PRESETS["laptop"]
    (case,) = laptop.cases
    assert (case.depth, case.width, case.recipe.steps) == (20, 64, 600)
    assert laptop.strengths == (0.1, 0.3, 1.0, 3.0, 10.0)
    assert laptop.num_seeds == 10
    # Populations of one size: one program serves both.
    assert len(laptop.strengths) * laptop.num_choosing_seeds == laptop.num_seeds


def test_the_paper_is_deep_mlps_on_mnist_and_two_convolutional_networks_on_cifar_100():
    cases = experiment.PRESETS["paper"].cases
    mnist = [case for case in cases if case.dataset == "tfds:mnist"]
    assert [(case.depth, case.width) for case in mnist] == [(10, 256), (20, 256), (50, 256)]
    others = {case.network: case for case in cases if case.dataset == "tfds:cifar100"}
    assert {name: case.depth for name, case in others.items()} == {"plain CNN": 20, "ResNet": 18}
    for case in others.values():
        assert (case.recipe.epochs, case.recipe.rate, case.recipe.cosine) == (200, 0.1, True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_activations_derivative_is_known_from_its_value(kind):
    z = jnp.array([-2.0, -0.3, 0.4, 3.0])
    shape = ACTIVATIONS[kind]
    slopes = jax.vmap(jax.grad(lambda z: networks.activate(shape, z)))(z)
    found = networks.derivative(shape, networks.activate(shape, z))
    np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-7)  # 1 - h^2 cancels near 0
    expected = {"tanh": np.tanh, "ReLU": lambda z: z * (z > 0)}
    expected["leaky ReLU"] = lambda z: np.where(z > 0, z, 0.2 * z)
    np.testing.assert_allclose(networks.activate(shape, z), expected[kind](z), rtol=1e-6)


def test_members_run_over_activations_strengths_and_seeds_in_this_order(key):
    case = Case("digits", "dense network", 4, 8, experiment.ALL, Recipe(0.1, 8))
    task = training.Task(case, SMOKE, 10, 10)
    grid = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    keys, strengths, (curved, slope), gains = training.members(task, grid, [7, 9], key)
    np.testing.assert_array_equal(strengths, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
    np.testing.assert_array_equal(curved, [1] * 4 + [0] * 8)
    np.testing.assert_allclose(slope, [0] * 4 + [0.2] * 4 + [0] * 4, rtol=1e-6)
    np.testing.assert_allclose(gains, [0.7] * 4 + [0.8] * 4 + [1.0] * 4, rtol=1e-6)
    data = jax.random.key_data(keys)
    for seed, place in ((7, 0), (9, 1)):
        expected = jax.random.key_data(jax.random.fold_in(key, seed))
        np.testing.assert_array_equal(data[place::2], np.tile(expected, (6, 1)))


def test_a_strength_is_chosen_by_the_mean_and_never_where_a_network_diverged():
    held_out = np.array([[[0.5, 0.7], [0.9, np.nan], [0.6, 0.6]], [[0.1, 0.1]] * 3])
    assert training.choose((1.0, 3.0, 10.0), held_out).tolist() == [1.0, 1.0]


def _cell(kind, gain, shrink, *, identities=None):
    """Eight seeds: accuracies rise by `gain` and |rho| falls by `shrink` with any penalty."""
    rng = np.random.default_rng(0)
    base = 0.6 + 0.02 * rng.normal(size=8)
    rho = -2 + 0.1 * rng.normal(size=(8, 5))
    found = {}
    for method in training.METHODS:
        mine = method != training.NONE
        norm = 0.1 * (method == training.NORM)
        noise = 0.005 * rng.normal(size=8)
        found[method] = {
            "test accuracy": base + mine * (gain + norm + noise),
            "rho": rho + mine * (shrink + 5 * norm + noise[:, None]),
            "diverged": np.zeros(8, bool),
        }
    curve = {"test accuracy": np.full((len(SMOKE.strengths), 2), 0.6)}
    penalised = training.METHODS[1:]
    return found_claims.Cell(
        title=kind,
        activation=kind,
        case=None,
        marks=np.arange(5),
        found=found,
        strengths=dict.fromkeys(training.METHODS, 1.0),
        curves=dict.fromkeys(penalised, curve),
        identities=identities or {},
    )


def _held(cells):
    run = _program.Run("orthogonal_jacobian", "smoke", SMOKE, pathlib.Path(), 0)
    return {claim.name: claim.holds for claim in found_claims.claims_of(run, cells)}


def test_claims_hold_where_they_should_and_fail_where_they_should():
    error = 1e-15 * np.ones((3, 2, 4))
    names = ("reconstruction", "reconstruction without bias", "decoded by the weights")
    exact = dict.fromkeys((*names, "offset", "offset of the last layer"), error)
    exact["noise"] = 1 + 1e-3 * np.random.default_rng(0).normal(size=(30, 2, 4))
    good = _held([_cell(kind, 0.1, 0.5, identities=exact) for kind in KINDS])
    assert good == dict.fromkeys(NAMES, True)
    wrong = exact | {"reconstruction": 1e-9 + error, "noise": 1.05 + error}
    bad = _held([_cell("tanh", 0.1, 0.5), _cell("ReLU", -0.1, -0.5, identities=wrong)])
    assert bad == {
        "C1 (tanh)": True,
        "C1 (ReLU)": False,
        "C1 (consistently)": False,
        "C2 (tanh)": True,
        "C2 (ReLU)": False,
        "C3 (tanh)": True,
        "C3 (ReLU)": False,
        "C4 (reconstruction)": False,
        "C4 (sides)": True,
        "C4 (noise)": False,
        "C5": True,
    }


def test_a_network_without_accuracy_is_counted_and_decides_against_the_claim():
    cell = _cell("tanh", 0.1, 0.5)
    cell.found[training.ORTHOGONAL]["test accuracy"][2] = np.nan
    cell.found[training.ORTHOGONAL]["diverged"][2] = True
    run = _program.Run("orthogonal_jacobian", "smoke", SMOKE, pathlib.Path(), 0)
    of = {claim.name: claim for claim in found_claims.claims_of(run, [cell])}
    assert not of["C1 (tanh)"].holds
    assert not of["C1 (consistently)"].holds
    assert of["C1 (tanh)"].num_nonfinite == 2  # the value, and the network that diverged


def test_the_identities_hold_at_relu_and_fail_elsewhere(x64, key):
    """With biases that count; leaky ReLU decoded by the weights and tanh are other functions."""
    keys = jax.random.split(key, 3)
    params = {
        "kernel": jax.random.normal(keys[0], (12, 12)) / 3,
        "bias": jax.random.normal(keys[1], (12,)),
    }
    x = jax.random.normal(keys[2], (3, 12))
    of_layer = jax.jit(identities.of_layer)
    found = {kind: of_layer(ACTIVATIONS[kind], params, x, key) for kind in KINDS}
    for kind, exact in (("ReLU", True), ("leaky ReLU", True), ("tanh", False)):
        for name in ("reconstruction", "reconstruction without bias"):
            assert (float(found[kind][name].max()) < 1e-13) == exact
        assert (float(found[kind]["decoded by the weights"].max()) < 1e-13) == (kind == "ReLU")
        assert float(found[kind]["offset"].max()) < 1e-13
    # 256 probes a layer, of relative error below sqrt(2/256) = 0.09.
    assert np.nanmax(np.abs(found["ReLU"]["noise"] - 1)) < 0.35
    assert np.isfinite(found["ReLU"]["noise"]).any()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"strengths": (0.0,)}, "strengths"),
        ({"methods": ("none", "small Jacobian")}, "methods"),
        ({"cases": (SMOKE.cases[0]._replace(network="MLP"),)}, "network"),
        ({"cases": (SMOKE.cases[0]._replace(activations=(("GELU", 1.0),)),)}, "activation"),
        ({"cases": (SMOKE.cases[0]._replace(activations=(("tanh", 0.0),)),)}, "gain"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SMOKE, **changes)


def test_a_set_that_is_not_there_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(_program.RefusedError, match="download_and_prepare"):
        _execute(tmp_path, preset="paper")


def test_too_few_examples_for_a_batch_are_refused(tmp_path):
    with pytest.raises(_program.RefusedError, match="num_choose"):
        _execute(tmp_path, num_train=220)


@pytest.mark.slow
def test_smoke_writes_all_its_files_and_a_second_run_reads_them(tmp_path):
    found = _execute(tmp_path)
    assert [claim.name for claim in claims.load_claims(tmp_path / "claims.json")] == NAMES
    pictures = {picture.name for section in found.sections for picture in section.pictures}
    assert pictures == {
        "accuracy_by_strength",
        "accuracy_gained",
        "gradient_by_layer",
        "gradient_ratio",
        "singular_values",
        "autoencoder_and_penalty",
    }
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == pictures
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(KINDS) * (2 * len(SMOKE.methods) - 1)
    held = {claim.name: claim.holds for claim in found.claims}
    assert all(held[name] for name in NAMES if name.startswith("C4"))
    again = _execute(tmp_path)  # every stage is read from disk
    assert again.claims == found.claims


TINY = Recipe(0.01, 4, epochs=1, cosine=True, clip=5.0, weight_decay=5e-4, augment=True)
HE = (("ReLU", 2**0.5),)
IMAGES = {
    "plain CNN": Case("tfds:cifar10", "plain CNN", 5, 2, HE, TINY),
    "ResNet": Case("tfds:cifar10", "ResNet", 10, 2, HE, TINY),
}


@pytest.mark.slow
def test_the_papers_path_runs_on_files_in_the_real_format(tmp_path, monkeypatch):
    """Convolutions by probes, and images moved about."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    found = _execute(
        tmp_path,
        preset="paper",
        cases=(IMAGES["plain CNN"],),
        methods=training.NEEDED,
        strengths=(0.1,),
        num_seeds=2,
        num_choosing_seeds=2,
        num_choose=4,
        num_marks=1,
        probe_examples=4,
        spectrum_examples=2,
        num_resamples=50,
    )
    names = ["C1 (ReLU)", "C1 (consistently)", "C2 (ReLU)", "C3 (ReLU)", "C5"]
    assert [claim.name for claim in found.claims] == names  # C4 is of dense layers
    assert not any(claim.num_nonfinite for claim in found.claims)


def test_a_dense_network_reads_images_as_vectors_and_some_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    settings = dataclasses.replace(experiment.PRESETS["paper"], num_choose=4, num_marks=2)
    run = _program.Run("orthogonal_jacobian", "paper", settings, tmp_path, 0)
    recipe = Recipe(0.1, 4, epochs=2)
    task, examples = training.prepare(run, Case("tfds:mnist", "dense network", 3, 8, HE, recipe))
    assert examples.train[0].shape == (16, 784)
    assert examples.choose[0].shape == (4, 784)
    assert examples.test[0].shape == (10, 784)
    every = np.concatenate([examples.train[0], examples.choose[0]])
    assert len(np.unique(every, axis=0)) == 20
    assert task.marks == [0, 4, 8]  # two epochs of 16 examples in batches of 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGES)
def test_every_penalty_of_a_convolutional_network_has_a_finite_gradient(kind, key):
    """With BatchNorm the Jacobian is that of the whole batch, in training mode."""
    x, y = jax.random.normal(key, (4, 8, 8, 3)), jnp.arange(4)
    shape = ACTIVATIONS["ReLU"]

    @jax.jit
    def gradients(key):
        network = networks.build(IMAGES[kind], shape, 2**0.5, 4)
        params, state = network.init(key, x)
        found = {}
        for method in training.METHODS:
            loss = training.loss_of(method, network, 0.5, False).fn
            found[method] = jax.grad(loss, has_aux=True)(params, state, (x, y), key)
        layers, own = network.layers(params, state, x)
        h = x
        for layer, params_l in zip(layers, own, strict=True):
            h = layer(params_l, h)
        return found, h - network.train(params, state, x)[0]

    found, gap = gradients(key)
    np.testing.assert_allclose(gap, 0, atol=1e-5)  # the layers are the network
    plain, states = found[training.NONE]
    for method in training.METHODS[1:]:
        gradient, new_states = found[method]
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gradient, plain)
        assert max(jax.tree.leaves(moved)) > 1e-4
        for ours, theirs in zip(jax.tree.leaves(new_states), jax.tree.leaves(states), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
