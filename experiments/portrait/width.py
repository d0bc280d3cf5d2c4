"""How far each network is from an infinitely wide one: its architecture at other widths."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._program import Run
from experiments._wide_networks import standard_normal
from experiments.portrait.subject import Subject
from poster_jax.core import models, report
from poster_jax.core.claims import format_number
from poster_jax.core.convolution import with_fast_convolutions
from poster_jax.finite_width import feynman
from poster_jax.finite_width.feynman import correlator


class Family(NamedTuple):
    """An architecture at any width n.

    Attributes:
      module: `module(n)`, its Flax module.
      widths: n, the subject's among them.
      own: the n that gives the subject.
      layer: the layer that has n outputs.
    """

    module: Callable[[int], Any]
    widths: tuple[int, ...]
    own: int
    layer: str


FAMILIES = {
    "MLP": Family(lambda n: models.MLP((2 * n, n, 10)), (12, 24, 48, 96, 192), 48, "Dense_1"),
    "CNN": Family(
        lambda n: models.CNN(features=(n, 2 * n, 2 * n), strides=(1, 2, 1)),
        (4, 8, 16, 32),
        16,
        "Conv_0",
    ),
}
CORRELATORS = {
    "kernel": correlator("df.df"),
    "variance": correlator("(df.df)^2", connected=True),
    "motion": correlator("f df.ddf.df"),
}
EXPONENTS = {"variance": "variance of the kernel", "motion": "motion of the kernel"}
# Each correlator of order 1/n, in units of those of order one. The kernel df.df moves at the rate
# -2 f df.ddf.df while the output f goes to 0 at the rate df.df.
RATIOS = {
    "variance of the kernel, relative": lambda m: m["variance"] / m["kernel"] ** 2,
    "motion of the kernel, relative": lambda m: 2 * abs(m["motion"]) / m["kernel"] ** 2,
}


def width_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Two departures from the limit over width, their exponents, and the network's own place."""
    numbers, pictures = [], []
    with run.progress("width scaling", len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(index, subject.name)
            key = jax.random.fold_in(run.key, 11 + index)
            measured = _measure(run, subject, key)
            fitted = {
                name: feynman.fit_exponent(measured[name], seed=run.seed) for name in EXPONENTS
            }
            numbers += _numbers(subject.name, measured, fitted)
            pictures.append(_picture(subject.name, measured))
            run.log(
                network=subject.name,
                width_exponents={name: fit.value for name, fit in fitted.items()},
                width_intervals={name: fit.interval for name, fit in fitted.items()},
            )
    text = (
        f"The same architectures at other widths n, {run.settings.width_networks} networks each, "
        "before training, on one digit. In the limit n to infinity every network has the same "
        "neural tangent kernel, and training does not move it. At a finite width it differs from "
        "one draw of the weights to the next, and moves; the variance and the motion should both "
        "fall as 1/n."
    )
    return report.Section("Width", text, numbers=numbers, pictures=pictures)


def scaled(family: Family, x: Any) -> feynman.WidthNetwork:
    """The module's first output, with kernels in units of their standard deviation and no biases.

    In these units a step of gradient descent moves the output equally far at every width, so that
    there is a limit. Kernels are Gaussian here, as in the theory; the module cuts them off at two
    standard deviations.
    """

    def init_fn(key: Any, width: int) -> Any:
        def init(key: Any) -> Any:
            return models.from_linen(family.module(width)).init(key, x[None])

        return standard_normal(_kernels(jax.eval_shape(init, key)), key)

    def apply_fn(kernels: Any, x: Any) -> Any:
        width = kernels[family.layer].shape[-1]
        params = {
            layer: {
                "kernel": kernel * kernel[..., 0].size ** -0.5,
                "bias": jnp.zeros(kernel.shape[-1], kernel.dtype),
            }
            for layer, kernel in kernels.items()
        }
        return models.from_linen(family.module(width)).apply_fn(params, x)[:, 0]

    return feynman.WidthNetwork(init_fn, with_fast_convolutions(apply_fn))


def _kernels(params: Any) -> dict[str, Any]:
    return {layer: leaves["kernel"] for layer, leaves in params.items()}


def _measure(run: Run, subject: Subject, key: Any) -> dict[str, feynman.Measurement]:
    family, digit = FAMILIES[subject.name], np.asarray(subject.train[0][0])
    with jax.enable_x64(True):
        found = feynman.measure_all(
            list(CORRELATORS.values()),
            *scaled(family, digit),
            {"x": digit},
            key,
            widths=family.widths,
            num_networks=run.settings.width_networks,
        )
    return dict(zip(CORRELATORS, found, strict=True))


def _ratios(measured: dict[str, feynman.Measurement]) -> dict[str, np.ndarray]:
    means = {name: found.mean for name, found in measured.items()}
    return {name: ratio(means) for name, ratio in RATIOS.items()}


def _picture(name: str, measured: dict[str, feynman.Measurement]) -> report.Picture:
    family, ratios = FAMILIES[name], _ratios(measured)
    widths = np.array(family.widths)
    start = ratios["variance of the kernel, relative"][0]
    curves = {what: (widths, np.where(v > 0, v, np.nan)) for what, v in ratios.items()}
    curves["in proportion to 1/n"] = (widths, start * widths[0] / widths)
    return report.picture(
        report.curves(
            curves,
            xlabel=f"width n of the {name}",
            ylabel="departure from the infinite width",
            log_x=True,
            log_y=True,
        ),
        name=f"width_scaling_{name.lower()}",
        alt=f"Two departures of the {name} from its limit of infinite width, against width",
        caption=f"{name}: two departures from the limit over width. The network above has "
        f"n = {family.own}.",
    )


def _numbers(
    name: str, measured: dict[str, feynman.Measurement], fitted: dict[str, feynman.Exponent]
) -> list[report.Number]:
    family, ratios = FAMILIES[name], _ratios(measured)
    own = family.widths.index(family.own)
    spread = 100 * float(ratios["variance of the kernel, relative"][own]) ** 0.5
    motion = 100 * float(ratios["motion of the kernel, relative"][own])
    of_spread, of_motion = _relative_errors(
        measured["kernel"].samples[own].prod(axis=1), measured["motion"].samples[own].prod(axis=1)
    )
    numbers = [
        report.number(
            f"{name}: the kernel from one draw of the weights to the next",
            spread,
            f"Its standard deviation over its mean at n = {family.own}.",
            stderr=spread * of_spread,
            unit="%",
        ),
        report.number(
            f"{name}: the kernel while an output is learned",
            motion,
            "By how much of itself the kernel moves while gradient descent takes an output to 0, "
            "to first order.",
            stderr=motion * of_motion,
            unit="%",
        ),
    ]
    return numbers + [
        report.Number(
            f"{name}: exponent of the {what}",
            _with_interval(fitted[short]),
            "Of the width; the bound from the cluster graph is -1. In brackets the 95 % interval.",
        )
        for short, what in EXPONENTS.items()
    ]


def _relative_errors(kernel: Any, motion: Any) -> tuple[float, float]:
    """Standard errors of std(K) / E K and of E M / (E K)^2 over themselves (delta method)."""
    off = kernel / kernel.mean() - 1
    of_spread = 0.5 * off**2 / np.mean(off**2) - off
    of_motion = motion / motion.mean() - 2 * off
    root = len(kernel) ** 0.5
    return float(np.std(of_spread) / root), float(np.std(of_motion) / root)


def _with_interval(fit: feynman.Exponent) -> str:
    if not np.isfinite(fit.value):
        return "not told from noise"
    low, high = (format_number(edge) for edge in fit.interval)
    return f"{format_number(fit.value)} [{low}, {high}]"
