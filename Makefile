# Every target is one plain command: run it without make just as well.
PYTHON ?= python3
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench requirements docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: ## make .venv with all that is needed (python3 and pip suffice)
	@$(PYTHON) bootstrap.py

demo: setup ## run the demo: real service, real load, report in runs/latest/report.html
	.venv/bin/timesplit run mixed -t 20s && .venv/bin/timesplit run bursts

test: setup ## run the test suite
	.venv/bin/python -m pytest

check: setup ## lint, types, import rules
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

format: setup ## format the code
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

bench: setup ## measure speed; the figures belong in docs/benchmarks.md
	.venv/bin/timesplit bench observer

docs: setup ## make the reference pages of records and summary anew
	.venv/bin/python -m timesplit.report.reference docs

requirements: ## pin requirements.txt anew from pyproject.toml (needs uv)
	uv pip compile --upgrade --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --custom-compile-command "make requirements" pyproject.toml -o requirements.txt

clean: ## remove all that was made here, runs/ apart
	rm -rf .venv .cache .lab build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
