#!/usr/bin/env bash
# Checks and measures one GPU, with the code of this folder and the packages that are installed; see device.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD:$PWD/plugins:$PWD/cli${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" benchmarks/device.py "$@"
