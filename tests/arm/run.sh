#!/bin/sh
# run.sh [FOLDER]: the parity tests of the compiled kernels on an ARM CPU, which QEMU emulates on x86.
#
# FOLDER (default build/arm) receives Debian's Python for ARM and the ARM wheels of torch, 0.7 GB; a
# second run uses them again. Needs Debian 12, `apt-get install qemu-user g++-aarch64-linux-gnu`, and
# the environment of `make setup`, whose uv chooses the wheels.
set -eu
project=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:-$project/build/arm}"
folder=$(cd "${1:-$project/build/arm}" && pwd)
cd "$project"

root=$folder/root
packages=$root/usr/local/lib/python3.11/dist-packages
python=$root/usr/bin/python # the command of the tests, which start further Pythons

apt_arm64() { # apt-get for a machine on which nothing is installed; this one's packages stay as they are
  apt-get -qq -o Dir::State="$folder/apt" -o Dir::State::status="$folder/apt/status" \
    -o Dir::Cache="$folder/apt" -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
    -o APT::Sandbox::User= -o APT::Install-Recommends=false "$@"
}

if [ ! -e "$python" ]; then # written last
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$root"
  : >"$folder/apt/status"
  apt_arm64 update
  apt_arm64 install --yes --download-only python3.11 libstdc++6
  for package in "$folder"/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  # The last torch whose ARM wheel on PyPI does without CUDA.
  .venv/bin/uv pip install --quiet --target "$packages" --only-binary :all: --python-version 3.11 \
    --python-platform aarch64-manylinux_2_28 --constraint requirements/dev.txt torch==2.9.1 numpy pytest
  # The wheel has an OpenMP of its own. The kernels must use it too, else torch.set_num_threads would
  # not count for them.
  ln -sf "$packages"/torch.libs/libgomp-*.so.* "$root/usr/lib/aarch64-linux-gnu/libgomp.so.1"
  # The kernel cannot execute ARM programs, so sys.executable is this file.
  printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" -0 "$0" "%s" "$@"\n' "$root" "${python}3.11" >"$python.new"
  chmod +x "$python.new"
  mv "$python.new" "$python"
fi

export CXX=aarch64-linux-gnu-g++ XDG_CACHE_HOME="$folder/cache" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
# The tests need nothing of conftest.py, which imports more than the root has.
exec nice -n 19 "$python" -c '
import sys, pytest
from training.kernels import compiler
assert compiler.instruction_set() == "neon" and compiler.library(), "no compiled kernels"
sys.exit(pytest.main(sys.argv[1:]))
' --noconftest -p no:cacheprovider -rs tests/parity/test_kernels.py
