# Every stage, and the Prefect worker.
#   docker build -f docker/train.Dockerfile --build-arg VARIANT=cpu -t clickmill-train .
#   docker build -f docker/train.Dockerfile --build-arg VARIANT=cuda -t clickmill-train:cuda .     (run it with --gpus all)
FROM python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

# DVC calls git; ingest and training compile their inner loops where there is g++. Debian removes a superseded version from its archive, so a pinned one would stop building at the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ git libc6-dev \
 && rm -rf /var/lib/apt/lists/*

# Give the id of the checkout's owner (--build-arg UID="$(id -u)") where a checkout is mounted over /clickmill
ARG UID=1000
RUN useradd --create-home --uid "${UID}" clickmill \
 && install --directory --owner=clickmill --group=clickmill /clickmill
WORKDIR /clickmill
ENV DO_NOT_TRACK=1 PYTHONUNBUFFERED=1

COPY requirements/train.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/train.txt

# torch, in the Makefile's version: cpu or cuda. The CUDA build brings its libraries along; the host adds the driver and the container toolkit.
# Without PIP_EXTRA_INDEX_URL naming a place that holds the small CPU build, cpu falls back to the default build, which runs on a CPU too.
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY Makefile requirements/install_torch.sh requirements/
RUN TORCH_VARIANT="${VARIANT}" sh requirements/install_torch.sh "$(sed -n 's/^TORCH := //p' requirements/Makefile)" \
 && rm requirements/Makefile

# SERVERS=1 adds Ray, for train.parallel: servers and the nodes of its cluster (docker/kubernetes/servers.yaml)
ARG SERVERS
COPY requirements/servers.txt requirements/
RUN test -z "${SERVERS}" || pip install --no-deps --require-hashes -r requirements/servers.txt

# Editable, so that with a checkout mounted here the code that runs is the code whose hash DVC records
COPY --chown=clickmill . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

USER ${UID}
CMD ["clickmill", "--help"]
