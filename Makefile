# One target per job; CI runs the same ones. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GEN := .venv-gen
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
.DEFAULT_GOAL := help
# The tests start hundreds of processes: none shall compile its modules again.
unexport PYTHONDONTWRITEBYTECODE
# Compilers find a job server there that is not open to them.
unexport MAKEFLAGS MFLAGS

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.installed ## install everything into .venv

$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headrace needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing; on Debian: apt install python3-venv"; exit 1; }
	$(PIP) --upgrade pip
	$(PIP) -e clients/python -e '.[dev]'
	touch $@

.PHONY: demo
demo: setup ## train 56 real jobs through a gateway on this machine, with faults, and audit every point
	$(BIN)/python -m examples.demo

.PHONY: test
test: setup ## run the tests, two files at a time: each worker has servers of its own
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: faults
faults: setup ## kill, cut, fill and flood for ten minutes and more, and print what came of it
	$(BIN)/python -m pytest tests/faults --long

.PHONY: conformance
conformance: setup ## every client against every scenario; CLIENTS=go,rust CASES=cut,… choose
	$(BIN)/python -m tests.conformance --clients '$(CLIENTS)' --cases '$(CASES)'

.PHONY: artifacts-full
artifacts-full: setup ## artifacts at full size: 4 GiB in one file, 32 x 256 MiB at a time (minutes, 20 GB of disk)
	HEADRACE_ARTIFACTS_FULL=1 $(BIN)/python -m pytest tests/artifacts/test_memory.py -rP

.PHONY: bench
bench: setup ## measure what is promised, in minutes; writes benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

.PHONY: peers
peers: setup ## install what benchmarks compare with: MLflow and other trackers, VictoriaMetrics (Debian, as root)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		'mlflow>=3.17,<4' 'psycopg[binary]>=3.2,<4' trackio wandb tensorboardX
	@command -v victoria-metrics >/dev/null || apt-get install --yes --quiet victoria-metrics \
		|| echo "SKIPPED victoria-metrics: install that Debian package to compare with it"

.PHONY: compare
compare: peers ## measure everything beside every peer and rewrite docs/benchmarks.md
	$(BIN)/python -m benchmarks --full
	$(BIN)/python -m benchmarks.page

.PHONY: check
check: setup gen-check ## lint, types, import rules, protos, drift of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

.PHONY: format
format: setup ## rewrite the code in house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Generated with an old protoc on purpose: its output loads on every protobuf from 5.29 to 7.
$(GEN)/.installed: Makefile
	$(PYTHON) -m venv $(GEN)
	$(GEN)/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.71.2' 'mypy-protobuf==3.7.0' 'setuptools<81' \
		'googleapis-common-protos==1.70.0' 'clang-format==23.1.5'
	touch $@

