# torch VERSION: the CPU build (a tenth of the size) unless this machine has an NVIDIA GPU or TORCH_VARIANT=cuda asks for the other.
# A step of its own because the two builds differ in hash and in dependencies, so neither can stand in the lock.
set -eu
version=$1
variant=${TORCH_VARIANT:-$(command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)}
quiet="--quiet --disable-pip-version-check"
if python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" 2>/dev/null; then
  exit 0
elif [ "$variant" = cuda ]; then
  pip install $quiet "torch==$version"
  pip install $quiet --no-deps "fbgemm-gpu==1.8.0"  # over the CPU build of the lock: the same module, with kernels for GPUs
else
  # +cpu is found where pip's sources hold it (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS); else the default build, which runs without a GPU too
  pip install $quiet --no-deps --retries 0 "torch==$version+cpu" 2>/dev/null || pip install $quiet "torch==$version"
fi
