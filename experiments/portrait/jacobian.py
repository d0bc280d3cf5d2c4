"""How each network's Jacobians treat small changes of a digit and gradients on their way back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax import jacobian
from poster_jax.core import losses, report
from poster_jax.core.claims import format_number

WHEN = ("at the start", "at the end")
NUM_PROBES = 16


def jacobian_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Singular values end to end, gradient norms by depth, and each layer's distance from I."""
    numbers, pictures, profiles = [], [], {}
    with run.progress("Jacobians", len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(index, subject.name)
            # Threefry takes four times as long to compile, and no claim rests on these probes.
            key = jax.random.key(run.seed + index, impl="unsafe_rbg")
            found = jax.device_get(measure(subject, key, run.settings.jacobian_digits))
            numbers += _numbers(subject.name, found)
            pictures.append(_spectrum(subject.name, found))
            profiles |= {f"{subject.name} {when}": found[when]["profile"] for when in WHEN}
            run.log(
                network=subject.name,
                gradient_profile={when: found[when]["profile"] for when in WHEN},
                layer_penalties={when: found[when]["penalties"] for when in WHEN},
            )
    pictures.append(_depth(profiles))
    text = (
        f"Jacobians at {run.settings.jacobian_digits} test digits. Their singular values, from the "
        "64 pixels to the ten outputs, say how much a small change of a digit is stretched. A "
        "gradient passes the same Jacobians, layer by layer, on its way back: where each has "
        "orthonormal rows, J J' = I, its norm stays the same and nothing vanishes or explodes. The "
        "penalty of orthogonal Jacobian regularisation is the distance from that."
    )
    return report.Section("Jacobians", text, numbers=numbers, pictures=pictures)


def measure(subject: Subject, key: Any, num_digits: int) -> dict[str, Any]:
    """Before and after training: singular values, gradient norms, penalties and their errors."""
    x, labels = (part[:num_digits] for part in subject.test)
    layers = jacobian.split_linen(subject.module, subject.initial, x)
    keys = jax.random.split(key, NUM_PROBES)

    @jax.jit
    def at(params: Any) -> dict[str, Any]:
        everywhere = (params,) * len(layers)

        def penalties(key: Any) -> Any:
            return jacobian.network_penalty(layers, everywhere, x, key, select="all").per_layer

        loss = lambda logits: losses.softmax_cross_entropy(logits, labels)  # noqa: E731
        drawn = jax.lax.map(penalties, keys)
        return {
            "values": jacobian.singular_values(subject.apply_fn, params, x).values,
            "profile": jacobian.gradient_norm_profile(layers, everywhere, loss, x),
            "penalties": drawn.mean(axis=0),
            "errors": drawn.std(axis=0, ddof=1) / jnp.sqrt(len(keys)),
        }

    # Their places on devices differ after training; one program serves both.
    params = jax.device_get((subject.initial, subject.params))
    names = [layer.name for layer in layers]
    return dict(zip(WHEN, map(at, params), strict=True)) | {
        "names": names,
        "floors": _floors(layers, subject.initial, x),
    }


def _floors(layers: Any, params: Any, x: Any) -> list[float]:
    """The least that ||J J' - I||^2 / m can be: one for every output more than inputs, over m."""
    floors = []
    for layer in layers:
        out = jax.eval_shape(layer, params, x)
        m, n = (int(np.prod(a.shape[1:])) for a in (out, x))
        floors.append(max(m - n, 0) / m)
        x = out
    return floors


def _spectrum(name: str, found: dict[str, Any]) -> report.Picture:
    return report.picture(
        report.histograms(
            {when: found[when]["values"] for when in WHEN},
            xlabel=f"singular value of the {name}'s Jacobian",
            log_x=True,
            guides={"keeps lengths": 1.0},
        ),
        name=f"jacobian_spectrum_{name.lower()}",
        alt=f"Histogram of the singular values of the {name}'s Jacobian before and after training",
        caption=f"{name}: all ten singular values from pixels to outputs, at every digit, before "
        "training and after it.",
    )


def _depth(profiles: dict[str, np.ndarray]) -> report.Picture:
    places = {name: np.arange(1, len(profile) + 1) for name, profile in profiles.items()}
    figure = report.curves(
        {name: (places[name], profile) for name, profile in profiles.items()},
        xlabel="layer, from the input",
        ylabel="norm of dLoss / d outputs of the layer",
        log_y=True,
    )
    figure.axes[0].set_xticks(range(1, max(map(len, profiles.values())) + 1))
    return report.picture(
        figure,
        name="gradient_depth",
        alt="Norm of the gradient at the outputs of each layer of both networks",
        caption="The norm of the loss's gradient at the outputs of each layer: where a line falls "
        "towards the input gradients vanish, where it rises they explode.",
    )


def _numbers(name: str, found: dict[str, Any]) -> list[report.Number]:
    start, end = (found[when] for when in WHEN)
    largest = np.median(end["values"][:, 0])
    numbers = [
        report.number(
            f"{name}: largest singular value",
            largest,
            "The most that a small change of a digit is stretched, median over the digits; "
            f"{format_number(np.median(start['values'][:, 0]))} before training.",
        ),
        report.number(
            f"{name}: orders of magnitude from the last layer's gradient to the first's",
            jacobian.gradient_ratio(end["profile"]),
            "Below 0 gradients vanish on their way back, above 0 they grow; "
            f"{format_number(jacobian.gradient_ratio(start['profile']))} before training.",
        ),
    ]
    for index, layer in enumerate(found["names"]):
        numbers.append(
            report.number(
                f"{name}, {layer}: distance of its Jacobian from orthonormal rows",
                end["penalties"][index],
                "|J J' - I|^2 over the number of outputs m; "
                f"{format_number(start['penalties'][index])} before training, at least "
                f"{format_number(found['floors'][index])} for so many inputs and outputs.",
                stderr=end["errors"][index],
            )
        )
    return numbers
