# Raw log -> features, and the Prefect server: everything but torch.
#   docker build -f docker/ingest.Dockerfile -t clickmill-ingest .
#   docker run --rm -v "$PWD:/clickmill" clickmill-ingest clickmill stage ingest
FROM python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

# DVC calls git; ingest compiles its inner loops where there is g++. Debian removes a superseded version from its archive, so a pinned one would stop building at the next security update.
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

COPY requirements/ingest.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/ingest.txt

# Editable, so that with a checkout mounted here the code that runs is the code whose hash DVC records
COPY --chown=clickmill . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

USER ${UID}
CMD ["clickmill", "--help"]
