"""How the networks learned."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments._program import Run
from experiments.portrait.subject import Subject
from poster_jax.core import report


def training_section(run: Run, subjects: Sequence[Subject]) -> report.Section:
    """Accuracy and loss over the steps, and where they ended."""
    numbers = []
    for subject in subjects:
        last = subject.history[-1]
        size = sum(leaf.size for leaf in jax.tree.leaves(subject.params))
        numbers += [
            report.Number(
                f"{subject.name}: parameters", f"{size:,}", "How many numbers training has set."
            ),
            report.number(
                f"{subject.name}: test accuracy",
                100 * last["test_accuracy"],
                f"Share of the {len(subject.test[1])} test digits that are named rightly; the "
                "error is that of a share of so many.",
                stderr=_share_error(last["test_accuracy"], len(subject.test[1])),
                unit="%",
            ),
            report.number(
                f"{subject.name}: training loss",
                last["train_loss"],
                "Mean cross-entropy on the training digits: how well the labels are fitted.",
                unit="nats",
            ),
            report.number(
                f"{subject.name}: generalisation gap",
                last["test_loss"] - last["train_loss"],
                "Test loss minus training loss: what flatness is supposed to foretell.",
                unit="nats",
            ),
        ]
    pictures = [
        report.picture(
            report.curves(
                {
                    f"{subject.name}, {part}": _series(subject, f"{part}_{what}")
                    for subject in subjects
                    for part in ("train", "test")
                },
                xlabel="step",
                ylabel=label,
                log_y=what == "loss",
            ),
            name=f"training_{what}",
            alt=f"{label} of both networks over the steps of training",
            caption=f"{label.capitalize()} on the training and on the test digits.",
        )
        for what, label in (("accuracy", "accuracy"), ("loss", "cross-entropy (nats)"))
    ]
    text = (
        "Two networks are trained on the handwritten digits that come with scikit-learn (8x8 "
        "pixels, 1,000 to train on, 797 to test): a multilayer perceptron 64-96-48-10 and a small "
        "convolutional network. All that follows asks questions of these two."
    )
    return report.Section("Training", text, numbers=numbers, pictures=pictures)


def _series(subject: Subject, metric: str) -> tuple[np.ndarray, np.ndarray]:
    rows = subject.history
    return np.array([r["step"] for r in rows]), np.array([float(r[metric]) for r in rows])


def _share_error(share: float, count: int) -> float:
    return 100 * float(np.sqrt(share * (1 - share) / count))
