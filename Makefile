# kvd: everything that one does with a checkout. `make` alone lists it.

VENV = .venv
# A distribution's interpreter first: it is built with link-time optimisation, many others are not, and are slower.
PYTHON = $(shell for python in /usr/bin/python3 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)
BIN = $(VENV)/bin
# What the work on it installs, with hashes. `make LOCK= test` takes the newest versions that pyproject.toml allows.
LOCK = requirements-dev.txt
# For `make lock`. LOCKARGS= keeps the versions that still fit; LOCKARGS='--upgrade-package mypy' renews one.
LOCKARGS = --upgrade
DEV = $(VENV)/.dev$(if $(LOCK),,-newest)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# For `make test`: which tests, and pytest's own options.
TESTS = tests
TESTARGS =
# For `make quick`: no root, no other program, and no test that takes longer than some seconds.
QUICK_TESTS = tests/test_layering.py tests/project tests/store tests/engine tests/requests \
	tests/client/test_client.py tests/cli/test_get.py tests/cli/test_set.py
QUICK_ARGS = -q --ignore=tests/engine/test_bounded_history.py
# For `make faults` and `make soak`: how many times the usual figures, and for how long.
SCALE = 10
MINUTES = 30
FAULT_TESTS = $(wildcard tests/store tests/engine tests/requests tests/server tests/client tests/live tests/histories tests/isolation \
	tests/fuzz tests/limits tests/journal tests/near tests/service tests/system)
# For `make bench`: see bench/README.md.
BENCHARGS =

# For `make install`. DESTDIR is put before every path, for those who build packages.
PREFIX = /usr/local
DESTDIR =
# Debian's own packages have theirs in share/zsh/vendor-completions.
ZSHDIR = share/zsh/site-functions
# Unless XDG_DATA_DIRS is set, fish looks into /usr and /etc only: an installation in /usr/local gets a link in /etc.
FISHLINK = $(if $(filter /usr/local,$(PREFIX)),$(DESTDIR)/etc/fish/completions/kv.fish)
FISHFILE = share/fish/vendor_completions.d/kv.fish
STAGE = build/stage
# What else to install of kvd's extras, separated by commas: EXTRAS=prometheus.
EXTRAS =
STAGED = $(STAGE)/.made$(if $(EXTRAS),-$(EXTRAS))
ROOT = $(DESTDIR)$(PREFIX)
# Where in PREFIX the files are, besides the environment in lib/kvd and the link in bin.
INSTALLED = lib/systemd/system/kvd.service lib/systemd/system/kvd.socket lib/systemd/system/kvd-http.socket \
	lib/systemd/user/kvd.service lib/systemd/user/kvd.socket lib/sysusers.d/kvd.conf \
	share/bash-completion/completions/kv $(ZSHDIR)/_kv $(FISHFILE) \
	share/man/man1/kv.1 share/doc/kvd/kvd.toml
SOURCES = $(shell find kv kvd -name '*.py' -o -name py.typed)

