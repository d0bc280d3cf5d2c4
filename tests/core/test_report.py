"""The page needs nothing else, escapes everything, says everything; the pictures show the data."""

import base64
import html.parser
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from poster_jax.core import report
from poster_jax.core.claims import Claim

CLAIM = Claim(
    poster="p",
    name="C1",
    claim="It does <not> move.",
    paper="exact",
    measured=1e-7,
    unit="relative change",
    interval=(1e-8, 2e-7),
    interval_of="95 % of 180 networks",
    rule="below 1e-3",
    holds=True,
    control="the trace changes 900 times",
)
PIXEL = report.Picture("dot", b"\x89PNG bytes", 'a "dot"', "One dot & no more.")


class _Reader(html.parser.HTMLParser):
    """Collects tags and text, and that every tag is closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _read(page):
    reader = _Reader()
    reader.feed(report.render_page(page))
    assert not reader.open
    return reader


def _page():
    numbers = [report.number("loss & more", 0.25, "Lower is better.", stderr=0.5)]
    sections = [
        report.Section("First", "One.\n\nTwo <script>.", numbers, [PIXEL], [CLAIM]),
        report.Section("Second", "Nothing else."),
    ]
    return report.Page("A page", "What it shows.", sections, {"seed": 3})


def test_the_page_loads_nothing_and_runs_nothing():
    page = _read(_page())
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in report.render_page(_page())


def test_the_page_fits_a_phone_and_both_colour_schemes():
    text = report.render_page(_page())
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text


def test_texts_arrive_as_they_were_given():
    text = _read(_page()).text
    expected = (
        "A page|What it shows.|First|Second|One.|Two <script>.|loss & more|0.25 ± 0.5|Lower is "
        "better.|It does <not> move.|exact|below 1e-3|the trace changes 900 times|One dot & no "
        "more.|seed: 3|95 % of 180 networks"
    )
    for part in expected.split("|"):
        assert part in text


def test_every_picture_stands_inside_with_its_words():
    (image,) = [attrs for tag, attrs in _read(_page()).tags if tag == "img"]
    assert base64.b64decode(image["src"].split(",")[1]) == PIXEL.png
    assert image["alt"] == 'a "dot"'


def test_contents_lead_to_their_sections():
    page = _read(_page())
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert links == [f"#{name}" for name in ids]


def test_a_failing_claim_is_shown_as_such():
    failing = Claim(**{**vars(CLAIM), "holds": False})
    page = _page()._replace(sections=[report.Section("Claims", "", claims=[failing])])
    (cell,) = [a for tag, a in _read(page).tags if tag == "td" and a.get("data-name") == "holds"]
    assert cell["class"] == "fails"


def _closest(colours):
    """Smallest distance of two colours, seen with no red- or no green-sensitive cones."""
    rgb = np.array([to_rgb(colour) for colour in colours]) ** 2.2
    blind = [  # Vienot, Brettel, Mollon 1999
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    ]
    pairs = np.triu_indices(len(rgb), 1)
    seen = [np.clip(rgb @ np.array(matrix).T, 0, 1) ** (1 / 2.2) for matrix in blind]
    return min(np.linalg.norm(s[:, None] - s, axis=-1)[pairs].min() for s in seen)


def test_the_colours_are_told_apart_without_red_or_green():
    with matplotlib.style.context(report.STYLE):
        cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    assert len(set(cycle["marker"])) == len(cycle["marker"])
    usual = matplotlib.rcParamsDefault["axes.prop_cycle"].by_key()["color"][: len(cycle["color"])]
    assert _closest(cycle["color"]) > max(0.1, 2 * _closest(usual))


def test_a_picture_has_the_same_bytes_every_time():
    def draw():
        figure = report.curves({"loss": ([1, 2], [0.5, 0.1])}, xlabel="step", ylabel="loss")
        return report.picture(figure, name="loss", alt="a line", caption="Falls.").png

    assert draw() == draw()


def test_curves_show_the_data_with_labels():
    figure = report.curves(
        {"a": ([1, 2, 3], [1.0, np.nan, 3.0])}, xlabel="x (s)", ylabel="y (m)", guides={"bar": 2.0}
    )
    (axes,) = figure.axes
    assert np.array_equal(axes.lines[0].get_xydata()[[0, 2]], [[1, 1], [3, 3]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (s)", "y (m)")
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "bar"]


@pytest.mark.parametrize("free", [True, False])
def test_a_legend_covers_no_line(free):
    x = np.linspace(0, 1, 50)
    heights = [0.0, 0.05, 1.0] if free else np.linspace(0, 1, 9)
    series = {f"line {h}": (x, np.full(50, h)) for h in heights}
    figure = report.curves(series, xlabel="x", ylabel="y")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert (axes.get_legend() is not None) == free
    legend = axes.get_legend() or figure.legends[0]
    assert len(legend.get_texts()) == len(heights)
    box = legend.get_window_extent()
    for line in axes.lines:
        drawn = line.get_transform().transform(line.get_xydata())
        assert not any(box.contains(*point) for point in drawn)
    if not free:
        assert box.y1 <= axes.get_tightbbox().y0


def test_few_values_on_a_logarithmic_axis_are_its_ticks():
    for x, few in (([16, 64, 256], True), (range(1, 40), False), ([1, 1.01, 100], False)):
        figure = report.curves({"a": (x, np.ones(len(x)))}, xlabel="x", ylabel="y", log_x=True)
        labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
        assert (labels == ["16", "64", "256"]) == few


def test_scatter_panels_show_every_point_once_and_count_those_they_cannot():
    x, y = np.array([1.0, 2.0, -3.0, np.nan]), np.arange(4.0)
    panels = [report.Panel("t", x, y, "tau", log_x=True)]
    figure = report.scatter_panels(panels, ylabel="gap", groups=["a", "b", "a", "b"])
    offsets = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    assert len(offsets) == 4
    assert "2 not shown" in figure.axes[0].get_title(loc="left")


def test_a_heat_map_writes_its_numbers():
    figure = report.heat_map([[1.0, 1e-6]], rows=["r"], columns=["a", "b"], label="x", log=True)
    assert [t.get_text() for t in figure.axes[0].texts] == ["1", "1e-06"]


def test_interval_plots_draw_from_low_to_high():
    figure = report.interval_plot({"g": {"a": (0.5, 0.25, 1.0), "b": (np.nan,) * 3}}, xlabel="tau")
    segments = figure.axes[0].collections[0].get_segments()
    assert np.allclose(segments[0][:, 0], [0.25, 1.0])


def test_spectra_mark_single_eigenvalues():
    figure = report.spectra({"a": ([0, 1], [1, 0.1])}, outliers={"a": [5.0, 7.0]})
    assert any(np.array_equal(line.get_xdata(), [5.0, 7.0]) for line in figure.axes[0].lines)


def test_histograms_share_their_bins_and_count_what_they_show():
    groups = {"a": [1.0, 20.0, 100.0, np.nan, 0.0], "b": np.full((2, 2), 20.0)}
    figure = report.histograms(groups, xlabel="x", log_x=True, num_bins=2, guides={"one": 1.0})
    outlines = [patch.get_data() for patch in figure.axes[0].patches[::2]]
    for outline, heights in zip(outlines, ([1 / 3, 2 / 3], [0, 1]), strict=True):
        np.testing.assert_allclose(outline.edges, [1, 10, 100])
        np.testing.assert_allclose(outline.values, heights)


def test_a_name_has_one_look_in_all_panels_of_lines_and_one_legend_entry():
    first = report.LinePanel("one", {"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])}, {"zero": 0.0})
    second = report.LinePanel("two", {"b": ([1, 2], [7, 8], [6, 7], [8, 9])})
    figure = report.line_panels([first, second], xlabel="x", ylabel="y", log_x=True)
    left, right = (axes.lines for axes in figure.axes)
    assert np.array_equal(right[0].get_ydata(), [7, 8])
    assert right[0].get_color() == left[1].get_color() != left[0].get_color()
    assert right[0].get_marker() == left[1].get_marker()
    band = figure.axes[1].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (6, 9)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "zero"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: report.curves({}, xlabel="x", ylabel="y"), "series"),
        (lambda: report.curves({"a": ([1], [1, 2])}, xlabel="x", ylabel="y"), "'a'"),
        (lambda: report.scatter_panels([], ylabel="y"), "panels"),
        (lambda: report.line_panels([], xlabel="x", ylabel="y"), "panels"),
        (
            lambda: report.line_panels(
                [report.LinePanel("p", {"a": ([1], [1, 2])})], xlabel="x", ylabel="y"
            ),
            "'a'",
        ),
        (lambda: report.heat_map([[1]], rows="ab", columns="c", label=""), "values"),
        (lambda: report.interval_plot({}, xlabel=""), "groups"),
        (lambda: report.spectra({}), "densities"),
        (lambda: report.strips({}, ylabel=""), "groups"),
        (lambda: report.histograms({}, xlabel=""), "groups"),
        (lambda: report.histograms({"a": [-1.0]}, xlabel="", log_x=True), "'a'"),
        (lambda: report.number("", 1.0, "It is."), "name"),
        (lambda: report.number("n", 1.0, "no sentence"), "meaning"),
        (lambda: report.picture(report.new_figure(), name="A b", alt="a", caption="c"), "name"),
        (lambda: report.picture(report.new_figure(), name="a", alt="", caption="c"), "alt"),
        (lambda: report.render_page(report.Page("t", "l", [], {})), "page"),
    ],
)
def test_nonsense_is_refused_by_name(call, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        call()
