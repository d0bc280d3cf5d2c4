"""How does a result reach a reader? Pictures in one style, and one page that needs nothing else.

A `Page` has sections; a `Section` a text, numbers with their meaning, pictures and claims.
`render_page` makes one HTML file of it: pictures inside, no script, nothing from the network,
readable on a phone, light and dark. The pictures are functions of arrays that return a matplotlib
`Figure`; `picture` turns one into PNG with the words for those who cannot see it.
"""

from poster_jax.core.report.bands import BandPanel, bands
from poster_jax.core.report.figures import (
    Panel,
    curves,
    heat_map,
    interval_plot,
    scatter_panels,
    spectra,
    strips,
)
from poster_jax.core.report.histograms import histograms
from poster_jax.core.report.lines import LinePanel, line_panels
from poster_jax.core.report.page import Number, Page, Section, number, render_page
from poster_jax.core.report.picture import STYLE, Picture, new_figure, picture

__all__ = [
    "STYLE",
    "BandPanel",
    "LinePanel",
    "Number",
    "Page",
    "Panel",
    "Picture",
    "Section",
    "bands",
    "curves",
    "heat_map",
    "histograms",
    "interval_plot",
    "line_panels",
    "new_figure",
    "number",
    "picture",
    "render_page",
    "scatter_panels",
    "spectra",
    "strips",
]
