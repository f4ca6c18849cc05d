# make demo   the whole study on the simulated recording; make test   everything that is checked.
# An active environment (venv or conda, not conda's base) is used and brought in line with requirements.lock;
# without one, .venv is created.
STUDY ?= demo
SEED ?= 0
KILLS ?= 200
PYTHON ?= python3
UV ?= uv
RESOURCES :=
# Linux without a graphics card: make lock-cpu once, then LOCK=requirements-cpu.lock with every command.
LOCK ?= requirements.lock
# Where PyTorch keeps its builds without CUDA; what comes from there is held to the hashes of that lock.
CPU_INDEX := https://download.pytorch.org/whl/cpu
INDEX := $(if $(filter %-cpu.lock,$(LOCK)),--extra-index-url $(CPU_INDEX))

ifeq ($(CONDA_DEFAULT_ENV),base)
CONDA_PREFIX :=
endif
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),.venv)
PY := "$(ENV)/bin/python"
CODE := sgdm_utils tests $(wildcard notebooks)
STRIP := $(PY) -m nbstripout --keep-output --keep-count \
	--extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution"

# Threads that wait in a loop keep a busy neighbour off the core; some microseconds of it are worth their while.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 1000

# Engine and libraries keep caches at home; where that cannot be written, among the data.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export XDG_CACHE_HOME ?= $(or $(SGDM_DATA),$(CURDIR)/data)/cache
endif

.PHONY: help demo smoke study sweep sweep-plan status verify seeds evaluate experiments test test-all test-cluster stress lint unit benchmark lab report notebooks lock lock-cpu clean environment

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# Alignment and structure do not read one another: side by side they take half of the time, and 8 GB of memory together.
demo: STUDY = demo
demo: RESOURCES := --resources gpu=2
demo: environment ## run notebooks 00 to 07 on the simulated recording and print where the report is
	@$(run-study)

# Its trainings are so small that two with one thread each, on one card if there is one, are faster than one after
# the other with two.
smoke: STUDY = smoke
smoke: RESOURCES := --resources gpu=2
smoke: export OMP_NUM_THREADS = 1
smoke: environment ## run the same chain in two minutes; its numbers mean nothing
	@$(run-study)

study: environment ## run the study that a file in config/ describes: make study STUDY=my_bids
	@$(run-study)

define run-study
$(PY) -m snakemake --profile config/profiles/local $(RESOURCES) --config study=$(STUDY) \
	|| { echo "make: study $(STUDY) is not complete. What went wrong stands above, else it is told by:" >&2; \
	echo "  snakemake --cores 1 --config study=$(STUDY)" >&2; exit 1; }
$(PY) -c "from sgdm_utils.workflow import paths; print('Report:', paths.report_dir('$(STUDY)') / 'index.html')"
endef

sweep: environment ## all studies of config/sweeps/, their table and what is missing: make sweep SWEEP=cleaning
	$(PY) -m snakemake --profile config/profiles/local --keep-going $(RESOURCES) --config sweep=$(SWEEP) || true
	$(PY) -m sgdm_utils sweep $(SWEEP)

sweep-plan: environment ## jobs, expected time and disk of a sweep; changes nothing
	$(PY) -m snakemake --cores 1 --config sweep=$(SWEEP) --dry-run --quiet rules

status: environment ## which results of a study are fresh, stale (why) or missing: make status STUDY=demo
	$(PY) -m sgdm_utils status --study $(STUDY)

verify: environment ## the same after reading every file, also of the recording, and comparing its digest
	$(PY) -m sgdm_utils status --study $(STUDY) --verify

seeds: environment ## train with the extra seeds of a study, too, and split the variance: make seeds STUDY=demo
	$(PY) -m snakemake --profile config/profiles/local $(RESOURCES) --config study=$(STUDY) extra_seeds=true
	$(PY) -m sgdm_utils run experiments/20_seeds --study $(STUDY) --seed $(SEED)

