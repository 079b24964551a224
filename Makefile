# `make demo` and `make test` set everything up by themselves; nothing but Python 3.11 or newer and make is needed.
PYTHON ?= python3
BIN := .venv/bin
PROOFS := PYTHONPATH=benchmarks:tests/support:tests/proofs $(BIN)/python
# one mechanism instead of all, for trust, export and speed
NAME ?=

.PHONY: demo test levels check format docs trust tools fuzz advice networks export speed whole pairs loop frontier robustness evidence examples stamps galleries screenshots notebook looking calibration proofs clean

# One finished stamp per set of requirements: an interrupted set-up is done again, a finished one is not.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regard needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -r pyproject.toml --extra compare --extra app --extra dev
	@touch $@

# the package itself (as of when the build began) and its images, and the kernels in C++ again when they have changed
.venv/built: .venv/ready setup.py images/pyproject.toml src/regard/ops/kernels/interface.py $(wildcard src/regard/ops/kernels/*.cpp src/regard/ops/kernels/*.h)
	@touch .venv/building
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e . -e ./images
	@mv .venv/building $@

demo: .venv/built
	$(BIN)/regard compare se cbam --control constant --data fashion --out runs/demo

test: .venv/built
	$(BIN)/python -m pytest -n 2

# the tests of the kernels in C++ again, at every other level that this machine has
levels: .venv/built
	for level in $$($(BIN)/python -c "from regard.ops.kernels import library; print(*library.levels()[1:])"); do \
		REGARD_LEVEL=$$level $(BIN)/python -m pytest -q -n 2 -k "cpu or selfgating" tests/ops/test_ops.py tests/ops/test_selfgating.py \
			|| exit 1; done

check: .venv/built
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) levels
	$(MAKE) test

proofs: .venv/built
	$(BIN)/python -m pytest -m slow

format: .venv/built
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/built
	$(BIN)/python tools/pages.py docs
	$(PROOFS) -m trust --page
	$(PROOFS) -m exporting --page

# other libraries are installed for this table alone, beside the environment
trust: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps fightingcv-attention==1.0.0 einops
	$(PROOFS) -m trust $(NAME)

# what becomes of attention under other people's tools, the table in docs/frameworks.md; some are installed for it alone
tools: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps peft accelerate transformers \
		tokenizers huggingface_hub regex torchao
	PYTHONPATH=.venv/peers:tests/support:tests/proofs $(BIN)/python -m rebuilding

# random use of what is public, damaged files, interruptions: what came of it is a part of docs/trust.md
fuzz: .venv/built
	PYTHONPATH=tests/support:tests/proofs $(BIN)/python -m fuzzing
	$(PROOFS) -m trust --page

# what attention costs in three networks, before it is trained; takes minutes
advice: .venv/built
	$(BIN)/python benchmarks/advice.py --budget 300

# one network of every family of timm and all of torchvision; finished networks are kept in runs/networks
networks: .venv/built
	$(BIN)/python benchmarks/networks.py

# compiled, exported, in ONNX: every mechanism that has no answer yet, or the one of `make export NAME=se`
export: .venv/built
	$(PROOFS) -m exporting $(NAME)

# every gate against what memory costs and against other libraries; takes hours, finished pieces are kept in runs/speed
speed: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps fightingcv-attention==1.0.0 einops
	PYTHONPATH=.venv/peers $(BIN)/python benchmarks/speed.py $(NAME)

# accuracy against processor seconds: ours, before, timm's loop, a linear model; half an hour
frontier: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps elpv-dataset
	PYTHONPATH=.venv/peers $(BIN)/python benchmarks/frontier.py

# does the answer of the demo survive what a doubter would try? half an hour
robustness: .venv/built
	$(BIN)/python benchmarks/robustness.py

# does attention help? hours on two cores; what is finished is kept in runs/evidence
evidence: .venv/built
	$(BIN)/python benchmarks/evidence.py

whole pairs loop: .venv/built
	$(BIN)/python benchmarks/$(subst loop,training,$@).py
	$(BIN)/python benchmarks/speed.py --page

# the solar cells come with a package whose licence keeps them out of this one
examples: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers --no-deps elpv-dataset
	for script in kernel_regression stn glimpse segmentation video pretrained solar_cells; do \
		PYTHONPATH=.venv/peers $(BIN)/python examples/$$script.py || exit 1; done

# what `regard look` shows of networks that are trained for it; ten minutes, what is trained is kept in runs/galleries
galleries: .venv/built
	$(BIN)/python benchmarks/galleries.py

# the README's pictures of a report and of the interactive demo, in Debian's Chromium
screenshots: demo
	test -d runs/galleries/convolutions || $(BIN)/python benchmarks/galleries.py
	$(BIN)/python tools/screenshots.py

# the notebook's outputs again; what runs it is installed for this alone, beside the environment
notebook: .venv/built
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .venv/peers nbclient ipykernel
	PYTHONPATH=.venv/peers PYTHONWARNINGS=ignore $(BIN)/python .venv/peers/bin/jupyter-execute --inplace docs/first_gallery.ipynb

# what looking costs; minutes on a quiet machine
looking: .venv/built
	$(BIN)/python benchmarks/looking.py

# what the verdicts are worth: error, coverage, power; some minutes of one core
calibration: .venv/built
	$(BIN)/python benchmarks/calibration.py

# objects that Debian's apt fetches (161 MB); the trainings take an hour on two cores, what is done is kept in runs/stamps
stamps: .venv/built
	$(BIN)/python benchmarks/stamps.py

clean:
	rm -rf .venv runs build images/build dist
