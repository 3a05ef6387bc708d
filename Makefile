# One command each, on a fresh machine with Python 3.11 or later: the virtual environment is made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For each fuzzer of tests/fuzz/fuzzers.txt.
FUZZ_SECONDS ?= 60

# Of `make install`. DESTDIR is where a package is put together; PIPFLAGS goes to pip, as --no-index --find-links=FOLDER.
DESTDIR :=
PREFIX := /usr/local
SYSCONFDIR := /etc
PACKAGE := .
PIPFLAGS :=
HOME_DIR := $(PREFIX)/lib/varstore-companion
UNIT_DIR := $(PREFIX)/lib/systemd/system
TMPFILES_DIR := $(PREFIX)/lib/tmpfiles.d
DOC_DIR := $(PREFIX)/share/doc/varstore-companion
CONFIG_DIR := $(SYSCONFDIR)/varstore-companion
UNITS := varstore-companion.service varstore-companion.socket
PROGRAMS := varstore-companion:main varstore-nvram-certcheck:certcheck

.PHONY: demo test nightly lint bench fuzz clean install uninstall

demo: $(VENV)/.demo
	@$(BIN)/varstore-companion demo

test: lint
	@$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

nightly: $(VENV)/.test
	@$(BIN)/python -I tests/killing/run.py
	@HYPOTHESIS_PROFILE=nightly $(BIN)/pytest -s tests/system/test_flat.py

lint: $(VENV)/.test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python -I tests/benchmarks/run.py

fuzz: $(VENV)/.fuzz
	@$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

# The program has a virtual environment of its own: nothing of the host's Python is changed. What an earlier build left goes first:
# setuptools takes a module from there when it is gone here, or older.
install:
	@rm -rf build
	@$(PYTHON) -m venv "$(DESTDIR)$(HOME_DIR)"
	@"$(DESTDIR)$(HOME_DIR)/bin/pip" install --quiet --disable-pip-version-check --upgrade $(PIPFLAGS) '$(PACKAGE)'
	@install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNIT_DIR)" "$(DESTDIR)$(TMPFILES_DIR)" "$(DESTDIR)$(DOC_DIR)"
	@for each in $(PROGRAMS); do \
	  program="$(DESTDIR)$(PREFIX)/bin/$${each%:*}"; \
	  printf '#!%s -I\nfrom varstore_companion.cli.%s import run\nrun()\n' "$(HOME_DIR)/bin/python" "$${each#*:}" >"$$program"; \
	  chmod 0755 "$$program"; \
	done
	@for unit in $(UNITS); do \
	  sed 's#/usr/local/#$(PREFIX)/#g' "systemd/$$unit" >"$(DESTDIR)$(UNIT_DIR)/$$unit" && chmod 0644 "$(DESTDIR)$(UNIT_DIR)/$$unit"; \
	done
	@install -m 0644 systemd/varstore-companion.conf "$(DESTDIR)$(TMPFILES_DIR)"
	@install -m 0644 README.md LICENSE "$(DESTDIR)$(DOC_DIR)"
	@if [ -e systemd/config.toml ]; then \
	  install -m 0644 systemd/config.toml "$(DESTDIR)$(DOC_DIR)/config.toml"; \
	  install -d "$(DESTDIR)$(CONFIG_DIR)"; \
	  [ -e "$(DESTDIR)$(CONFIG_DIR)/config.toml" ] || install -m 0644 systemd/config.toml "$(DESTDIR)$(CONFIG_DIR)"; \
	fi

# Leaves the configuration, and the state in /var/lib/varstore-companion.
uninstall:
	rm -rf "$(DESTDIR)$(HOME_DIR)" "$(DESTDIR)$(DOC_DIR)"
	rm -f $(foreach each,$(PROGRAMS),"$(DESTDIR)$(PREFIX)/bin/$(firstword $(subst :, ,$(each)))")
	rm -f $(foreach unit,$(UNITS),"$(DESTDIR)$(UNIT_DIR)/$(unit)") "$(DESTDIR)$(TMPFILES_DIR)/varstore-companion.conf"

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.fuzz: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@ $(VENV)/.test $(VENV)/.demo
