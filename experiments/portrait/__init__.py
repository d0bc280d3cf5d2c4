"""The portrait of a trained network: what every room has to say about the demo's models.

A section is a function `section(run, subjects) -> report.Section`. A new room adds one: write it in
a file of its own here, and name it in SECTIONS.
"""

from experiments.portrait.curvature import curvature_section
from experiments.portrait.flatness import flatness_section
from experiments.portrait.jacobian import jacobian_section
from experiments.portrait.kernels import kernels_section
from experiments.portrait.noise import noise_section
from experiments.portrait.subject import Subject, train_subjects
from experiments.portrait.training import training_section
from experiments.portrait.width import width_section

SECTIONS = (
    training_section,
    curvature_section,
    flatness_section,
    kernels_section,
    noise_section,
    jacobian_section,
    width_section,
)
"""The sections of the page, in order."""

__all__ = ["SECTIONS", "Subject", "train_subjects"]
