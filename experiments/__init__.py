"""One program a poster: `python -m experiments.NAME`; `demo` and `posters` run several."""