PROTOS = $(sort $(wildcard protos/headrace/v1/*.proto))
define generate
	PATH="$(CURDIR)/$(GEN)/bin:$$PATH" $(GEN)/bin/python -m grpc_tools.protoc -I protos \
		--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

.PHONY: gen
gen: gen-python gen-go gen-rust gen-typescript ## regenerate the code of the contract, for the languages whose tools are here

.PHONY: gen-python
gen-python: $(GEN)/.installed
	rm -f clients/python/headrace/v1/*_pb2*
	$(call generate,clients/python)

# The build caches of the other languages' generators stay in $(GEN), out of git.
define generate-go
	PATH="$(CURDIR)/$(GEN)/bin:$$PATH" $(GEN)/bin/python -m grpc_tools.protoc -I protos \
		--go_out=$(1) --go_opt=module=headrace.dev/headrace \
		--go-grpc_out=$(1) --go-grpc_opt=module=headrace.dev/headrace $(PROTOS)
endef
generate-rust = cargo run --quiet --locked --manifest-path clients/rust/generate/Cargo.toml --target-dir $(GEN)/rust -- $(1)

$(GEN)/bin/protoc-gen-go-grpc: $(GEN)/.installed
	GOBIN=$(CURDIR)/$(GEN)/bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	GOBIN=$(CURDIR)/$(GEN)/bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

.PHONY: gen-go gen-rust
ifneq ($(shell command -v go 2>/dev/null || true),)
gen-go: $(GEN)/bin/protoc-gen-go-grpc
	rm -rf clients/go/v1
	$(call generate-go,clients/go)
else
gen-go:
	@echo "SKIPPED $@: this machine has no go"
endif
ifneq ($(shell command -v cargo 2>/dev/null || true),)
gen-rust: $(GEN)/.installed
	$(call generate-rust,clients/rust/src)
else
gen-rust:
	@echo "SKIPPED $@: this machine has no cargo"
endif

# With google.rpc.ErrorInfo and RetryInfo, which no npm package of their own has.
TYPESCRIPT := clients/typescript
define generate-typescript
	$(GEN)/bin/python -m grpc_tools.protoc -I protos -I $(GEN)/lib/python*/site-packages \
		--plugin=protoc-gen-es=$(TYPESCRIPT)/node_modules/.bin/protoc-gen-es \
		--es_out=$(1) --es_opt=target=ts,import_extension=js $(PROTOS) google/rpc/status.proto google/rpc/error_details.proto
endef

.PHONY: setup-typescript gen-typescript
ifneq ($(shell command -v npm 2>/dev/null || true),)
setup-typescript: $(TYPESCRIPT)/node_modules/.package-lock.json

$(TYPESCRIPT)/node_modules/.package-lock.json: $(TYPESCRIPT)/package-lock.json
	cd $(TYPESCRIPT) && npm ci --silent --no-audit --no-fund

gen-typescript: $(GEN)/.installed setup-typescript
	rm -rf $(TYPESCRIPT)/src/gen && mkdir $(TYPESCRIPT)/src/gen
	$(call generate-typescript,$(TYPESCRIPT)/src/gen)
else
setup-typescript gen-typescript:
	@echo "SKIPPED $@: this machine has no npm"
endif

.PHONY: gen-check
gen-check: $(GEN)/.installed
	rm -rf .gen-check/python && mkdir -p .gen-check/python
	$(call generate,.gen-check/python)
	diff -r --exclude=__init__.py --exclude=__pycache__ .gen-check/python/headrace/v1 clients/python/headrace/v1 \
		|| { echo "generated code differs from protos/: run make gen"; exit 1; }
	rm -rf .gen-check/python

.PHONY: check-go check-rust
ifneq ($(shell command -v go 2>/dev/null || true),)
check-go: $(GEN)/bin/protoc-gen-go-grpc ## lint and test the Go client, and its generated code
	rm -rf .gen-check/go && mkdir -p .gen-check/go
	$(call generate-go,.gen-check/go)
	diff -r .gen-check/go/v1 clients/go/v1 && rm -rf .gen-check/go
	cd clients/go && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...
else
check-go:
	@echo "SKIPPED $@: this machine has no go"
endif
ifneq ($(shell command -v cargo 2>/dev/null || true),)
check-rust: $(GEN)/.installed ## lint and test the Rust client, and its generated code
	rm -rf .gen-check/rust && mkdir -p .gen-check/rust
	$(call generate-rust,.gen-check/rust)
	diff .gen-check/rust/v1.rs clients/rust/src/v1.rs && rm -rf .gen-check/rust
	cd clients/rust && cargo fmt --check \
		&& cargo clippy --quiet --locked --all-targets --target-dir .build/target -- -D warnings \
		&& cargo test --quiet --locked --target-dir .build/target
else
check-rust:
	@echo "SKIPPED $@: this machine has no cargo"
endif

.PHONY: check-typescript
ifneq ($(shell command -v npm 2>/dev/null || true),)
check-typescript: $(GEN)/.installed setup-typescript ## lint and test the TypeScript client, and its generated code
	rm -rf .gen-check/typescript && mkdir -p .gen-check/typescript
	$(call generate-typescript,.gen-check/typescript)
	diff -r .gen-check/typescript $(TYPESCRIPT)/src/gen && rm -rf .gen-check/typescript
	cd $(TYPESCRIPT) && npm run --silent lint && npm run --silent build && npm test --silent
else
check-typescript:
	@echo "SKIPPED $@: this machine has no npm"
endif

CPP_FILES = $(wildcard $(addprefix clients/cpp/,include/headrace/*.h src/*.h src/*.cpp tests/*.cpp \
	conformance/*.h conformance/*.cpp examples/*.cpp))

.PHONY: check-cpp
ifneq ($(shell for tool in cmake c++ protoc grpc_cpp_plugin; do command -v $$tool; done | wc -l),4)
check-cpp:
	@echo "SKIPPED $@: this machine lacks one of cmake, c++, protoc, grpc_cpp_plugin"
else
check-cpp: $(GEN)/.installed ## format check, warnings as errors and tests of the C++ client
	$(GEN)/bin/clang-format --dry-run --Werror $(CPP_FILES)
	cmake -S clients/cpp -B clients/cpp/.build -D CMAKE_BUILD_TYPE=Check
	cmake --build clients/cpp/.build --parallel 2
	ctest --test-dir clients/cpp/.build --output-on-failure
endif

# Its stubs are made at build, from protos/: there is nothing to generate here, and no drift.
.PHONY: check-java
ifneq ($(and $(shell command -v java 2>/dev/null || true),$(shell command -v mvn 2>/dev/null || true)),)
check-java: ## compile, test and check the format of the Java client
	cd clients/java && mvn --batch-mode --no-transfer-progress --quiet verify
else
check-java:
	@echo "SKIPPED $@: this machine has no java and mvn"
endif

.PHONY: clean
clean: ## remove what the targets made
	rm -rf $(VENV) $(GEN) .gen-check .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
