#!/usr/bin/env bash
# Everything that only a GPU can tell, in order of value, in the time there is:
#
#   tools/gpu_wheels.sh                           # before, with a network: wheels of what a machine may lack
#   tools/gpu_check.sh OUT --minutes 25           # on the machine with the card, which needs no network
#   tools/gpu_check.sh OUT --minutes 9            # again with the same OUT goes on with what is missing
#   tools/gpu_check.sh OUT --dry-run              # at toy size on a CPU, in some minutes
#
# OUT gets gpu_check.json, gpu_check.md (rows for bundle/docs/performance.md), gpu_check.log and trained weights, all in
# files below 16 MB. It runs with the Python (PYTHON, or python3) and the PyTorch that are there; of the wheels only those
# are used whose package is not installed, and nothing that is there is changed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
wheels=$here/.gpu/wheels
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$wheels/*.whl" >/dev/null; then
    mapfile -t missing < <("$python" - "$wheels"/*.whl <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for wheel in sys.argv[1:]:
    try:
        version(Path(wheel).name.split("-")[0])
    except PackageNotFoundError:
        print(wheel)
PYTHON
    )
    if [ ${#missing[@]} -gt 0 ]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "${missing[@]}"
    fi
fi
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "$python" "$here/tools/gpu_check.py" "$@"
