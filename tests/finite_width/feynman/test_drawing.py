"""Pictures of diagrams: the lines that are drawn close into the diagram's loops."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch

from poster_jax.finite_width.feynman import correlator, diagrams, draw


def closed_curves(axes):
    """How many closed curves the segments of each colour make, by joining equal ends."""
    segments = {}
    for patch in axes.patches:
        if isinstance(patch, PathPatch):
            colour = to_hex(patch.get_edgecolor())
            ends = [tuple(np.round(p, 6)) for p in patch.get_path().vertices[[0, -1]]]
            segments.setdefault(colour, []).append(set(ends))
    curves = {}
    for colour, pieces in segments.items():
        groups = []
        for piece in pieces:
            touching = [g for g in groups if g & piece]
            groups = [g for g in groups if not g & piece] + [piece.union(*touching)]
        ends = [end for piece in pieces for end in piece]
        assert all(ends.count(end) == 2 for end in ends)
        curves[colour] = len(groups)
    return curves


@pytest.mark.parametrize(("spec", "depth"), [("(df.df)^2", 2), ("df.ddf.ddf.df", 3), ("f^6", 1)])
def test_every_face_is_a_closed_curve_of_its_layer_s_colour(spec, depth):
    for diagram in list(diagrams(correlator(spec), depth=depth))[:6]:
        curves = closed_curves(draw(diagram).axes[0])
        wanted = [len(loops) for loops in diagram.faces] + [len(diagram.outer_faces)]
        assert sorted(curves.values()) == sorted(wanted)


@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_figure_is_saved_as_svg_and_png(form):
    figure = draw(list(diagrams(correlator("df.df"), depth=2)), labels=["df", "df"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    assert buffer.getvalue()[:4] == {"svg": b"<?xm", "png": b"\x89PNG"}[form]


@pytest.mark.bad_input
def test_bad_input_is_refused():
    some = list(diagrams(correlator("df.df"), depth=1))
    with pytest.raises(ValueError, match="at least one"):
        draw([])
    with pytest.raises(ValueError, match="labels must be 2"):
        draw(some, labels=["df"])
    with pytest.raises(TypeError, match="must be Diagrams"):
        draw(["f"])
    with pytest.raises(ValueError, match="at most 6 tensors to be drawn, got 8"):
        draw(next(diagrams(correlator("f^8"), depth=1)))
