#!/usr/bin/env bash
# Exact versions for every supported Python, from the ranges in pyproject.toml.
# torch's CUDA libraries are left out: where a CUDA build of torch is installed, pip adds the ones that it names; a CPU build needs none.
set -euo pipefail
uv=${1:-uv}
cat > /tmp/constraints.$$ <<'C'
torch==2.13.0
C
"$uv" pip compile pyproject.toml --extra test --universal --python-version 3.10 --no-header --no-annotate --constraint /tmp/constraints.$$ --quiet \
  | grep -vE '^(nvidia-|triton|cuda-)' > requirements.lock.part
rm -f /tmp/constraints.$$
{ echo "# Exact versions, Python 3.10 to 3.13. Made by 'make lock' from pyproject.toml; torch's CUDA libraries are left to pip (see .ci/lock.sh)."; cat requirements.lock.part; } > requirements.lock
rm requirements.lock.part
