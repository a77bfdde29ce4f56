#!/usr/bin/env bash
# Everything that is to be seen on one GPU, in ten minutes at most, without network; a part that has its JSON is skipped.
#   bash benchmarks/gpu/check.sh                         on a GPU, results in outputs/gpu
#   bash benchmarks/gpu/check.sh --device cpu --toy      tries every part on the CPU, at toy size
#   bash benchmarks/gpu/check.sh --help
# Wheels of what the machine lacks are taken from .wheels/ (WHEELS=folder for another), see fetch.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
wheels=${WHEELS:-$root/.wheels}
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" "$wheels"/*.whl
  export PYTHONPATH=$site:$PYTHONPATH
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 TRL_EXPERIMENTAL_SILENCE=1
"$python" "$root/benchmarks/gpu/check.py" "$@"
