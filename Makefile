# make train: the main job on the built-in sample log.  make test: all quick tests.  make help: all targets.
.DELETE_ON_ERROR:
.PHONY: setup train test test-slow test-services test-servers test-arm lint audit docs nightly-demo bench lock clean help

export DO_NOT_TRACK := 1
# The tests start hundreds of processes, which compile all modules again where no bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
TORCH := 2.13.0
SWIFT := 2.38.0
PIP_AUDIT := 2.10.1

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/ready  ## create the locked environment in .venv

.venv/ready: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	sh requirements/install_torch.sh $(TORCH)
	pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

train: setup  ## raw log -> features -> DLRM -> report; a second run does only what changed
	clickmill run

# Tests run beside each other, so threads that wait must not spin on cores that other tests need: with
# OMP_WAIT_POLICY=passive the suite takes a quarter of the time. Files run in the order of their paths, which begins with
# the long ones of e2e and fault: by default those with few tests are last, and one core would wait for another.
BESIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_WAIT_POLICY=passive pytest $(BESIDE)

test: setup  ## all quick tests: below 10 minutes on two cores
	$(PYTEST)

test-slow: setup  ## the tests with several ranks, whole nightly runs and random kills
	$(PYTEST) -m slow

test-services: setup build/swift/bin/swift-proxy-server  ## the tests that need PostgreSQL and an S3-compatible store
	SWIFT_BIN=build/swift/bin pytest -m services tests/services

# The files that take longest are the first.
LONG_OF_SERVERS := tests/servers/test_training.py tests/servers/test_kills.py

test-servers: build/servers/ready  ## the tests of the parameter servers, with Ray, which .venv does not have
	OMP_WAIT_POLICY=passive build/servers/bin/python -m pytest $(BESIDE) -m servers $(LONG_OF_SERVERS) tests/servers

test-arm: setup  ## the tests of the compiled kernels on an emulated ARM CPU; needs qemu-user and g++-aarch64-linux-gnu
	sh tests/arm/run.sh

build/swift/bin/swift-proxy-server:
	$(PYTHON) -m venv build/swift
	build/swift/bin/pip install --quiet --disable-pip-version-check swift==$(SWIFT)

# An environment that has all packages of .venv, and Ray.
build/servers/ready: .venv/ready requirements/servers.txt
	$(PYTHON) -m venv build/servers
	.venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$(build/servers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/of_venv.pth"
	build/servers/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/servers.txt
	touch $@

nightly-demo: setup  ## ten nightly runs on generated days, and their history page
	rm -rf build/nights
	python examples/nightly_demo.py build/nights

lint: setup  ## ruff, mypy, import rules
	ruff check .
	ruff format --check .
	mypy
	lint-imports

audit: build/audit/bin/pip-audit  ## known vulnerabilities of the locked packages; needs the network
	build/audit/bin/pip-audit --progress-spinner off --disable-pip --no-deps -r requirements/train.txt

build/audit/bin/pip-audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==$(PIP_AUDIT)

bench: setup  ## run every benchmark
	for b in benchmarks/*.py; do python $$b || exit 1; done

docs: setup  ## the documentation site in build/site; a broken link or an undocumented page is an error
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet

lock: setup  ## for maintainers: resolve requirements/*.in again (needs uv)
	cd requirements && for f in "dev.txt dev.in dask.in train.in serve.in ingest.in" "train.txt train.in serve.in ingest.in -c dev.txt" "serve.txt serve.in -c dev.txt" "ingest.txt ingest.in -c dev.txt" "servers.txt servers.in -c dev.txt"; do \
	  set -- $$f; out=$$1; shift; \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --override overrides.txt -q -o $$out "$$@" || exit 1; done

clean:  ## delete the environment, runs/ and build/; artifacts stay
	rm -rf .venv runs build *.egg-info
