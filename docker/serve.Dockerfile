# `clickmill serve`: features, ONNX Runtime and the HTTP server; no torch, Prefect or DVC.
#   docker build -f docker/serve.Dockerfile -t clickmill-serve .
#   export CLICKMILL_TOKEN="$(openssl rand -hex 32)"
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 -e CLICKMILL_TOKEN -v "$PWD/artifacts:/models:ro" clickmill-serve
FROM python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

ARG UID=1000
RUN useradd --create-home --uid "${UID}" clickmill \
 && install --directory --owner=clickmill --group=clickmill /clickmill
WORKDIR /clickmill
ENV DO_NOT_TRACK=1 PYTHONUNBUFFERED=1

COPY requirements/serve.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/serve.txt

# The code is the image's own: of a checkout, a server mounts only artifacts/, over /models
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .

USER ${UID}
# Others reach this address, so the server does not start without CLICKMILL_TOKEN
CMD ["clickmill", "serve", "--model", "production=/models/production", "--host", "0.0.0.0"]
