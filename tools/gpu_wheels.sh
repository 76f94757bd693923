#!/usr/bin/env bash
# Fetches what a machine with a card and PyTorch may lack, for tools/gpu_check.sh, which works without a network:
#
#   tools/gpu_wheels.sh [PYTHON_VERSION]      # of that machine, 3.12 if not given; Linux on x86-64
#
# Pure Python, but for pydantic-core, in the versions of .venv; no PyTorch, NumPy, SciPy, Pillow, PyYAML or matplotlib.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:-3.12} wheels=.gpu/wheels most=60
names="monai pytorch-ignite nibabel pydicom fire termcolor pydantic pydantic_core annotated-types typing-inspection
    typing_extensions importlib_resources Jinja2 packaging tqdm tensorboard protobuf absl-py Markdown Werkzeug"
rm -rf "$wheels"
mkdir -p "$wheels"
for name in $names; do
    pinned=$(.venv/bin/python -c "from importlib.metadata import version; print('$name==' + version('$name'))")
    .venv/bin/python -m pip download -qq --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$wheels" "$pinned"
done
bytes=$( (git ls-files -z; find "$wheels" -type f -print0) | xargs -0 cat 2>/dev/null | wc -c)
echo "$(ls "$wheels" | wc -l) wheels for Python $version; with the tree $((bytes / 1000000)) MB"
if [ "$bytes" -gt $((most * 1000000)) ]; then
    echo "error: more than $most MB" >&2
    exit 1
fi