evaluate: environment ## score the stored reconstructions of a study anew: make evaluate STUDY=demo SEED=0
	$(PY) -m sgdm_utils run 06_evaluation --study $(STUDY) --seed $(SEED)
	$(PY) -m sgdm_utils run 07_figures --study $(STUDY) --seed $(SEED)

experiments: environment ## run notebooks/experiments on a finished study: make experiments STUDY=demo SEED=0
	@for notebook in notebooks/experiments/*.ipynb; do \
		$(PY) -m sgdm_utils run "experiments/$$(basename "$$notebook" .ipynb)" --study $(STUDY) --seed $(SEED) || exit 1; \
	done
	@if [ "$(STUDY)" = demo ]; then $(MAKE) study STUDY=people && \
		$(PY) -m sgdm_utils run experiments/14_cross_subject --study people --seed $(SEED); fi

test: lint unit ## what every change needs: code, units, the small study from the recording to the page, twice

test-all: lint ## the same, long tests, and every committed notebook executed anew and compared (hours without matrix units)
	$(PY) -m pytest tests -n 2 --dist loadfile
	$(PY) tests/chain/check_notebooks.py

test-cluster: environment ## a miniature and the small study on a real Slurm, with a killed job and a drained node; says so where there is none
	$(PY) -m pytest tests/chain/test_cluster.py

stress: environment ## 200 random kills of the small study, compared byte for byte (hours): make stress KILLS=200
	$(PY) tests/stress/kills.py --kills $(KILLS) --folder data/derived/.stress

lint: environment
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

# Two workers on two cores: threads of linear algebra would wait for each other.
unit test-all: export OPENBLAS_NUM_THREADS = 1
unit: environment
	$(PY) -m pytest tests -n 2 --dist loadfile -m "not slow"

benchmark: environment ## speed and memory beside the published recipes (minutes, some gigabytes of disk)
	$(PY) -m pytest tests/benchmarks/bench_*.py

lab: environment ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

report: environment ## draw figures and page of a study anew from its tables: make report STUDY=demo SEED=0
	$(PY) -m sgdm_utils run 07_figures --study $(STUDY) --seed $(SEED)

notebooks: environment ## maintainers: put the results of the last make demo into notebooks/ and README.md
	$(PY) -m sgdm_utils publish
	$(STRIP) notebooks/*.ipynb notebooks/experiments/*.ipynb

lock: ## maintainers: renew requirements.lock from pyproject.toml (needs uv)
	$(UV) pip compile pyproject.toml --extra dev --extra live --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header -o requirements.lock

lock-cpu: ## Linux without a graphics card: the same pins with PyTorch's builds without CUDA (needs uv)
	$(UV) pip compile pyproject.toml --extra dev --extra live --python "$(PYTHON)" --generate-hashes --torch-backend cpu \
		--constraints requirements.lock --no-emit-index-url --no-header -o requirements-cpu.lock

clean: ## remove computed data, executed copies and caches; keeps raw data, tables, figures and .venv
	rm -rf data/derived reports/*/executed reports/*/logs .snakemake .pytest_cache .ruff_cache

environment:
	@if [ "$(ENV)" = .venv ] && [ ! -x .venv/bin/python ]; then \
		"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
			echo "make: Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." >&2; \
			echo "make: name another one, e.g.: make demo PYTHON=python3.11" >&2; exit 1; }; \
		echo "Creating .venv"; \
		"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
			echo "make: no virtual environment could be made (on Debian and Ubuntu: install python3-venv)" >&2; \
			exit 1; }; \
	fi
	@stamp="$(ENV)/.sgdm-installed"; state="$$(cksum $(LOCK) pyproject.toml; pwd)"; \
	if [ "$$state" != "$$(cat "$$stamp" 2>/dev/null)" ]; then \
		echo "Installing the locked packages into $(ENV) (the first time: a few gigabytes, some minutes)"; \
		$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
		$(PY) -m pip install --require-hashes $(INDEX) -r $(LOCK) \
		&& $(PY) -m pip install --no-deps --no-build-isolation -e . \
		&& echo "$$state" > "$$stamp"; \
	fi
