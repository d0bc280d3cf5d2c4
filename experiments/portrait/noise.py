"""The noise of each network's gradients at the end of its training."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _noise_pictures
from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax import gradient_noise as noise
from poster_jax.core import report
from poster_jax.core.convolution import with_fast_convolutions

SIZES = (32, 256)


def noise_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """The verdict by batch size, and the batch size from which on noise should be Gaussian."""
    numbers, shown = [], {}
    with run.progress("gradient noise", len(subjects)) as update:
        for index, subject in enumerate(subjects):
            update(index, subject.name)
            found = jax.device_get(_measure(run, subject, jax.random.fold_in(run.key, 7 + index)))
            numbers += _numbers(run, subject.name, found)
            for at, size in enumerate(SIZES):
                shown[f"{subject.name}, b = {size}"] = found["samples"][at, :4]
            test = found["verdicts"].tests["shapiro_wilk"]
            run.log(
                network=subject.name,
                noise_rejected=test.rejected_fraction,
                critical_batch_size=found["critical"].batch_size,
            )
    picture = report.picture(
        _noise_pictures.quantiles(shown),
        name="noise_quantiles",
        alt="Normal quantile plots of the noise along four directions, for two batch sizes.",
        caption="Noise of mini-batches of b digits along four random directions, against normal "
        "quantiles: where it is Gaussian the points lie on the line.",
        wide=True,
    )
    text = (
        "A mini-batch's gradient is that of all digits plus noise. Is the noise Gaussian? "
        f"{run.settings.noise_vectors} mini-batches at the trained parameters, along "
        f"{run.settings.noise_directions} random directions, each tested for normality and compared"
        " with what Gaussian vectors of the same covariance give."
    )
    return report.Section("Noise of the gradients", text, numbers=numbers, pictures=[picture])


def _measure(run: Run, subject: Subject, key: Any) -> dict[str, Any]:
    options = run.settings
    params, batch = jax.device_get((subject.params, subject.train))
    directions = noise.random_directions(params, key, num=options.noise_directions)
    loss_fn = with_fast_convolutions(subject.loss_fn)
    single = noise.per_example_projections(loss_fn, params, batch, directions)
    samples = jnp.stack(
        [
            noise.resample_projections(
                single, key, batch_size=size, num_batches=options.noise_vectors
            )
            for size in SIZES
        ]
    )
    return {
        "samples": samples,
        "verdicts": _verdicts(samples, key),
        "critical": noise.critical_batch_size(single, num_samples=options.noise_vectors),
    }


@jax.jit
def _verdicts(samples: Any, key: Any) -> noise.Gaussianity:
    verdict = partial(noise.gaussianity, tests=("shapiro_wilk",), num_surrogates=39)
    return jax.lax.map(lambda of: verdict(of, key), samples)


def _numbers(run: Run, name: str, found: dict[str, Any]) -> list[report.Number]:
    test = found["verdicts"].tests["shapiro_wilk"]
    numbers = [
        report.Number(
            f"{name}, b = {size}: directions that are not normal",
            f"{100 * test.rejected_fraction[at]:.1f} % (Gaussian: "
            f"{100 * test.rejected_low[at]:.1f} to {100 * test.rejected_high[at]:.1f} %)",
            "Rejected by Shapiro-Wilk at 5 %; in brackets the band of Gaussian surrogates.",
        )
        for at, size in enumerate(SIZES)
    ]
    return [
        *numbers,
        report.number(
            f"{name}: critical batch size",
            np.asarray(found["critical"].batch_size),
            f"From the kurtosis of single examples: above it {run.settings.noise_vectors} vectors "
            "should not show that the noise is no Gaussian.",
        ),
    ]
