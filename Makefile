# Everything runs in .venv, which the first target that needs it makes. Nothing has to be there but make, Python 3.11 to
# 3.14 and a package index: PostgreSQL comes in a wheel. With DATABASE_URL set, that database is used.

.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
ENV := .venv/.made
QUICK := not crash and not slow
# A file stays together. Each process has a server of its own; the slow proofs, which load the machine, run alone.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(ENV) ## make the environment in .venv

$(ENV): requirements.lock pyproject.toml .ci/setup
	@.ci/setup && touch $@

run: $(ENV) ## start everything: database, mail and webhook sinks, API, worker, and place a demo order
	@exec $(BIN)/python -m api.local run

crash: $(ENV) ## kill -9 a worker in the middle of a job and watch another one finish it
	@exec $(BIN)/python -m api.local crash

worker: $(ENV) ## start one more worker
	@exec $(BIN)/python -m api.local worker

api: $(ENV) ## start the API alone
	@exec $(BIN)/python -m api.local api

migrate: $(ENV) ## bring the database to the newest schema
	@exec $(BIN)/python -m api.local migrate

test: $(ENV) ## run the tests, but for the slow proofs
	@$(BIN)/python -m pytest -m "$(QUICK)" $(PARALLEL) $(ARGS)

test-crash: $(ENV) ## run the slow proofs: killed processes, a killed database, the built wheel
	@$(BIN)/python -m pytest -m "not ($(QUICK))" $(ARGS)

bench: $(ENV) ## measure the main figures, in a few minutes
	@$(BIN)/python -m tests.benchmarks $(ARGS)

bench-full: $(ENV) ## measure all of them, beside other queues, in an hour or two
	@$(BIN)/python -m tests.benchmarks --full $(ARGS)

openapi: $(ENV) ## write down the HTTP API in docs/openapi.json
	@OUTBOX_TEST_WRITE_OPENAPI=1 $(BIN)/python -m pytest -q tests/service/test_openapi.py -k written_down

lint: $(ENV) ## check style, types and the import map
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(ENV) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(ENV) ## build the wheel and the source distribution into dist/
	@$(BIN)/python -m build --no-isolation

lock: $(ENV) ## pin the newest suitable versions in requirements.lock
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group dev \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --generate-hashes pyproject.toml \
		-o requirements.lock

# Tools with environments of their own: they would bring forty packages into ours, and become part of what they look at.
TOOL := $(BIN)/uv tool run --quiet --from

audit: $(ENV) ## ask the advisory database of the Python Package Index about everything in requirements.lock
	@$(TOOL) pip-audit==2.10.1 pip-audit --disable-pip --require-hashes --progress-spinner off -r requirements.lock $(ARGS)

sbom: $(ENV) ## write down in build/sbom.json what a service with the library installs, as CycloneDX
	@mkdir -p build
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group service --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header --constraint requirements.lock pyproject.toml \
		-o build/service.txt
	@$(TOOL) cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		-o build/sbom.json build/service.txt

clean: ## remove caches and builds; the environment and the local data stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find api migrations outbox tests -type d -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help setup run crash worker api migrate test test-crash bench bench-full openapi lint format wheel lock audit sbom \
	clean
