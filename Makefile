# make lab    everything set up, then JupyterLab on labs/      (ARGS=--no-browser on a server)
# make test   everything set up, then lint, types, tests, notebooks
# make demo   the whole course headless, into report.html      (MODE=smoke for a quick one)
# make setup  only the environment, in .venv

PYTHON ?= python3
MODE ?= lesson
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What pip is told when it fetches torch; give an index of your own for a certain CUDA or CPU build.
TORCH_ARGS ?=

# Neither a hub nor a progress file may matter to a test; idle threads must not spin on a shared machine.
TESTS := HF_HUB_OFFLINE=1 PANGU_LAB_NO_PROGRESS=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE

.PHONY: setup lab test lint types unit notebooks demo release format clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): some minutes the first time, nothing afterwards."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on $(TORCH_ARGS) "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@$(BIN)/python -m ipykernel install --sys-prefix --name pangu-lab --display-name "PanGu Lab" >/dev/null
	@touch $(READY)

lab: setup
	@$(BIN)/pangu-lab lab $(ARGS)

test: setup lint types unit notebooks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(TESTS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every solution notebook, in seconds, against its saved outputs.
notebooks: setup
	$(TESTS) PANGU_LAB_MODE=smoke $(BIN)/python -m pytest -p no:cacheprovider --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg solutions

demo: setup
	@$(BIN)/pangu-lab demo --mode $(MODE) $(ARGS)

release: setup
	$(BIN)/pangu-lab format
	$(BIN)/pangu-lab release

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis labs/work report.html
