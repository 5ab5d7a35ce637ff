# Build, check, test and show bszfs. `make help` lists the targets.

CARGO ?= cargo
PREFIX ?= /usr/local
# Where cargo builds: CARGO_TARGET_DIR, or ./target.
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON := $(CURDIR)/.venv/bin/python

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := $(TARGET)/x86_64-unknown-linux-musl/release/bsz
# Man pages and completions. The packages take them from here: see Cargo.toml.
MANUALS := target/manuals

.PHONY: help build check links test test-arm ptx ptx-check gpu-check gpu-test gpu-bundle fuzz \
	fuzz-smoke miri demo bench bench-mounts bench-remote bench-report exact manuals deb rpm \
	static package-test manifests-check test-frameworks test-remote test-store store-check \
	store-samples install clean \
	python-dev wheel-here python-check python-container wheel sdist

# The .safetensors files that `make bench`, `bench-mounts` and `exact` work on. `bench` needs none.
FILES ?=
NEEDS_FILES = @test -n "$(FILES)" || { \
	echo 'usage: make $@ FILES="model.safetensors ..."'; exit 1; }

# Set where /dev/fuse can be opened: then no test that mounts may be skipped.
FUSE := $(shell test -r /dev/fuse && test -w /dev/fuse && echo yes)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

build: ## Build the program, target/release/bsz
	$(CARGO) build --locked --release

check: links ## Run before a commit: format, lints, layers, documentation, licences, advisories, links
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features mount -- -D warnings
	$(CARGO) clippy --locked -p bszfs-python -- -D warnings
	$(CARGO) test --locked --test layers
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib
	$(CARGO) package --locked --allow-dirty --no-verify --quiet
	@tests/prepare deny
	$(CARGO) deny --locked check licenses bans sources
	@if $(CARGO) deny --log-level off fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check --disable-fetch advisories; \
	else \
		echo "advisories: NOT CHECKED: the advisory database cannot be fetched"; \
	fi

