# The two commands of the README are `make demo` and `make test`. Every target sets up .venv by itself,
# from Python 3.11 or newer, and a second call reuses it.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
py := $(VENV)/bin/python
# Two tested sets of versions; anything newer than 3.12 starts from the newer set.
lock = locks/python$(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")').txt
pip = $(py) -m pip install --quiet --disable-pip-version-check --constraint $(lock)
workers ?= 2
workdir ?= out/posters
preset ?= laptop
results ?= out/benchmarks

.PHONY: help demo test slow optimised posters bench lint format docs oracles lock wheel ci clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

$(VENV): $(VENV)/.runtime

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "poster_jax needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments (on Debian: apt install python3-venv)."; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.runtime: pyproject.toml $(lock) $(VENV)/.python
	@echo "Installing poster_jax and what it stands on into $(VENV) ..."
	@$(pip) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what tests, checks and docs need into $(VENV) ..."
	@$(pip) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.runtime ## train on the digits, write the portrait page out/demo/index.html
	$(py) -m experiments.demo --workdir=out/demo

test: $(VENV)/.dev ## all tests but the slow ones and the docstrings' examples
	$(py) -m pytest -n $(workers) --dist loadfile tests
	POSTER_JAX_TYPECHECK=0 $(py) -m pytest -n $(workers) --dist loadfile -m 'bad_input and not slow' tests

# Those of the library as users compile; but experiments, notebooks, pages, and tests that compile for
# longer than they run, as the quick tests do, which is faster.
rooms = $(patsubst %,tests/%,core curvature flatness finite_width gradient_noise jacobian kernels \
	learning_rate mixed_sizes)
compiling = tests/batchnorm_only tests/feature_diversity tests/core/test_models.py tests/curvature/test_transformations.py \
	tests/gradient_noise/test_projections.py \
	$(patsubst %,tests/kernels/test_%.py,empirical empirical_models stax_figures stax_modern)
slow: $(VENV)/.dev ## the tests that take minutes, and the docstrings' examples
	$(py) -m pytest -n $(workers) --dist loadfile poster_jax
	POSTER_JAX_OPTIMISE=1 $(py) -m pytest -n $(workers) --dist loadfile -m slow $(rooms) $(compiling:%=--ignore=%)
	$(py) -m pytest -n $(workers) --dist loadfile -m slow tests/experiments tests/house $(compiling)

# Quick tests whose outcome rests most on the order of floating point operations, against other
# sources; the slow ones of every room are compiled so anyway.
numerical = tests/gradient_noise/test_normality.py tests/core/test_linalg.py tests/core/test_losses.py \
	tests/curvature/test_peers.py tests/flatness/test_reference.py

optimised: $(VENV)/.dev ## the numerical quick tests once more, compiled as users compile
	POSTER_JAX_OPTIMISE=1 $(py) -m pytest -n $(workers) --dist loadfile $(numerical)

posters: $(VENV)/.runtime ## every poster at a preset (preset=laptop), and the table of claims
	$(py) -m experiments.posters --preset=$(preset) --workdir=$(workdir)

.venv-peers/.done: benchmarks/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	@touch $@

bench: $(VENV)/.dev .venv-peers/.done .venv-oracles/.done ## each method against its peers, ratios of medians, in out/benchmarks
	@mkdir -p $(results)
	for b in convolution populations curvature kernels gradient_noise finite_width jacobian training; do \
		$(py) -m benchmarks.$$b --json=$(results)/$$b.json || exit 1; done

lint: $(VENV)/.dev ## style and types
	$(py) -m ruff check .
	$(py) -m ruff format --check .
	$(py) -m pyright --pythonpath $(py)

format: $(VENV)/.dev ## put the style right
	$(py) -m ruff check --fix .
	$(py) -m ruff format .

docs: $(VENV)/.dev ## the documentation site, in site/
	$(py) -m mkdocs build --strict --quiet

.venv-oracles/.done: tests/oracles/requirements.txt
	@test -x .venv-oracles/bin/python || $(PYTHON) -m venv .venv-oracles
	@.venv-oracles/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

oracles: .venv-peers/.done .venv-oracles/.done ## make the independent figures of tests/oracles again
	for program in tests/oracles/make_*.py; do \
		case $$program in *curvature.py|*batchnorm.py) env=.venv-peers;; *) env=.venv-oracles;; esac; \
		$$env/bin/python $$program || exit 1; done

wheel: $(VENV)/.dev ## build the wheel and import it in a clean environment
	rm -rf dist build/wheel-check
	$(py) -m build --wheel --outdir dist . >/dev/null
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(lock) dist/*.whl
	cd build && wheel-check/bin/python -c "import poster_jax, poster_jax.curvature, poster_jax.flatness, poster_jax.gradient_noise, poster_jax.jacobian, poster_jax.batchnorm_only, poster_jax.feature_diversity, poster_jax.learning_rate, poster_jax.mixed_sizes; from poster_jax.finite_width import feynman, nongaussian; from poster_jax.kernels import stax; print('wheel', poster_jax.__version__, 'imports from', poster_jax.__path__[0])"
	rm -rf build/wheel-check

lock: ## write locks/ again from the newest versions of this Python
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	build/lock/bin/python -m pip freeze --exclude poster_jax > $(lock)
	rm -rf build/lock

ci: ## what .ci/run does
	bash .ci/run

clean: ## remove what the targets made, the environments included
	rm -rf $(VENV) .venv-peers .venv-oracles out build dist site