# The shell's variables for the daemon of `make run`: no other daemon's data may be touched, whatever is set or running.
own_daemon = for name in $$(env | sed -n 's/^\(KVD_[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$$name"; done; \
	export PATH="$(abspath $(BIN)):$$PATH" KVD_SOCKET="$(CURDIR)/build/run/kvd.sock" KVD_CONFIG=/dev/null KVD_LOG_TO="$(CURDIR)/build/run/kvd.log";

.PHONY: help run test quick check lint fmt types quick-tests generated coverage lock dist release bench faults soak stage install uninstall \
	completions clean
.DELETE_ON_ERROR:
# With -j, two targets would install into one environment at the same time.
.NOTPARALLEL:

# Makes each of these targets, also after one has failed; fails at the end, and names those that did.
run_each = @failed=; for part in $1; do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	[ -z "$$failed" ] || { echo "Failed:$$failed" >&2; exit 1; }

help: ## List what can be made.
	@echo 'make TARGET, with these targets:'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# ------------------------------------------------------------------ use

run: $(VENV)/.kvd ## Install into .venv, start the checkout's own daemon, set and read the first keys. Safe to repeat.
	@set -e; umask 077; mkdir -p build/run; chmod 700 build/run; $(own_daemon) \
	show() { printf '$$ %s\n' "$$*"; "$$@"; }; \
	if kv ping -q && [ -n "$$(find kv kvd -name '*.py' -newer build/run/started -print -quit)" ]; then \
	echo "This checkout's daemon is older than its code: starting it anew."; show kv shutdown; fi; \
	if kv ping -q; then echo "This checkout's daemon is running already: using that one."; \
	else show kv serve --daemon; touch build/run/started; fi; \
	show kv set cake=🎂 horns=😈 smiley=😁; \
	show kv get cake horns smiley; \
	show kv metrics; \
	printf '\nThe daemon goes on running, for this checkout alone. To use it in this shell, and to stop it:\n\n'; \
	printf '    export PATH="%s:$$PATH" KVD_SOCKET="%s"\n    kv --help\n    kv shutdown\n' '$(abspath $(BIN))' "$$KVD_SOCKET"

# ------------------------------------------------------------------ work on it

test: $(DEV) ## Run all tests. TESTS=tests/cli chooses some, TESTARGS passes options to pytest.
	$(BIN)/python -m pytest $(TESTS) $(TESTARGS)

quick: $(DEV) ## Run lint, types and the quick tests; about a minute. Most mistakes show here.
	$(call run_each,lint types quick-tests)

check: $(DEV) ## Run lint and types, and see that the generated files are up to date.
	$(call run_each,lint types generated)

lint: $(DEV) ## Look for mistakes, for wrong formatting and for misspelt words.
	@failed=0; run() { echo "$$*"; "$$@" || failed=1; }; \
	run $(BIN)/ruff check .; run $(BIN)/ruff format --check .; run $(BIN)/codespell; exit $$failed

fmt: $(DEV) ## Format the code and mend what can be mended without thinking.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV) ## Check the types.
	$(BIN)/mypy

# Not for people: a part of `quick`, and one of `check`.
quick-tests: $(DEV)
	KVD_TEST_SCALE=0.5 $(BIN)/python -m pytest $(QUICK_ARGS) $(QUICK_TESTS) $(TESTARGS)

generated: $(VENV)/.kvd
	@set -e; same() { diff -u "$$1" - || { echo "$$1 is out of date: run make completions" >&2; exit 1; }; }; \
	$(BIN)/kv completion bash | same completions/kv.bash; \
	$(BIN)/kv completion zsh | same completions/_kv; \
	$(BIN)/kv completion fish | same completions/kv.fish; \
	$(BIN)/python -m kv.cli.manpage | same docs/kv.1; \
	echo 'The generated files are up to date.'

coverage: $(DEV) ## Run the tests (TESTS, TESTARGS) and print how much of each folder they ran. Takes about twice as long.
	@rm -rf build/coverage && mkdir -p build/coverage
	@status=0; $(BIN)/python -m coverage run -m pytest $(TESTS) $(TESTARGS) || status=$$?; \
	$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage json --quiet -o build/coverage/lines.json && \
	$(BIN)/python tools/coverage_by_folder.py build/coverage/lines.json; exit $$status

completions: $(VENV)/.kvd ## Write the generated files anew: completions/ and docs/kv.1.
	$(BIN)/kv completion bash > completions/kv.bash
	$(BIN)/kv completion zsh > completions/_kv
	$(BIN)/kv completion fish > completions/kv.fish
	$(BIN)/python -m kv.cli.manpage > docs/kv.1

bench: $(VENV)/.kvd ## Measure the speed beside Redis and memcached, or another checkout; some minutes. See bench/README.md.
	$(BIN)/python -m bench $(BENCHARGS)

# KVD_TEST_SCALE multiplies the figures of those tests that read it; the other tests of these folders run as always.
faults: $(DEV) ## Run the tests of faults and abuse with SCALE (10) times the usual figures, where a test has figures.
	KVD_TEST_SCALE=$(SCALE) $(BIN)/python -m pytest $(FAULT_TESTS) $(TESTARGS)

soak: $(DEV) ## Repeat `make faults` for MINUTES (30), until the first failure.
	@end=$$(( $$(date +%s) + 60 * $(MINUTES) )); rounds=0; \
	while [ "$$(date +%s)" -lt "$$end" ]; do \
	KVD_TEST_SCALE=$(SCALE) $(BIN)/python -m pytest -x -q $(FAULT_TESTS) $(TESTARGS) || exit; \
	rounds=$$((rounds + 1)); done; echo "No failure in $$rounds rounds."

clean: ## Remove everything that was made here: environments, builds, caches. Stops the daemon of `make run`.
	@$(own_daemon) if [ -S "$$KVD_SOCKET" ] && [ -x $(BIN)/kv ]; then kv shutdown -q || true; fi
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define need_python
if [ -z "$(PYTHON)" ]; then \
echo 'kvd needs Python 3.11 or newer with its module venv; on Debian: apt-get install python3-venv' >&2; \
echo 'If yours is elsewhere: make PYTHON=/path/to/python3' >&2; exit 1; fi
endef

# Set-up happens again only when one of the files that it depends on has changed. The installed metadata has the version.
SETUP = pyproject.toml kvd/__init__.py

$(BIN)/python:
	@$(need_python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.kvd: $(SETUP) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# One environment, two ways to fill it: a stamp says by which it was filled last, and that it was filled to the end.
$(DEV): $(SETUP) $(LOCK) | $(BIN)/python
	@rm -f $(VENV)/.dev $(VENV)/.dev-newest
ifneq ($(LOCK),)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
endif
	@touch $(VENV)/.kvd $@

lock: ## Renew requirements-dev.txt: the newest versions that pyproject.toml allows, for Python 3.11 and later.
	@$(need_python)
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet --upgrade uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes \
	--custom-compile-command 'make lock' $(LOCKARGS) --output-file requirements-dev.txt pyproject.toml

# ------------------------------------------------------------------ release it

dist: $(DEV) ## Build the wheel and the source archive into dist/. The same commit gives the same bytes.
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build --directory dist

release: check ## Write VERSION and today into kvd/__init__.py and CHANGELOG.md, commit and tag. See docs/releasing.md.
	$(BIN)/python tools/release.py $(VERSION)

# ------------------------------------------------------------------ install

# The environment as it will be installed, but for the paths in it. It is built aside so that an installed one is only
# replaced by one that is complete, and so that `make stage && sudo make install` fetches nothing as root.
stage: $(STAGED) ## Build what `make install` will install, in build/stage.

$(STAGED): pyproject.toml README.md LICENSE $(SOURCES)
	@$(need_python)
	rm -rf "$(STAGE)"
	umask 022 && $(PYTHON) -m venv "$(STAGE)/venv"
	umask 022 && "$(STAGE)/venv/bin/python" -m pip install --quiet --no-compile '.$(if $(EXTRAS),[$(EXTRAS)])'
	"$(STAGE)/venv/bin/python" -m pip uninstall --quiet --yes pip setuptools
# Only kv is to be called, and what the wheel has for the prefix goes to the right places below.
	find "$(STAGE)/venv/bin" -type f ! -name kv -delete
	cd "$(STAGE)/venv" && rm -rf include share lib/systemd lib/sysusers.d && sed -i '/^command = /d' pyvenv.cfg
	@touch "$@"

install: $(STAGED) ## Install below PREFIX (/usr/local): kv, systemd units, completions, manual page.
	@case '$(PREFIX)' in /*) ;; *) echo 'PREFIX has to be an absolute path' >&2; exit 1;; esac
	@set -e; umask 022; cd "$(CURDIR)"; \
	put() { install -D -m 644 "$$1" "$(ROOT)/$$2"; }; \
	unit() { put "$$1" "$$2"; sed -i 's|/usr/bin/kv|$(PREFIX)/bin/kv|' "$(ROOT)/$$2"; }; \
	install -d "$(ROOT)/lib" "$(ROOT)/bin"; \
	rm -rf "$(ROOT)/lib/kvd.new"; \
	cp -RP --preserve=timestamps "$(STAGE)/venv" "$(ROOT)/lib/kvd.new"; \
	chmod -R u=rwX,go=rX "$(ROOT)/lib/kvd.new"; \
	sed -i '1s|.*|#!$(PREFIX)/lib/kvd/bin/python|' "$(ROOT)/lib/kvd.new/bin/kv"; \
	"$(ROOT)/lib/kvd.new/bin/python" -m compileall -q -s "$(ROOT)/lib/kvd.new" -p "$(PREFIX)/lib/kvd" "$(ROOT)/lib/kvd.new/lib"; \
	rm -rf "$(ROOT)/lib/kvd"; \
	mv "$(ROOT)/lib/kvd.new" "$(ROOT)/lib/kvd"; \
	ln -sfn ../lib/kvd/bin/kv "$(ROOT)/bin/kv"; \
	unit systemd/kvd.service lib/systemd/system/kvd.service; \
	put systemd/kvd.socket lib/systemd/system/kvd.socket; \
	put systemd/kvd-http.socket lib/systemd/system/kvd-http.socket; \
	unit systemd/user/kvd.service lib/systemd/user/kvd.service; \
	put systemd/user/kvd.socket lib/systemd/user/kvd.socket; \
	put systemd/kvd.sysusers lib/sysusers.d/kvd.conf; \
	put completions/kv.bash share/bash-completion/completions/kv; \
	put completions/_kv $(ZSHDIR)/_kv; \
	put completions/kv.fish $(FISHFILE); \
	if [ -n "$(FISHLINK)" ]; then install -d "$(dir $(FISHLINK))"; ln -sfn "$(PREFIX)/$(FISHFILE)" "$(FISHLINK)"; fi; \
	put docs/kv.1 share/man/man1/kv.1; \
	put kvd.toml share/doc/kvd/kvd.toml
	@[ -n "$(DESTDIR)" ] || printf '%s\n' \
	'Installed: $(PREFIX)/bin/kv. To have the daemon started by systemd, for the members of group kvd:' '' \
	'    systemd-sysusers && systemctl daemon-reload && systemctl enable --now kvd.socket' \
	'    adduser NAME kvd' '' \
	'or one of your own: systemctl --user daemon-reload && systemctl --user enable --now kvd.socket'

uninstall: ## Remove what `make install` installed, with the same PREFIX and DESTDIR.
	@case '$(PREFIX)' in /*) ;; *) echo 'PREFIX has to be an absolute path' >&2; exit 1;; esac
	@if [ -z "$(DESTDIR)" ] && systemctl --quiet is-active kvd.socket kvd-http.socket kvd.service 2>/dev/null; then \
	echo 'kvd is running. First: systemctl disable --now kvd.socket kvd-http.socket kvd.service' >&2; exit 1; fi
	rm -f $(foreach file,$(INSTALLED),"$(ROOT)/$(file)")
	rm -rf "$(ROOT)/lib/kvd"
	[ "$$(readlink "$(ROOT)/bin/kv")" != ../lib/kvd/bin/kv ] || rm "$(ROOT)/bin/kv"
	[ "$$(readlink "$(FISHLINK)")" != "$(PREFIX)/$(FISHFILE)" ] || rm "$(FISHLINK)"
	[ ! -d "$(ROOT)/share/doc/kvd" ] || rmdir --ignore-fail-on-non-empty "$(ROOT)/share/doc/kvd"
	@[ -n "$(DESTDIR)" ] || echo 'Removed. The user and group kvd, and /etc/kvd if you made it, are still there.'
