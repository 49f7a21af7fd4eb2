"""The encoder and the runtime of `clickmill serve` behind FastAPI, as its guide shows it.

python benchmarks/peers/serve_fastapi.py BUNDLE PORT
"""

import sys
from pathlib import Path

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from features.online.encoder import RequestEncoder
from serving.runtime import Runtime
from serving.serving_bundle import load_serving_bundle

bundle = load_serving_bundle(Path(sys.argv[1]))
encoder = RequestEncoder(bundle.state, bundle.manifest.short_rows)
runtime = Runtime(bundle.model_path)
app = FastAPI()


@app.post("/score")
async def score(request: Request) -> Response:
    body = await request.body()
    if request.headers.get("content-type") == "application/json":
        rows = encoder.encode_records(orjson.loads(body)["rows"])
    else:
        rows = encoder.encode_lines(body)
    scores = runtime.scores(rows.dense_GN, rows.ids_GF)
    answer = {"version": bundle.manifest.version, "scores": scores}
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
