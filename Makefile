# Build, check, test and show bszfs. `make help` lists what there is.

CARGO ?= cargo
PREFIX ?= /usr/local
# Where cargo builds: CARGO_TARGET_DIR, or ./target.
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON := $(CURDIR)/.venv/bin/python

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := $(TARGET)/x86_64-unknown-linux-musl/release/bsz
# Man pages and completions; Cargo.toml names this place for the packages.
MANUALS := target/manuals

.PHONY: help build check test ptx ptx-check gpu-check gpu-test fuzz fuzz-smoke miri demo bench bench-mounts exact manuals deb rpm static package-test test-frameworks \
	install clean

# What `make bench` and `make exact` work on: some .safetensors files. `bench` can do without.
FILES ?=
NEEDS_FILES = @test -n "$(FILES)" || { echo 'make $@ FILES="model.safetensors ...": on which files?'; exit 1; }

# Whether we may open /dev/fuse, so that tests which mount must not be skipped.
FUSE := $(shell test -r /dev/fuse && test -w /dev/fuse && echo yes)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

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
	@tests/prepare fuse python cxx strace
	@tests/prepare fuse-device
	@$(PYTHON) tests/python/ptx.py --check
	BSZ_PYTHON=$(PYTHON) BSZ_REQUIRE_PYTHON=1 BSZ_REQUIRE_CXX=1 BSZ_REQUIRE_STRACE=1 $(if $(FUSE),BSZ_REQUIRE_FUSE=1) $(CARGO) test --locked --no-fail-fast

ptx: ## Compile the GPU's kernels: src/gpu/kernel.cu to src/gpu/kernel.ptx, without a GPU
	@tests/prepare python
	$(PYTHON) tests/python/ptx.py

ptx-check: ## Fail where kernel.ptx is not that of kernel.cu; `make test` does it too
	@tests/prepare python
	$(PYTHON) tests/python/ptx.py --check

gpu-check: ## Run the GPU's kernels, and what drives them, on the CPU; `make test` does it too
	@tests/prepare cxx
	$(CARGO) build --locked --example dlpack
	BSZ_REQUIRE_CXX=1 $(CARGO) test --locked --test gpu_kernel --test gpu_driver

gpu-test: ## Run the same on this machine's GPU
	BSZ_GPU=1 $(CARGO) test --locked --test gpu_kernel
	$(CARGO) test --locked --test gpu_driver -- --ignored --skip the_device_fails

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

bench-mounts: build ## Time reading FILES: plain, through a mount, through the ceiling of FUSE, cold and warm, layer by layer
	$(NEEDS_FILES)
	$(CARGO) build --locked --release --example ceiling
	python3 benches/mounts.py --bsz $(TARGET)/release/bsz --ceiling $(TARGET)/release/examples/ceiling $(FILES)

exact: build ## Hold every byte of FILES to their archives, unpacked and mounted
	$(NEEDS_FILES)
	python3 tests/python/exact.py $(TARGET)/release/bsz $(FILES)

manuals: ## Write man pages and shell completions (bash, zsh, fish) into target/manuals
	$(CARGO) run --locked --quiet --example manuals -- $(MANUALS)

deb: build manuals ## Build a package for Debian and its kin; the last line says where it is
	@tests/prepare cargo-deb
	packaging/third-party $(HOST) >$(MANUALS)/THIRD-PARTY
	$(CARGO) deb --locked --no-build --strip

rpm: build manuals ## Build a package for Fedora and its kin; the last line says where it is
	@tests/prepare cargo-generate-rpm
	packaging/third-party $(HOST) >$(MANUALS)/THIRD-PARTY
	$(CARGO) generate-rpm --target-dir $(TARGET)
	@ls $(TARGET)/generate-rpm/*.rpm

static: ## Build a program that needs no libraries (x86-64, musl), and see whether it runs
	@tests/prepare musl
	$(CARGO) build --locked --release --target x86_64-unknown-linux-musl
	ldd $(STATIC) 2>&1 | grep -E 'statically linked|not a dynamic executable'
	$(STATIC) demo

# The release of Debian that `make package-test` tries the package on.
SUITE ?= bookworm

package-test: deb ## Install the .deb on a clean Debian, use it there, start its units, purge it; needs root
	@tests/prepare debian
	SUITE=$(SUITE) packaging/test $(TARGET)/debian/bszfs_*.deb

test-frameworks: build ## Load models with torch, transformers, JAX, candle and others, plain and mounted (gigabytes to download)
	@tests/prepare fuse frameworks
	.venv-frameworks/bin/python tests/frameworks/run.py $(TARGET)/release/bsz

install: build manuals ## Install under PREFIX (/usr/local); DESTDIR is honoured
	install -D -m 755 $(TARGET)/release/bsz $(DESTDIR)$(PREFIX)/bin/bsz
	install -d $(DESTDIR)$(PREFIX)/sbin
	sed 's|/usr/bin/bsz|$(PREFIX)/bin/bsz|' packaging/mount.bszfs >$(DESTDIR)$(PREFIX)/sbin/mount.bszfs
	chmod 755 $(DESTDIR)$(PREFIX)/sbin/mount.bszfs
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 $(MANUALS)/*.1
	install -D -m 644 $(MANUALS)/bsz.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/bsz
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(MANUALS)/_bsz
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(MANUALS)/bsz.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/systemd/user
	sed 's|/usr/bin/bsz|$(PREFIX)/bin/bsz|' systemd/bszfs@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/bszfs@.service
	sed 's|/usr/bin/bsz|$(PREFIX)/bin/bsz|' systemd/user/bszfs@.service >$(DESTDIR)$(PREFIX)/lib/systemd/user/bszfs@.service

clean: ## Remove what was built, the Python environments too
	$(CARGO) clean
	rm -rf .venv .venv-frameworks $(MANUALS) fuzz/target
