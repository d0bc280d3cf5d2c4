"""What the flow and the posteriors say: sections and pictures of `nongaussian_processes`."""

from typing import Any, NamedTuple

import numpy as np

from experiments import _finite_priors as priors
from experiments import _program
from experiments._nongaussian_claims import (
    EXPANDED,
    claims_of,
    errors_of,
    gains,
    share_within,
)
from poster_jax.core import report
from poster_jax.core.claims import format_number


class Results(NamedTuple):
    """The numbers of a run.

    Attributes:
      flows: (activation, width) -> Flow.
      orders: activation -> means of G - K of narrow networks, and G1.
      outputs: outputs of narrow networks on one input, and K, G1 / n, V / n.
      real: posteriors on subsets of the data.
      control: the same with labels in random order.
      line: the toy regression.
    """

    flows: dict[tuple[str, int], priors.Flow]
    orders: dict[str, tuple[Any, Any]]
    outputs: Any
    real: list[priors.Subset]
    control: list[priors.Subset]
    line: dict[str, Any]


def findings(run: _program.Run, results: Results) -> _program.Findings:
    """Claims and sections."""
    chosen = run.settings
    for (name, width), flow in results.flows.items():
        run.log(
            activation=name, width=width, K=flow.K[:, 0], V=flow.V[:, 0, 0],
            drawn=flow.covariance[:, :, 0, 0].mean(0) * width, within=share_within(flow, width),
        )  # fmt: skip
    for kind, subsets in (("real", results.real), ("random", results.control)):
        for index, subset in enumerate(subsets):
            run.log(
                subset=index, labels=kind, widths=chosen.widths,
                effective_sample_size=subset.exact.effective_sample_size,
                evidence=subset.exact.log_evidence.mean, first_order=subset.first[2],
                infinite_width=subset.zeroth[2], correction=subset.correction,
            )  # fmt: skip
    claims = claims_of(*results[:2], results.real, results.control, chosen, run.seed)
    lead = (
        f"Networks of {len(priors.ACTIVATIONS)} activations and {chosen.depth} hidden layers were "
        f"drawn at {len(chosen.flow_widths)} widths and laid beside the recursions of kernel and "
        f"four-point vertex; then {chosen.activation} networks of {chosen.prior_depth} hidden "
        f"layers learned {chosen.num_train} images of {chosen.dataset} as Bayesians, exactly and "
        "to first order in 1 / width."
    )
    sections = [
        _flow_section(run, results),
        _kurtosis_section(run, results),
        _posterior_section(run, results),
        _width_section(run, results),
    ]
    return _program.Findings("Non-Gaussian processes", lead, claims, sections)


def _flow_section(run: _program.Run, results: Results) -> report.Section:
    chosen = run.settings
    layers = np.arange(1, chosen.depth + 1)
    widest = max(chosen.flow_widths)
    series = {}
    for name in ("relu", "linear", "tanh"):
        flow = results.flows[name, widest]
        series[name] = (layers, flow.V[:, 0, 0] / flow.K[:, 0] ** 2)
        drawn = widest * flow.covariance[:, :, 0, 0].mean(0) / flow.K[:, 0] ** 2
        series[f"{name}, drawn"] = (layers, drawn)
    shares = np.array(
        [
            [share_within(results.flows[name, width], width) for width in chosen.flow_widths]
            for name in priors.ACTIVATIONS
        ]
    )
    pictures = [
        report.picture(
            report.curves(series, xlabel="hidden layers", ylabel="V / K² of one input"),
            name="vertex_over_depth",
            alt="V over K squared of three activations grows linearly with depth, predicted and "
            f"drawn at width {widest}; ReLU fastest, by 5 a layer.",
            caption="The four-point vertex over the squared kernel, by the recursion and from "
            f"networks of width {widest}, at critical variances: it grows by a constant a layer, "
            "so that depth / width is what is expanded in.",
        ),
        report.picture(
            report.heat_map(
                shares,
                rows=list(priors.ACTIVATIONS),
                columns=[f"width {w}" for w in chosen.flow_widths],
                label="share of entries predicted",
                fmt="{:.3f}",
            ),
            name="entries_predicted",
            alt="Share of the entries of mean and covariance within the allowance, activations by "
            "widths: " + "; ".join(
                f"{name} {', '.join(f'{s:.2f}' for s in row)}"
                for name, row in zip(priors.ACTIVATIONS, shares, strict=True)
            ),
            caption="Entries of E G and Cov G, over all layers and pairs of three inputs, within 4 "
            "standard errors and the size of the next order.",
        ),
    ]  # fmt: skip
    numbers = []
    for name in priors.ACTIVATIONS:
        flow = results.flows[name, widest]
        ratio = flow.V[:, 0, 0] / flow.K[:, 0] ** 2
        numbers.append(
            report.number(f"V / K² a layer, {name}", (ratio[-1] - ratio[0]) / (chosen.depth - 1),
                          "Growth of the vertex over the squared kernel with each layer; 5 for "
                          "ReLU and 2 for linear networks exactly.")
        )  # fmt: skip
    text = (
        "The outputs of a random network are Gaussian given all layers below, with a random "
        "covariance G. Its mean is K + G1 / n and its covariance V / n; the recursion predicts "
        "both for every layer."
    )
    return report.Section("Flow over depth", text, numbers, pictures)


