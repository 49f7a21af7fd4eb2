#!/bin/sh
# run.sh [FOLDER]: the parity tests of the compiled kernels on an ARM CPU that QEMU emulates.
#
# FOLDER (default build/arm) receives Debian's Python for ARM and torch's wheel for ARM, 0.7 GB;
# another run uses them again. Needs Debian 12 on x86, its packages qemu-user and
# g++-aarch64-linux-gnu, and the environment of `make setup`.
set -eu
project=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "${1:-$project/build/arm}"
folder=$(cd "${1:-$project/build/arm}" && pwd)
cd "$project"

root=$folder/root
packages=$root/usr/local/lib/python3.11/dist-packages
python=$root/usr/bin/python

apt_arm64() { # apt-get for an ARM machine without packages; this machine's own are left alone
  apt-get -qq -o Dir::State="$folder/apt" -o Dir::State::status="$folder/apt/status" \
    -o Dir::Cache="$folder/apt" -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
    -o APT::Sandbox::User= -o APT::Install-Recommends=false "$@"
}

if [ ! -e "$python" ]; then
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$root"
  : >"$folder/apt/status"
  apt_arm64 update
  apt_arm64 install --yes --download-only python3.11 libstdc++6
  for package in "$folder"/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  # 2.10.0 is the last whose ARM wheel on PyPI does without CUDA
  .venv/bin/uv pip install --quiet --target "$packages" --only-binary :all: \
    --python-version 3.11 --python-platform aarch64-manylinux_2_28 \
    --constraint requirements/dev.txt torch==2.9.1 numpy pytest
  # torch brings an OpenMP library of its own. The kernels use it too, so that
  # torch.set_num_threads counts for them.
  ln -sf "$packages"/torch.libs/libgomp-*.so.* "$root/usr/lib/aarch64-linux-gnu/libgomp.so.1"
  # sys.executable, which tests start: Linux cannot execute the ARM program itself. Its existence
  # says that the folder is complete.
  printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" -0 "$0" "%s" "$@"\n' "$root" "${python}3.11" \
    >"$python.new"
  chmod +x "$python.new"
  mv "$python.new" "$python"
fi

export CXX=aarch64-linux-gnu-g++ XDG_CACHE_HOME="$folder/cache"
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
# without conftest.py, which imports more than the root has
exec nice -n 19 "$python" -c '
import sys, pytest
from training.kernels import compiler
assert compiler.instruction_set() == "neon" and compiler.library(), "no compiled kernels"
sys.exit(pytest.main(sys.argv[1:]))
' --noconftest -p no:cacheprovider -rs tests/parity/test_kernels.py
