# Two commands do everything on a machine with Python 3.10 to 3.13: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The tests start Python often: bytecode that is kept halves their time, whatever this shell says.
unexport PYTHONDONTWRITEBYTECODE
# One thread a worker: torch's threads wait for each other where every core has a worker.
test test-fast: export OMP_NUM_THREADS = 1

.PHONY: demo test test-fast fuzz kills lint bench env clean

demo: env  ## compile and verify the bundled classifier and the detector for all four targets
	$(BIN)/repedge compile -t coreml -t tflite -t openvino -t gpu --out build/demo --force
	$(BIN)/repedge compile demo-detect -t coreml -t tflite -t openvino -t gpu --out build/demo --force

test: env $(VENV)-tflite-runtime/done  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: env  ## the tests of a minute
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

fuzz: env  ## 10,000 damaged and crafted files, about half an hour
	$(BIN)/python tests/fuzz/campaign.py --count 10000

kills: env  ## 500 times kill -9, about half an hour
	$(BIN)/python tests/fuzz/kills.py --count 500

lint: env  ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(VENV)/done

$(VENV)/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The last tflite-runtime release needs numpy 1 and Python 3.11 or older: an environment of its own.
# Where it can't be had, the tests that use it skip and say so.
$(VENV)-tflite-runtime/done: tests/targets/tflite/old_runtime_env.sh
	-sh tests/targets/tflite/old_runtime_env.sh $(PYTHON)
	mkdir -p $(VENV)-tflite-runtime && touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) $(VENV)-tflite-runtime