def _kurtosis_section(run: _program.Run, results: Results) -> report.Section:
    chosen = run.settings
    width = min(chosen.flow_widths)
    layers = np.arange(1, chosen.depth + 1)
    series = {"relu, exact": (layers / width, 3 * (1 + 5 / width) ** layers - 3)}
    for name in ("relu", "tanh"):
        flow = results.flows[name, width]
        mean = flow.K[:, 0] + flow.shift[:, :, 0].mean(0)
        drawn = 3 * flow.covariance[:, :, 0, 0].mean(0) / mean**2
        first = 3 * flow.V[:, 0, 0] / (width * flow.K[:, 0] ** 2)
        series |= {f"{name}, drawn": (layers / width, drawn)}
        series |= {f"{name}, first order": (layers / width, first)}
    outputs, K, shift, vertex = results.outputs
    edges = np.linspace(-5, 5, 81) * np.sqrt(K)
    middle = (edges[1:] + edges[:-1]) / 2
    share, _ = np.histogram(outputs, edges)
    z = middle / np.sqrt(K)
    normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi * K)
    he2, he4 = z**2 - 1, z**4 - 6 * z**2 + 3
    first = normal * (1 + shift / (2 * K) * he2 + vertex / (8 * K**2) * he4)
    density = share / (len(outputs) * np.diff(edges))
    pictures = [
        report.picture(
            report.curves(series, xlabel="depth / width", ylabel="excess kurtosis of an output"),
            name="excess_kurtosis",
            alt="Excess kurtosis over depth / width: the first order is a straight line for ReLU, "
            "the drawn networks bend away upwards as depth / width grows.",
            caption="Excess kurtosis 3 Cov(G, G) / (E G)² of one output over depth / width, at "
            f"width {width}: first order, drawn networks, and for ReLU the exact value.",
        ),
        report.picture(
            report.curves(
                {
                    "drawn": (middle, density),
                    "first order": (middle, first),
                    "Gaussian": (middle, normal),
                },
                xlabel="output", ylabel="density", log_y=True,
            ),
            name="density_of_an_output",
            alt="Logarithmic density of an output of narrow ReLU networks: drawn networks have "
            "heavier tails than the Gaussian; the first order follows them.",
            caption=f"Outputs of ReLU networks of {priors.ORDER_DEPTH} layers and width "
            f"{priors.OUTPUT_WIDTH} on one input, beside the Gaussian of infinite width and "
            "the density with the four-point vertex to first order.",
        ),
    ]  # fmt: skip
    kurtosis = np.mean(outputs**4) / np.mean(outputs**2) ** 2 - 3
    exact = 3 * (1 + 5 / priors.OUTPUT_WIDTH) ** priors.ORDER_DEPTH - 3
    numbers = [
        report.number("excess kurtosis, drawn", kurtosis, f"Of {len(outputs)} ReLU outputs."),
        report.number("first order", 3 * vertex / K**2, "3 V / n K², growing as depth / width."),
        report.number("exact", exact, "3 (1 + 5 / n)^depth - 3, known for ReLU networks on one "
                      "input."),
    ]  # fmt: skip
    text = "The vertex is what makes an output heavy-tailed: its excess kurtosis is 3 V / n K²."
    return report.Section("How far from Gaussian", text, numbers, pictures)


