# make demo and make test set up everything they need; the other targets are for developers.
# PYTHON=... chooses the Python, ARGS=... is handed on.
.PHONY: help demo test test-openstack test-pythons lint format types env bench lock clean
PY := .venv/bin/python
# One more than there are cores: a quarter of their time tests wait. Each worker has servers of its own.
WORKERS := $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4)))

help:
	@echo "make demo          the main job on real input, from pool to picture; CHAOS=1 kills a VM"
	@echo "make test          every test; ARGS='-k placement' hands arguments to pytest"
	@echo "make test-pythons  the unit tests on the other Python versions found here"
	@echo "make test-openstack  the openstack provider over the real Nova's code (470 MB, some minutes)"
	@echo "make lint types    ruff and import-linter; mypy --strict"
	@echo "make format        let ruff format the code"
	@echo "make bench         the benchmarks"
	@echo "make env           only build the environment, .venv"
	@echo "make lock          resolve pyproject.toml anew; ARGS=--upgrade takes newer versions"
	@echo "make clean         remove environments, caches and build results"

demo:
	@tools/system-packages demo
	@tools/environment .venv
	@.venv/bin/remuda demo $(if $(CHAOS),--chaos) $(ARGS)

test:
	@tools/system-packages test
	@tools/environment .venv
	@tools/libvirt-python .venv
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-pythons: env
	@WORKERS=$(WORKERS) tools/other-pythons

test-openstack: env
	@tools/test-openstack $(ARGS)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

format: env
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

types: env
	$(PY) -m mypy remuda tests benchmarks

env:
	@tools/system-packages demo
	@tools/environment .venv

bench: env
	$(PY) -m benchmarks.throughput $(ARGS)

lock: env
	tools/lock $(ARGS)

clean:
	rm -rf .venv .venv.lock .venv-3.* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find remuda tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
