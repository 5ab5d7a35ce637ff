# Build, check, test and show bszfs. `make help` lists what there is.

CARGO ?= cargo
PREFIX ?= /usr/local
# Where cargo builds: CARGO_TARGET_DIR, or ./target.
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON := $(CURDIR)/.venv/bin/python

.PHONY: help build check test fuzz fuzz-smoke miri demo bench exact install clean

# What `make bench` and `make exact` work on: some .safetensors files. `bench` can do without.
FILES ?=

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

build: ## Build the program: target/release/bsz
	$(CARGO) build --locked --release

check: ## What to run before a commit: format, lints, layers, licences, advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --test layers
	@tests/prepare deny
	$(CARGO) deny --locked check licenses bans sources
	@if $(CARGO) deny --log-level off fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check --disable-fetch advisories; \
	else \
		echo "advisories: NOT CHECKED, since the advisory database cannot be fetched from here"; \
	fi

test: ## Run all tests; installs what they need, and says so
	@tests/prepare fuse python
	@test -e /dev/fuse || echo "no /dev/fuse here: the tests that mount are skipped"
	BSZ_PYTHON=$(PYTHON) BSZ_REQUIRE_PYTHON=1 $(if $(wildcard /dev/fuse),BSZ_REQUIRE_FUSE=1) $(CARGO) test --locked --no-fail-fast

# For how long `make fuzz` runs each target.
SECONDS ?= 600

fuzz: ## Feed the decoders and the parsers damaged input: make fuzz SECONDS=600, for each of the targets
	fuzz/run $(SECONDS)

fuzz-smoke: ## The same, 20 seconds each
	fuzz/run 20

miri: ## Run the codec's unit tests under Miri, where a nightly toolchain has it
	@cargo +nightly miri --version || { \
		echo "miri is missing: rustup toolchain install nightly --component miri,rust-src"; exit 1; }
	$(CARGO) +nightly miri test --locked --lib codec::

demo: build ## Pack, mount, load and compare a generated and a real model
	@tests/prepare fuse || echo "without it, only root can mount; the demo shows what it can"
	$(TARGET)/release/bsz demo
	@echo
	@if tests/prepare python; then \
		$(PYTHON) tests/python/demo.py $(TARGET)/release/bsz; \
	else \
		echo "without it, the demo on a real model in Python is left out"; \
	fi

bench: build ## Time the kernels; with FILES="model.safetensors ..." also bsz on these, beside plain files and lmz, if installed
	$(CARGO) bench --locked --bench codec
	$(if $(FILES),@for file in $(FILES); do echo; $(TARGET)/release/bsz bench "$$file" || exit; done)
	$(if $(FILES),@echo; python3 benches/compare.py --bsz $(TARGET)/release/bsz $(FILES))

exact: build ## Hold every byte of FILES to their archives, unpacked and mounted
	python3 tests/python/exact.py $(TARGET)/release/bsz $(FILES)

install: build ## Install under PREFIX (/usr/local); DESTDIR is honoured
	install -D -m 755 $(TARGET)/release/bsz $(DESTDIR)$(PREFIX)/bin/bsz
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/bsz|$(PREFIX)/bin/bsz|' systemd/bszfs@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/bszfs@.service

clean: ## Remove what was built, the Python environment too
	$(CARGO) clean
	rm -rf .venv fuzz/target
