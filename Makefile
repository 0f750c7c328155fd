# Everything runs in the checkout's own .venv, which the first target that needs it sets up.
#   make demo PYTHON=/opt/python3.12/bin/python3
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

# The first of these that is Python >= 3.11 and can make a virtual environment.
PYTHONS := python3 python3.11 python3.12 python3.13 python3.14 python
NEEDS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c '$(NEEDS)' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       train RAMBO on the built-in pendulum-random data, evaluate, draw the curve'
	@echo 'make test       run the tests, those of minutes left out'
	@echo 'make test-slow  run the tests that take minutes'
	@echo 'make lint       ruff and mypy'
	@echo 'make check-all  all of these, on the oldest and newest versions too, the wheel, soak, large data'
	@echo 'make figures    make the README pictures and tables anew, those that take an hour at most'
	@echo 'make ablations  the ablations of the README on the pendulums (an hour)'
	@echo 'make warm-start the settings of the README that keep a clone, on the double pendulum'
	@echo 'make bench      measure the speed of every part on the CPU'
	@echo 'make bench-gpu  check and measure the CUDA graphs on a GPU, in under eight minutes'
	@echo 'make install    set up .venv (the others do it by themselves)'
	@echo 'make clean      remove .venv and caches; runs/ stays'
	@echo
	@echo 'PYTHON=...      the Python (>= 3.11) to make .venv with; found: $(or $(PYTHON),none)'
	@echo 'PIP_ARGS=...    more arguments for pip install'
	@echo 'JOBS=N          tests, or runs, at a time (2)'

install: $(STAMP)

# Done anew when what is to be installed has changed. The stamp is written last, so that an
# interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEEDS)' 2>/dev/null || { \
		echo 'error: needs Python >= 3.11 with the modules venv and ensurepip;' \
			'tried: $(or $(PYTHON),$(PYTHONS)). Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; \
		exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/adv-worldmodel train configs/pendulum-random.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Beside what CI runs: other versions, the wheel, 2000 iterations, a large data set, slow tests.
.PHONY: check-all soak large-data
check-all: lint
	$(MAKE) test PYTEST_ARGS=--cov
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/nox
	$(MAKE) soak large-data test-slow

soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak

large-data: $(STAMP)
	$(BIN)/python -m tests.large_data

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Minutes of both cores' quiet; BENCH_ARGS='--tasks hopper --rows 100000' and the like for less.
.PHONY: bench
bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

# Needs an NVIDIA GPU; under eight minutes. BENCH_ARGS as above.
.PHONY: bench-gpu
bench-gpu: $(STAMP)
	$(BIN)/python -m tests.benchmarks.gpu $(BENCH_ARGS)

# What the README shows and two cores can make in an hour or so: build/figures/*/table.md, docs/images.
FIGURES := build/figures
.PHONY: figures
figures: $(STAMP)
	rm -rf $(FIGURES)/careful-driver $(FIGURES)/pendulum
	@# what a script checks may fail: the others run, and make fails at the end
	failed=0; \
	$(BIN)/python examples/illustrative_mdp.py --seeds 0:10 --jobs $(JOBS) --out $(FIGURES)/illustrative || failed=1; \
	$(BIN)/python examples/careful_driver.py --seeds 0:5 --jobs $(JOBS) --out $(FIGURES)/careful-driver || failed=1; \
	$(BIN)/python examples/single_transition.py --seeds 0:20 --jobs $(JOBS) --choose-beta 5 --out $(FIGURES)/single || failed=1; \
	$(BIN)/adv-worldmodel sweep pendulum-random out=$(FIGURES)/pendulum --seeds 0:3 --jobs $(JOBS) || failed=1; \
	$(BIN)/adv-worldmodel results $(FIGURES)/pendulum --plot $(FIGURES)/pendulum/pendulum-random.png \
		--markdown $(FIGURES)/pendulum/table.md || failed=1; \
	cp $(FIGURES)/*/*.png docs/images/; exit $$failed

# The README's ablations, an hour of two cores. That on HalfCheetah takes more than two by itself: its
# command stands in the README.
ABLATIONS := $(FIGURES)/ablations
DOUBLE_PENDULUM := $(ABLATIONS)/double-pendulum.npz
SWEEP := --preset ablations --jobs $(JOBS)
.PHONY: ablations
ablations: $(STAMP) $(DOUBLE_PENDULUM)
	$(BIN)/adv-worldmodel sweep pendulum-random out=$(ABLATIONS)/pendulum $(SWEEP) --seeds 0:5
	$(BIN)/adv-worldmodel sweep examples/double_pendulum.yaml dataset=$(DOUBLE_PENDULUM) \
		out=$(ABLATIONS)/double-pendulum $(SWEEP) --seeds 0:5
	$(BIN)/adv-worldmodel results $(ABLATIONS) --against adversary.weight=0.03 --markdown $(ABLATIONS)/table.md

# What keeps a clone on the double pendulum: each setting alone, and all as in the file.
WARM_START := $(FIGURES)/warm-start
.PHONY: warm-start
warm-start: $(STAMP) $(DOUBLE_PENDULUM)
	$(BIN)/adv-worldmodel sweep examples/double_pendulum.yaml dataset=$(DOUBLE_PENDULUM) out=$(WARM_START)/alone \
		agent.layer_norm=false agent.ent_coef=auto agent.critic_warmup=0 agent.cloning_weight=0 \
		--preset warm-start --jobs $(JOBS) --seeds 0:3
	$(BIN)/adv-worldmodel sweep examples/double_pendulum.yaml dataset=$(DOUBLE_PENDULUM) out=$(WARM_START)/together \
		--jobs $(JOBS) --seeds 0:3
	$(BIN)/adv-worldmodel results $(WARM_START) --by-seed --markdown $(WARM_START)/table.md

$(DOUBLE_PENDULUM): | $(STAMP)
	$(BIN)/adv-worldmodel data make InvertedDoublePendulum-v5 --policy sac:10000 --deterministic \
		--noise 0.1 --rows 10000 --npz $@