def _posterior_section(run: _program.Run, results: Results) -> report.Section:
    chosen = run.settings
    kept = np.asarray(chosen.widths) >= EXPANDED
    widths = np.asarray(chosen.widths, float)[kept]
    series = {}
    tests = chosen.num_test
    parts = {
        "mean": slice(0, tests),
        "variance": slice(tests, 2 * tests),
        "evidence": slice(-1, None),
    }
    for which in ("zeroth", "first"):
        errors = np.stack([errors_of(s, which)[0] for s in results.real])
        for part, where in parts.items():
            label = "infinite width" if which == "zeroth" else "first order"
            rms = np.sqrt(np.mean(errors[:, kept][:, :, where] ** 2, (0, 2)))
            series[f"{part}, {label}"] = (widths, rms)
    noise = np.stack([errors_of(s, "first")[1] for s in results.real])
    series["sampling error of the mean"] = (
        widths,
        np.sqrt((noise[:, kept, :tests] ** 2).mean((0, 2))),
    )
    line = results.line
    panel = report.BandPanel(
        "tanh, 2 layers of width 16", line["grid"], line["bands"], line["points"]
    )
    pictures = [
        report.picture(
            report.curves(series, xlabel="width", ylabel="root mean square error", log_x=True,
                          log_y=True),
            name="posterior_errors",
            alt="Errors of predictive mean, variance and log evidence over width, of infinite "
            "width and of first order: the second are smaller and fall faster.",
            caption="Distance from the exact posterior (importance sampling), root mean square "
            f"over {len(results.real)} subsets and {tests} test points.",
        ),
        report.picture(
            report.bands([panel], xlabel="input", ylabel="function", panel_size=(6.0, 3.6)),
            name="posterior_bands",
            alt="Regression through four points: exact band, and means with dashed edges of "
            "infinite width and first order; the first order is nearer to the exact band.",
            caption="Means with two standard deviations. The first order widens the band where "
            f"the width is uncertain (effective sample size of the exact one "
            f"{format_number(line['ess'])}).",
        ),
    ]  # fmt: skip
    ess = np.stack([s.exact.effective_sample_size for s in results.real])
    numbers = [
        report.number(f"effective sample size, width {w}", ess[:, i].min(), f"The smallest of "
                      f"{len(results.real)} subsets, of {chosen.num_samples} networks; below a "
                      "hundred the exact posterior is not to be trusted.")
        for i, w in enumerate(chosen.widths)
    ]  # fmt: skip
    numbers.append(
        report.number("condition number", np.median([s.condition for s in results.real]),
                      "Of kernel and noise on the training points: large ones amplify 1 / width.")
    )  # fmt: skip
    out = np.stack([s.correction for s in results.real]).max(0)
    for index, part in enumerate(("mean", "variance", "log evidence")):
        numbers.append(
            report.number(f"largest correction of the {part}, width {int(widths[0])}",
                          out[kept][0, index], "Over its zeroth order; above a half the expansion "
                          "is out of its range.")
        )  # fmt: skip
    text = (
        "Given G the posterior is Gaussian; the exact one averages over drawn G, weighted by the "
        "evidence. To first order only K, G1 and V are needed."
    )
    return report.Section("Inference", text, numbers, pictures)


def _width_section(run: _program.Run, results: Results) -> report.Section:
    chosen = run.settings
    widths = np.asarray(chosen.widths, float)
    evidence, errors = {}, {}
    for kind, subsets in (("true labels", results.real), ("random labels", results.control)):
        found = gains(subsets)
        first = np.stack([s.first[2] - s.zeroth[2] for s in subsets])
        seen = np.where(found["trusted"], 1.0, np.nan)  # a gap where too few networks count
        evidence[f"{kind}, exact"] = (widths, seen * found["evidence of all"].mean(0))
        wide = np.where(widths >= EXPANDED, 1.0, np.nan)
        evidence[f"{kind}, first order"] = (widths, wide * first.mean(0))
        errors[kind] = (widths, seen * found["error of all"].mean(0))
    pictures = [
        report.picture(
            report.curves(evidence, xlabel="width", ylabel="log evidence over infinite (nats)",
                          log_x=True, guides={"infinite width": 0.0}),
            name="evidence_over_width",
            alt="Log evidence over that of infinite width, against width: exact and first order, "
            "for true labels and for labels in random order.",
            caption=f"Mean over {len(results.real)} subsets of log evidence less that of infinite "
            "width. A maximum at a finite width would be the best width.",
        ),
        report.picture(
            report.curves(errors, xlabel="width", ylabel="squared test error over infinite width",
                          log_x=True, guides={"infinite width": 0.0}),
            name="error_over_width",
            alt="Squared test error less that of infinite width, against width, for true and "
            "random labels.",
            caption="The error of the exact predictive mean on the test points of each subset.",
        ),
    ]  # fmt: skip
    found = gains(results.real)
    best = np.where(found["trusted"], found["evidence of all"].mean(0), -np.inf).argmax()
    numbers = [
        report.number("best width by mean evidence", chosen.widths[best], "Among the widths tried; "
                      "at the end of the range it says only that the optimum lies beyond."),
        report.number("its evidence over infinite width", found["evidence of all"].mean(0)[best],
                      "Mean over subsets.", unit="nats"),
    ]  # fmt: skip
    text = (
        "The evidence of a width is the density of the labels under its prior. Labels in random "
        "order are the control: what they prefer has nothing to do with the images."
    )
    return report.Section("Is there a best width?", text, numbers, pictures)