# The pages whose links to other files are checked.
PAGES := $(wildcard *.md docs/*.md docs/gpu/*.md docs/guides/*.md packaging/*.md)

links: ## Check that the files to which the pages link exist
	@for page in $(PAGES); do \
		sed -n 's/\](/\n&/gp' $$page | sed -n 's/^\](\([^):# ]\{1,\}\)[)#].*/\1/p' | \
		while read -r file; do \
			test -e "$$(dirname $$page)/$$file" || { echo "$$page: no file $$file"; exit 1; }; \
		done || exit; \
	done

test: ## Run all tests, installing what they need
	@tests/prepare fuse python cxx strace
	@tests/prepare disks || true
	@tests/prepare fuse-device
	@$(PYTHON) tests/python/ptx.py --check
	@$(PYTHON) benches/report.py --check
	@$(PYTHON) docs/images/rooms.py --check
	BSZ_PYTHON=$(PYTHON) BSZ_REQUIRE_PYTHON=1 BSZ_REQUIRE_CXX=1 BSZ_REQUIRE_STRACE=1 \
		$(if $(FUSE),BSZ_REQUIRE_FUSE=1) $(CARGO) test --locked --no-fail-fast

test-remote: ## Test remote sources: 10,000 faults, 100 kills, servers that others wrote
	@tests/prepare remote
	BSZ_REMOTE_FAULTS=10000 BSZ_REMOTE_KILLS=100 BSZ_REMOTE_SERVERS=1 $(CARGO) test --locked \
		--no-fail-fast --test remote --test remote_cache --test remote_cli \
		--test remote_doctor --test remote_faults --test remote_mount --test remote_put \
		--test remote_servers

test-arm: ## Test the codec and the golden archives on 64-bit ARM, emulated where it is not ARM
	CARGO=$(CARGO) tests/arm

ptx: ## Compile the GPU kernels, src/gpu/kernel.cu, to PTX; needs no GPU
	@tests/prepare python
	$(PYTHON) tests/python/ptx.py

ptx-check: ## Fail if kernel.ptx is not compiled from kernel.cu; part of `make test`
	@tests/prepare python
	$(PYTHON) tests/python/ptx.py --check

gpu-check: ## Run the GPU kernels and their driver code on the CPU; part of `make test`
	@tests/prepare cxx
	$(CARGO) build --locked --example dlpack
	BSZ_REQUIRE_CXX=1 $(CARGO) test --locked --test gpu_kernel --test gpu_driver \
		--test gpu_loader --test gpu_mount

gpu-test: ## Run the same tests on this machine's GPU
	BSZ_GPU=1 $(CARGO) test --locked --test gpu_kernel
	$(CARGO) test --locked --test gpu_driver -- --ignored --skip the_device_fails \
		--skip the_second_device_is_used
	$(CARGO) test --locked --test gpu_loader -- --ignored --skip a_failure_is_final

gpu-bundle: ## Make .gpu-bundle, with which tests/gpu/run runs where a GPU is but no Rust
	CARGO=$(CARGO) tests/gpu/bundle

# How long `make fuzz` runs each target.
SECONDS ?= 600

fuzz: ## Fuzz the decoders and parsers, SECONDS=600 for each target
	fuzz/run $(SECONDS)

fuzz-smoke: ## Fuzz for 20 seconds for each target
	fuzz/run 20

miri: ## Run the codec's unit tests under Miri; needs a nightly toolchain
	@cargo +nightly miri --version || { \
		echo "Miri is missing: rustup toolchain install nightly --component miri,rust-src"; exit 1; }
	$(CARGO) +nightly miri test --locked --lib codec::

demo: build ## Pack, mount, load and compare a generated and a real model (2 minutes)
	@tests/prepare fuse || echo "only root can mount without it; the demo shows the rest"
	$(TARGET)/release/bsz demo
	@echo
	@if tests/prepare python; then \
		$(PYTHON) tests/python/demo.py $(TARGET)/release/bsz; \
	else \
		echo "the demo on a real model in Python is left out without it"; \
	fi

bench: build ## Time the kernels, and with FILES="model.safetensors ..." whole commands
	$(CARGO) bench --locked --bench codec
	$(if $(FILES),@for f in $(FILES); do echo; $(TARGET)/release/bsz bench "$$f" || exit; done)
	$(if $(FILES),@echo; python3 benches/compare.py --bsz $(TARGET)/release/bsz $(FILES))

bench-mounts: build ## Time reads of FILES: plain, mounted, and through the FUSE ceiling
	$(NEEDS_FILES)
	$(CARGO) build --locked --release --example ceiling
	python3 benches/mounts.py --bsz $(TARGET)/release/bsz \
		--ceiling $(TARGET)/release/examples/ceiling $(FILES)

# Options of benches/remote.py and benches/report.py, as in BENCH="--runs 1 --zipnn".
BENCH ?=

bench-remote: build ## Time mounts of a server behind a slow link (30 minutes); needs root
	@tests/prepare fuse link
	$(CARGO) build --locked --release --example delay_proxy --example fetch_raw --example weights
	python3 benches/remote.py --bsz $(TARGET)/release/bsz \
		--examples $(TARGET)/release/examples $(BENCH)

bench-report: build ## Measure the figures of README.md and docs/BENCHMARKS.md (20 minutes)
	@tests/prepare python fuse
	$(CARGO) build --locked --release --example ceiling
	$(PYTHON) benches/report.py --bsz $(TARGET)/release/bsz \
		--ceiling $(TARGET)/release/examples/ceiling $(BENCH)

exact: build ## Compare every byte of FILES with their archives, unpacked and mounted
	$(NEEDS_FILES)
	python3 tests/python/exact.py $(TARGET)/release/bsz $(FILES)

manuals: ## Write man pages and shell completions to target/manuals
	$(CARGO) run --locked --quiet --example manuals -- $(MANUALS)

deb: build manuals ## Build a package for Debian and Ubuntu; the last line names it
	@tests/prepare cargo-deb
	packaging/third-party $(HOST) >$(MANUALS)/THIRD-PARTY
	$(CARGO) deb --locked --no-build --strip

rpm: build manuals ## Build a package for Fedora; the last line names it
	@tests/prepare cargo-generate-rpm
	packaging/third-party $(HOST) >$(MANUALS)/THIRD-PARTY
	$(CARGO) generate-rpm --target-dir $(TARGET)
	@ls $(TARGET)/generate-rpm/*.rpm

static: ## Build a static program (x86-64, musl), and run its demo
	@tests/prepare musl
	$(CARGO) build --locked --release --target x86_64-unknown-linux-musl
	ldd $(STATIC) 2>&1 | grep -E 'statically linked|not a dynamic executable'
	$(STATIC) demo

manifests-check: ## Check the Kubernetes manifests against their schema
	@tests/prepare kubernetes
	packaging/kubernetes/check .venv-kubernetes/bin/python

# The Debian release on which `make package-test` tries the package.
SUITE ?= bookworm

package-test: deb ## Try the .deb on a clean Debian: install, use, start units, purge; needs root
	@tests/prepare debian
	SUITE=$(SUITE) packaging/test $(TARGET)/debian/bszfs_*.deb

# Where wheels and source distributions of the Python package go.
WHEELS := $(abspath $(TARGET))/wheels
VENV := $(CURDIR)/.venv-python
# maturin finds zig, cargo and the interpreter by them.
MATURIN := cd python && VIRTUAL_ENV=$(VENV) PATH=$(VENV)/bin:$$PATH maturin

python-dev: ## Put the Python package into .venv-python, to work on it
	@tests/prepare python-package
	$(MATURIN) develop --release --locked

wheel-here:
	@tests/prepare python-package
	rm -rf $(WHEELS)/here
	$(MATURIN) build --release --locked --out $(WHEELS)/here

python-check: wheel-here ## Build the wheel for this machine, and test it in a new environment
	@tests/prepare cxx
	BSZ_REQUIRE_CXX=1 python/check $(VENV)/bin/python $(WHEELS)/here/bszfs-*.whl

# torch and transformers are about 3 GB.
python-container: wheel ## Follow its pages on a clean Debian without FUSE and privileges; needs root
	@tests/prepare debian
	python/test-container $(WHEELS)/manylinux/bszfs-*.whl

# zig links an unwinder of its own. Threads that end in Python while the interpreter exits are
# unwound by that of the C library, libgcc_s, and the two crash together.
LIBGCC = $(shell cc -print-file-name=libgcc_s.so.1)

wheel: ## Build the wheel for every Linux with glibc 2.17 or newer; the last line names it
	@tests/prepare python-package
	rm -rf $(WHEELS)/manylinux
	$(MATURIN) build --release --locked --zig --compatibility manylinux_2_17 \
		--out $(WHEELS)/manylinux -- -C link-arg=$(LIBGCC)
	$(VENV)/bin/auditwheel show $(WHEELS)/manylinux/*.whl | tr '\n' ' ' | \
		grep -o 'constrains the platform tag to "manylinux_2_1[27]_[a-z0-9_]*"'
	@ls $(WHEELS)/manylinux/*.whl

sdist: ## Build the source distribution of the Python package; the last line names it
	@tests/prepare python-package
	rm -rf $(WHEELS)/source
	$(MATURIN) sdist --out $(WHEELS)/source
	@ls $(WHEELS)/source/*.tar.gz

test-frameworks: build wheel-here ## Load models with torch, transformers, JAX and others (6 GB)
	@tests/prepare fuse frameworks
	.venv-frameworks/bin/pip install --quiet --force-reinstall --no-deps $(WHEELS)/here/bszfs-*.whl
	.venv-frameworks/bin/python tests/frameworks/run.py $(TARGET)/release/bsz

store-check: build ## Samples of the long tests of the store (8 minutes); needs root and /dev/fuse
	@test "$$(id -u)" -eq 0 -a -w /dev/fuse || { \
		echo "store-check: NOT RUN: it needs root and /dev/fuse"; exit 0; }; \
	$(MAKE) --no-print-directory store-samples

store-samples:
	@tests/prepare fuse store
	tests/store/posix --bsz $(TARGET)/release/bsz --quick
	tests/store/fsx --bsz $(TARGET)/release/bsz --quick
	tests/store/crash.py --bsz $(TARGET)/release/bsz --steps --quick
	tests/store/crash.py --bsz $(TARGET)/release/bsz --quick
	tests/store/full.py --bsz $(TARGET)/release/bsz --quick
	tests/store/powercut.py --bsz $(TARGET)/release/bsz --quick
	tests/store/many.py --bsz $(TARGET)/release/bsz --quick
	tests/store/hub.py --bsz $(TARGET)/release/bsz --quick --work $(TARGET)/store-hub

test-store: build ## POSIX suites, fsx, kills, power cuts, many files, hub clients (hours); needs root
	@tests/prepare fuse store
	tests/store/posix --bsz $(TARGET)/release/bsz
	tests/store/fsx --bsz $(TARGET)/release/bsz --ops 1000000
	tests/store/crash.py --bsz $(TARGET)/release/bsz --steps
	tests/store/crash.py --bsz $(TARGET)/release/bsz --kills 200
	tests/store/full.py --bsz $(TARGET)/release/bsz
	tests/store/powercut.py --bsz $(TARGET)/release/bsz
	tests/store/many.py --bsz $(TARGET)/release/bsz
	tests/store/hub.py --bsz $(TARGET)/release/bsz --work $(TARGET)/store-hub

INTO = $(DESTDIR)$(PREFIX)
WITH_PREFIX = sed 's|/usr/bin/bsz|$(PREFIX)/bin/bsz|'

install: build manuals ## Install under PREFIX (/usr/local); DESTDIR is honoured
	install -D -m 755 $(TARGET)/release/bsz $(INTO)/bin/bsz
	install -d $(INTO)/sbin
	$(WITH_PREFIX) packaging/mount.bszfs >$(INTO)/sbin/mount.bszfs
	chmod 755 $(INTO)/sbin/mount.bszfs
	install -D -m 644 -t $(INTO)/share/man/man1 $(MANUALS)/*.1
	install -D -m 644 $(MANUALS)/bsz.bash $(INTO)/share/bash-completion/completions/bsz
	install -D -m 644 -t $(INTO)/share/zsh/site-functions $(MANUALS)/_bsz
	install -D -m 644 -t $(INTO)/share/fish/vendor_completions.d $(MANUALS)/bsz.fish
	install -d $(INTO)/lib/systemd/system $(INTO)/lib/systemd/user
	$(WITH_PREFIX) systemd/bszfs@.service >$(INTO)/lib/systemd/system/bszfs@.service
	$(WITH_PREFIX) systemd/user/bszfs@.service >$(INTO)/lib/systemd/user/bszfs@.service
	$(WITH_PREFIX) systemd/bszfs-store@.service >$(INTO)/lib/systemd/system/bszfs-store@.service
	$(WITH_PREFIX) systemd/user/bszfs-store@.service >$(INTO)/lib/systemd/user/bszfs-store@.service
	$(WITH_PREFIX) systemd/bszfs-remote@.service >$(INTO)/lib/systemd/system/bszfs-remote@.service

clean: ## Remove all that was built, including the Python environments
	$(CARGO) clean
	rm -rf .venv .venv-frameworks .venv-kubernetes .venv-remote $(MANUALS) fuzz/target
