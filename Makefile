# Every target sets up `.venv` first; that costs a fraction of a second when nothing changed.
# Another interpreter: make setup PYTHON=/path/to/python3.12
# The CPU build on a machine with a GPU, or vice versa: make setup SOLON_ACCELERATOR=cpu

PYTHON ?= python3
BIN := .venv/bin

# If set, every process recompiles its imports: a run takes twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-english test test-unit test-gpu test-soak check docs format bench bench-full clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target what; do \
		printf '%-18s %s\n' "$$target" "$$what"; done

setup: ## install the pinned stack and Solon into .venv
	@$(PYTHON) scripts/setup.py

demo: setup ## train tiny models and align one from AI feedback on this machine, in minutes
	@$(BIN)/solon demo

demo-english: setup ## align SmolLM2, a real pretrained assistant, in English from AI feedback; an hour the first time, then 20 minutes
	@$(BIN)/solon demo --english

# Unit tests run in parallel. Of the others two files run at a time, as they mostly wait for clusters and engines to start.
# Some are sensitive to timing: what fails beside others runs again by itself, and that decides.
test: setup ## all tests that need no GPU, the quick ones first
	@failed=; made=; \
	[ -n "$$SOLON_TEST_CACHE" ] || { made=$$(mktemp -d); export SOLON_TEST_CACHE=$$made; }; \
	$(BIN)/python -m pytest -n logical tests/unit || \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none tests/unit || failed=yes; \
	XDG_CACHE_HOME=$$SOLON_TEST_CACHE $(BIN)/python -P -m nursery || failed=yes; \
	rest='--ignore tests/unit'; which='not gpu and not soak'; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$$which" $$rest || \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m "$$which" $$rest || failed=yes; \
	[ -z "$$made" ] || rm -rf "$$made"; \
	test -z "$$failed"

test-unit: setup ## tests without Ray, engines or a GPU: two minutes
	@$(BIN)/python -m pytest -n logical tests/unit

test-gpu: setup ## tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

test-soak: setup ## the long tests
	@$(BIN)/python -m pytest -m soak --timeout 3600

check: setup ## formatting, lint, types, secrets in files, known vulnerabilities of packages, links of the documentation
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/scan.py
	@$(BIN)/zensical build --strict --clean >/dev/null || $(BIN)/zensical build --strict

docs: setup ## the documentation site, in site/; a broken link is an error
	@$(BIN)/zensical build --strict --clean

format: setup ## format, and fix what lint can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# A failing benchmark does not stop the others, but it fails the target.
bench: setup ## every benchmark in its quick form; figures in runs/bench/
	@mkdir -p runs/bench; failed=; \
	for script in benchmarks/*.py; do \
		name=$$(basename "$$script" .py); \
		case "$$name" in _*|\*) continue;; esac; \
		echo "== $$name"; \
		$(BIN)/python "$$script" --quick --json "runs/bench/$$name.json" || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

bench-full: setup ## every benchmark at full length, about an hour; refreshes docs/performance.md
	@mkdir -p runs/bench-full; failed=; \
	for script in benchmarks/*.py; do \
		name=$$(basename "$$script" .py); \
		case "$$name" in _*|\*) continue;; esac; \
		echo "== $$name"; \
		$(BIN)/python "$$script" --json "runs/bench-full/$$name.json" || { failed="$$failed $$name"; continue; }; \
		grep -q "rows: $$name -->" docs/performance.md && $(BIN)/python benchmarks/_refresh.py "runs/bench-full/$$name.json"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

clean: ## remove caches and build output; keep .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
