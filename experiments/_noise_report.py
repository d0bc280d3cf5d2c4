"""What the noise is like: sections and pictures of `gradient_noise`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import _noise_pictures as pictures
from experiments._noise_claims import claims_of
from experiments._noise_statistics import LARGE, SMALL, TEST, Results
from experiments._program import Findings, Run
from poster_jax import gradient_noise as noise
from poster_jax.core import report

_FITTED = 50  # largest eigenvalues of the power law


def findings(run: Run, results: Results) -> Findings:
    """Claims and sections."""
    chosen = run.settings
    for case, found in results.found.items():
        for at, step in enumerate(chosen.checkpoints):
            names = ("loss", "accuracy", "kurtosis", "skewness", "critical", "critical_by_skewness")
            names += ("pooled", "by_coordinate")
            names += ("same_covariance", "same_variances", "zeros", "coordinates", "layers")
            tests = {
                f"{test}_{what}": getattr(of, what)[:, at]
                for test, of in found["verdicts"]["tests"].items()
                for what in ("rejected_fraction", "rejected_low", "rejected_high", "mean_pvalue",
                             "surrogate_pvalue", "mean_statistic")
            }  # fmt: skip
            along = {f"rejected_along_{n}": of[:, at] for n, of in found["families"].items()}
            run.log(case=case.title, step=step, **{n: found[n][:, at] for n in names}, **along,
                    **tests)  # fmt: skip
    lead = (
        f"{chosen.num_seeds} networks a case were stopped at {len(chosen.checkpoints)} "
        f"checkpoints. At each, {chosen.num_vectors} mini-batches of every size gave noise vectors "
        f"along {chosen.num_directions} random directions; each direction was tested for "
        f"normality, and so were {chosen.num_surrogates} Gaussian surrogates of the same "
        "covariance."
    )
    sections = []
    for index, case in enumerate(results.cases):
        prefix = "" if len(results.cases) == 1 else f"case_{index}_"
        sections += [
            _verdicts(run, prefix, case, results.found[case]),
            _tails(run, prefix, case, results.found[case]),
            _second_order(run, prefix, case, results.found[case]),
        ]
    return Findings("Gradient noise", lead, claims_of(run, results), sections)


def _verdicts(run: Run, prefix: str, case: Any, found: dict[str, Any]) -> report.Section:
    chosen = run.settings
    test = found["verdicts"]["tests"][TEST]
    null = np.quantile(test.surrogate_mean_pvalue, [0.025, 0.975], axis=-1).mean(1)
    rejected, mean_p = {}, {}
    for at, size in enumerate(chosen.batch_sizes):
        of = (test.rejected_fraction, test.rejected_low, test.rejected_high)
        rejected[f"b = {size}"] = tuple(v[:, :, at].mean(0) for v in of)
        mean_p[f"b = {size}"] = (test.mean_pvalue[:, :, at].mean(0), *null[:, :, at])
    verdict = report.picture(
        pictures.with_bands(
            [("rejected fraction of directions", rejected), ("mean p-value", mean_p)],
            chosen.checkpoints,
        ),
        name=f"{prefix}rejected",
        alt="Rejected fraction and mean p-value over the checkpoints, a line for each batch size, "
        "with the band of Gaussian surrogates.",
        caption="Shapiro-Wilk along random directions, mean over seeds: left the fraction rejected "
        "at 5 %, right the mean p-value. Grey: where 95 % of Gaussian surrogates of the same "
        "covariance lie, mean over seeds, the widest over the batch sizes.",
        wide=True,
    )
    shown = {}
    for at in (0, -1):
        for size in (SMALL, LARGE[0]):
            row = chosen.batch_sizes.index(size)
            title = f"step {chosen.checkpoints[at]:,}, b = {size}"
            shown[title] = found["shown"][0, at, row]
    quantile = report.picture(
        pictures.quantiles(shown),
        name=f"{prefix}quantiles",
        alt="Normal quantile plots of four projections at the first and the last checkpoint.",
        caption="Four projections of the first seed's noise, centred and divided by their standard "
        "deviation; normal numbers lie on the line.",
        wide=True,
    )
    layers = report.picture(
        report.heat_map(
            found["layers"].mean(0).T,
            rows=found["layer_names"],
            columns=[f"step {step:,}" for step in chosen.checkpoints],
            label="rejected fraction",
        ),
        name=f"{prefix}layers",
        alt="Rejected fraction by layer and checkpoint.",
        caption=f"Along directions of one layer alone, b = {chosen.vector_batch}, mean over seeds; "
        "0.05 for Gaussian noise. nan: no noise in that layer.",
    )
    at_c1 = test.rejected_fraction[:, :, chosen.batch_sizes.index(chosen.vector_batch)]
    families = {
        "random": at_c1.mean(0),
        "single parameters": found["coordinates"].mean(0),
        **{name: of.mean(0) for name, of in found["families"].items()},
    }
    special = report.picture(
        _over_checkpoints(run, families, "rejected fraction", guides={"Gaussian": 0.05}),
        name=f"{prefix}directions",
        alt="Rejected fraction by the kind of direction over the checkpoints.",
        caption=f"b = {chosen.vector_batch}, mean over seeds: {chosen.num_directions} random "
        f"directions, {chosen.num_eigenvectors} top eigenvectors each of noise covariance and "
        f"Hessian, one mean gradient; single parameters with {chosen.num_tail_vectors} vectors, "
        f"all others with {chosen.num_vectors}.",
    )
    numbers = []
    for at, size in enumerate(chosen.batch_sizes):
        for name, place in (("first", 0), ("last", -1)):
            fraction, low, high = (
                v[:, place, at]
                for v in (test.rejected_fraction, test.rejected_low, test.rejected_high)
            )
            numbers.append(
                report.Number(
                    f"b = {size}, {name} checkpoint: rejected",
                    f"{fraction.mean():.3f} (seeds {fraction.min():.3f} to {fraction.max():.3f}; "
                    f"band {low.mean():.3f} to {high.mean():.3f})",
                    "Fraction of random directions along which Shapiro-Wilk rejects at 5 %, beside "
                    "the band of Gaussian surrogates.",
                )
            )
    numbers.append(
        report.Number(
            f"coordinates, b = {chosen.vector_batch}: rejected",
            ", ".join(f"{v:.2f}" for v in found["coordinates"].mean(0)),
            "Fraction of single parameters whose noise Shapiro-Wilk rejects, checkpoint by "
            f"checkpoint ({chosen.num_tail_vectors} vectors): random directions sum many "
            "coordinates and so look more Gaussian than any of them.",
        )
    )
    text = (
        "At one theta every mini-batch gives a noise vector; a vector is Gaussian when all its "
        "projections are. Directions share the vectors, so the rejected fraction is compared with "
        "that of Gaussian vectors of the same covariance between directions, and not with 0.05 "
        "alone."
    )
    title = f"Is it Gaussian? {case.title}"
    return report.Section(title, text, numbers, [verdict, quantile, layers, special])


def _tails(run: Run, prefix: str, case: Any, found: dict[str, Any]) -> report.Section:
    chosen = run.settings
    steps = np.arange(len(chosen.checkpoints))
    series = {
        "pooled over coordinates": found["pooled"].mean(0),
        "pooled, Gaussian of the same covariance": found["same_covariance"].mean((0, 2)),
        "pooled, Gaussian of the same variances": found["same_variances"].mean((0, 2)),
        "over mini-batches, median coordinate": found["by_coordinate"].mean(0),
    }
    picture = report.picture(
        _over_checkpoints(run, series, "tail index", guides={"Gaussian": 2.0}),
        name=f"{prefix}tail_index",
        alt="Tail index over the checkpoints: pooled, that of two kinds of Gaussian surrogates, "
        "and over mini-batches.",
        caption=f"b = {chosen.vector_batch}, {chosen.num_tail_vectors} vectors, mean over seeds. "
        "Gaussian vectors with the covariance of the noise get the index that the noise gets.",
    )
    numbers = [
        report.number(
            f"step {step:,}: {name}",
            values[at],
            "Estimated tail index alpha, mean over seeds; 2 for independent Gaussian numbers.",
        )
        for name, values in series.items()
        for at, step in ((steps[0], chosen.checkpoints[0]), (steps[-1], chosen.checkpoints[-1]))
    ]
    text = (
        "The disputed estimator takes all coordinates of all noise vectors as one sample of "
        "independent numbers of one scale. They are neither, and then Gaussian vectors as well get "
        "an index below 2. Over mini-batches, coordinate by coordinate, the draws are independent."
    )
    return report.Section(f"Heavy tails? {case.title}", text, numbers, [picture])


def _second_order(run: Run, prefix: str, case: Any, found: dict[str, Any]) -> report.Section:
    chosen = run.settings
    spectra = found["spectrum"][0]
    rank = np.arange(1, spectra.shape[-1])
    spectrum = report.picture(
        report.curves(
            {
                f"step {step:,}": (rank, np.where(values[:-1] > 0, values[:-1], np.nan))
                for step, values in zip(chosen.checkpoints, spectra, strict=True)
            },
            xlabel="rank",
            ylabel="eigenvalue of the noise covariance",
            log_x=True,
            log_y=True,
        ),
        name=f"{prefix}spectrum",
        alt="Eigenvalues of the noise covariance by rank at every checkpoint.",
        caption=f"First seed: eigenvalues of the covariance of {chosen.num_tail_vectors} noise "
        f"vectors of b = {chosen.vector_batch}, times b. The bend at the end is that of a sample "
        "of so many vectors, not of the noise.",
    )
    foretold = {
        "excess kurtosis of single examples": found["kurtosis"].mean(0),
        "b* (examples)": found["critical"].mean(0),
        "b* by skewness (examples)": found["critical_by_skewness"].mean(0),
        "training loss (nats)": found["loss"].mean(0),
    }
    shown = {name: np.where(values > 0, values, np.nan) for name, values in foretold.items()}
    critical = report.picture(
        _over_checkpoints(run, shown, "kurtosis, batch size, nats", log_y=True),
        name=f"{prefix}critical",
        alt="Excess kurtosis of single examples, the critical batch size and the loss over the "
        "checkpoints.",
        caption="Mean over seeds. b* is the batch size from which on tests on "
        f"{chosen.num_vectors} vectors should find nothing, by kurtosis or by skewness; values at "
        "or below 0 (tails no heavier than normal: any batch will do) are not shown.",
    )
    values = spectra[-1]
    fitted = min(_FITTED, len(values) - 1)  # the last one is zero: the mean is taken out
    law = noise.fit_power_law(jnp.asarray(values), num_values=fitted)
    numbers = [
        report.number(
            "effective rank at the end",
            values.sum() ** 2 / (values**2).sum(),
            "(tr)²/tr of the square: in how many directions the noise lives, first seed.",
        ),
        report.number(
            "power of the rank at the end",
            -law.rank_exponent,
            f"Eigenvalues as a power of the rank, maximum likelihood over the {fitted} largest; "
            f"distance of Kolmogorov and Smirnov {float(law.ks_distance):.3f}.",
        ),
        *(
            report.number(
                f"b* at step {step:,}",
                found["critical"][:, at].mean(),
                "Critical batch size, mean over seeds with its standard error.",
                stderr=found["critical"][:, at].std(ddof=1) / np.sqrt(len(found["critical"])),
            )
            for at, step in enumerate(chosen.checkpoints)
        ),
    ]
    text = (
        "Averaging b examples divides the excess kurtosis of their gradients by b. So the kurtosis "
        "of single examples foretells from which batch size b* on a test sees nothing: as the loss "
        "falls, few examples carry the gradient, their kurtosis rises and b* with it."
    )
    return report.Section(f"Why 256, and why early? {case.title}", text, numbers,
                          [spectrum, critical])  # fmt: skip


def _over_checkpoints(run: Run, series: dict[str, Any], label: str, **options: Any) -> Any:
    """Curves over the checkpoints; step 0 has no logarithm and stands at the tenth of the next."""
    steps = np.asarray(run.settings.checkpoints, np.float64)
    steps = np.where(steps > 0, steps, steps[steps > 0].min() / 10)
    return report.curves(
        {name: (steps, values) for name, values in series.items()},
        xlabel=f"step ({steps[0]:g} stands for the start)",
        ylabel=label,
        log_x=True,
        **options,
    )
