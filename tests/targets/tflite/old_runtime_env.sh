#!/bin/sh
# Makes .venv-tflite-runtime: the last tflite-runtime release (it needs numpy 1) and the official
# reader of TensorFlow Lite Metadata. tests/targets/tflite/test_old_runtime.py is skipped without it.
# Usage: sh tests/targets/tflite/old_runtime_env.sh [PYTHON]    (PYTHON is 3.9 to 3.11)
set -eu
cd "$(dirname "$0")/../../.."
env=.venv-tflite-runtime
"${1:-python3.11}" -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check "tflite-runtime==2.14.0" "numpy<2" flatbuffers
# Only its generated schema is used; its dependencies (audio devices among them) are not.
"$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "tflite-support==0.4.4"
