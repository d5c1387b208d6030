# The commands of a developer; `make help` lists them. CI calls `make test` and `make test-vm`.

VENV ?= .venv
PYTHON ?=
PYTEST = $(VENV)/bin/python -m pytest
# the tests do not depend on each other: as many at a time as there are processors
JOBS ?= $(shell nproc)
# for the targets that take some: make check ARGS="-k qcow2 -x"
ARGS ?=
# for the guest: make test-vm VM_ARGS=--lacking runs only what this machine's own kernel cannot
VM_ARGS ?=
VM = $(VENV)/bin/python -m tests.vm --venv $(VENV) $(VM_ARGS)

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup run lint check check-pythons test test-vm command-vm coverage coverage-vm bench \
    fuzz clean clean-vm

help: ## List what make can do here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what tests need too: programs (as root, with apt), the virtual environment
	@packaging/setup.sh --tools $(VENV)

run: ## Install storaged into .venv and show storagectl at work in a root of its own, demo-root/
	@packaging/setup.sh $(VENV)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" docs/demo.sh

lint: setup ## Run ruff and mypy
	@$(PYTEST) -q tests/test_linters.py $(ARGS)

check: setup ## Run linters, types and the quick tests: about a minute, for every change
	@$(PYTEST) -q -n $(JOBS) -m "not slow and not install" $(ARGS)

check-pythons: ## Run the quick tests with every Python >= 3.11 on this machine
	@set -e; packaging/pythons.sh | while read -r version python; do \
	    echo "== $$python"; \
	    packaging/setup.sh .venv-$$version "$$python"; \
	    .venv-$$version/bin/python -m pytest -q -n $(JOBS) -m "not slow and not install" \
	        --ignore tests/test_linters.py $(ARGS) </dev/null; \
	done

test: setup ## Run everything: linters, types, all tests, the built wheel
	@$(PYTEST) -n $(JOBS) $(ARGS)

test-vm: setup ## Run the tests marked kernel on a Debian kernel in QEMU; results in build/vm
	@$(VM) -- $(ARGS)

command-vm: setup ## Run one command in that guest; ARGS="lsblk"
	@$(VM) --command -- $(ARGS)

coverage: setup ## Run all tests but the installation and show the lines that none reached
	@$(VENV)/bin/python -m coverage run -m pytest -q -m "not install" $(ARGS)
	@$(VENV)/bin/python -m coverage report --skip-covered --show-missing

coverage-vm: setup ## Run the tests marked kernel in the guest and show the lines that none reached
	@$(VM) --coverage -- $(ARGS)
	@$(VENV)/bin/python -m coverage combine --keep --data-file build/vm/.coverage build/vm
	@$(VENV)/bin/python -m coverage report --data-file build/vm/.coverage --skip-covered --show-missing

bench: setup ## Measure against the goals; ARGS="--json FILE --directory DIR --only NAME"
	@$(VENV)/bin/python -m tests.bench $(ARGS)

fuzz: setup ## Fuzz the readers of images for ten minutes; ARGS="--seconds N --target NAME --seed N"
	@$(VENV)/bin/python -c 'import atheris' 2>/dev/null || \
	    $(VENV)/bin/python -m pip install -q atheris || \
	    echo "atheris cannot be installed: the fuzzer does without it" >&2
	@$(VENV)/bin/python -m tests.fuzz $(ARGS)

clean: ## Remove what the other targets made
	rm -rf .venv .venv-* demo-root try build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-vm: ## Remove what test-vm has cached in ~/.cache/storaged/vm
	@python3 -m tests.vm --clean
