"""The encoder and the runtime of `clickmill serve` behind LitServe, with its batching.

    python benchmarks/peers/serve_litserve.py BUNDLE PORT

It runs in an environment of its own, with requirements/serve.txt and litserve.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray

from features.online.encoded_rows import EncodedRows
from features.online.encoder import RequestEncoder
from serving.runtime import Runtime
from serving.serving_bundle import load_serving_bundle

MAX_BATCH, BATCH_TIMEOUT_S = 64, 0.0005
Scores = NDArray[np.float32]


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        bundle = load_serving_bundle(Path(sys.argv[1]))
        self.version = bundle.manifest.version
        self.encoder = RequestEncoder(bundle.state, bundle.manifest.short_rows)
        self.runtime = Runtime(bundle.model_path)

    def decode_request(self, request: dict[str, str]) -> EncodedRows:
        return self.encoder.encode_lines(request["lines"].encode())

    def batch(self, inputs: list[EncodedRows]) -> list[EncodedRows]:
        return inputs

    def predict(self, rows: list[EncodedRows]) -> list[Scores]:
        scores = self.runtime.scores(
            np.concatenate([one.dense_GN for one in rows]),
            np.concatenate([one.ids_GF for one in rows]),
        )
        return np.split(scores, np.cumsum([len(one.ids_GF) for one in rows])[:-1])

    def unbatch(self, output: list[Scores]) -> list[Scores]:
        return output

    def encode_response(self, output: Scores) -> dict[str, Any]:
        return {"version": self.version, "scores": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/score")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
