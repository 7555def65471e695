.DEFAULT_GOAL := help
.PHONY: help setup run test test-ci test-all test-resume slurm-up test-slurm slurm-down soak check audit bench docs sweep sweep-slurm sweep-report patchtst-studies clean
bin := .venv/bin
audit := .audit
parallel := --numprocesses auto --maxprocesses 4

help:  ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "%-17s %s\n", $$1, $$2}'

.venv/done: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(bin)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/done  ## Create .venv with the package and the tools

run: setup  ## Pretrain T-JEPA on a real table, probe it, report (two minutes)
	$(bin)/python -m jepa.train

check: setup  ## Formatting, lint, types
	$(bin)/ruff format --check . && $(bin)/ruff check . && $(bin)/pyright --project pyproject.toml

test: setup  ## Fast tests (no network, no GPU, no data files)
	$(bin)/pytest -q $(parallel)

test-ci: setup  ## The covering end-to-end tests; real data where JEPA_DATA is
	$(bin)/pytest -q $(parallel) -m ci

test-all: setup  ## Every test
	$(bin)/pytest -q $(parallel) -m "slow or not slow"

slurm-up:  ## A real SLURM of one node on this machine (root, Debian; it stays until slurm-down)
	command -v slurmctld >/dev/null || bash tests/local_slurm.sh install
	SLURM_CPUS=$${SLURM_CPUS:-8} bash tests/local_slurm.sh up

test-slurm: setup  ## The tests that need it; only=ci leaves the longest out
	$(bin)/pytest -q tests/test_slurm.py tests/test_slurm_sweeps.py -m "slow$(if $(only), and $(only))"

slurm-down:  ## Stop it
	bash tests/local_slurm.sh down

test-resume: setup  ## Every model killed everywhere and gone on with; 200 kills in saves, 500 flipped bits
	JEPA_KILLS=200 JEPA_FLIPS=500 $(bin)/pytest -q $(parallel) -m resume && \
	JEPA_FLIPS=500 $(bin)/pytest -q tests/test_checkpoint.py

soak: setup  ## Half an hour of kills: the offline H-JEPA run must end as one left alone
	$(bin)/python tests/soak.py $(args)

audit:  ## Known vulnerabilities of what is installed in .venv, by pip-audit (needs a network)
	@test -x $(audit)/bin/pip-audit || \
	  { python3 -m venv $(audit) && $(audit)/bin/pip install --quiet 'pip-audit>=2.7'; } || \
	  { echo "make audit: pip-audit cannot be installed (is there a network?): nothing was audited"; exit 2; }
	@$(bin)/python -m pip list --format=freeze --exclude-editable | sed 's/+.*//' > $(audit)/installed.txt
	@$(audit)/bin/pip-audit --no-deps --disable-pip -r $(audit)/installed.txt > $(audit)/report.txt; \
	  code=$$?; cat $(audit)/report.txt; n=$$(grep -c 'could not be audited' $(audit)/report.txt); \
	  test $$n = 0 || { echo "make audit: $$n packages could not be audited: nothing is known of them"; exit 2; }; \
	  test $$code = 0 || { echo "make audit: vulnerabilities above, or PyPI cannot be reached"; exit $$code; }

bench: setup  ## Speed and memory, as ratios to the floor; only=<entry> picks one
	$(bin)/python -m tests.bench $(if $(only),only=$(only))

docs: setup  ## docs/config.md, from the yaml files of conf/
	$(bin)/python docs/make.py

sweep: setup  ## Search T-JEPA's space on digits, 20 trials; args="+experiment=hjepa_sweep ..."
	$(bin)/python -m jepa.train -m hydra/sweeper=optuna $(args)

sweep-slurm: setup  ## The same on a cluster: the driver and each trial a SLURM job
	$(bin)/python -m jepa.sweeps.controller -m hydra/sweeper=optuna hydra/launcher=slurm $(args)

sweep-report: setup  ## Tables and plots of a sweep once more; run=<sweep directory>
	$(bin)/python -m jepa.sweeps.report run=$(run)

patchtst-studies: setup  ## The 12 searches of PatchTST in order; START_FROM=<1-12> N_TRIALS=<50>
	$(bin)/python -m jepa.sweeps.studies start_from=$(or $(START_FROM),1) n_trials=$(or $(N_TRIALS),50) $(args)

clean:  ## Remove .venv and caches; runs/ and data/ stay
	rm -rf .venv .audit .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
