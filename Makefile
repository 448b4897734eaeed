# `make demo` and `make test` set up everything themselves: they need python3, git and make.
PYTHON ?= python3
# A module of tests stays in one process: its fixtures are made once.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadscope
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
HOSTS := .venv-hosts
SITE := -c "import site; print(site.getsitepackages()[0])"
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start many processes: none should compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-lowest test-hosts test-package bench bench-gpu check docs format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup ## train CLIP and CLOC on generated scenes, print the comparison
	$(BIN)/open-cloc demo --overwrite

test: setup ## the test suite: CPU, offline, no weights
	$(BIN)/python $(PYTEST)

test-lowest: setup ## the same with the lowest version of each library that pyproject.toml names
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(LOWEST)/bin/python $(PYTEST)

# A small environment that sees the packages of the other one. autodistill wants a second OpenCV over FiftyOne's.
test-hosts: setup ## tests of the hosts that are too heavy for `make test`: FiftyOne, autodistill
	test -x $(HOSTS)/bin/python || $(BIN)/python -m venv $(HOSTS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(HOSTS)/bin/python $(SITE))/seen.pth"
	$(HOSTS)/bin/python -m pip install --quiet 'fiftyone>=1.22' 'roboflow>=1.7' 'mongomock>=4.3'
	$(HOSTS)/bin/python -m pip install --quiet --no-deps 'autodistill>=0.1.29'
	$(HOSTS)/bin/python -m pytest tests/integrations

test-package: ## build wheel and sdist, install and run them in an empty environment
	.ci/package

bench: setup ## every benchmark of speed and memory, and one table of the aims; 45 minutes on 2 idle cores
	$(BIN)/python -m benchmarks

bench-gpu: setup ## the step on one GPU against its aims, under 6 minutes; a dry run without one
	$(BIN)/python -m benchmarks.gpu

check: setup ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python $(PYTEST)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## the pages and the reference of the Python API as a site, offline, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site $(VENV) $(LOWEST) $(HOSTS) build dist *.egg-info
