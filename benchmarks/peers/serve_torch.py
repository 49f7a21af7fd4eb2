"""The functions of `clickmill predict` behind FastAPI: the readers of logs, PyTorch, `score`.

python benchmarks/peers/serve_torch.py BUNDLE PORT
"""

import sys
from pathlib import Path

import orjson
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from features.ingest.readers.blocks import block_of_text
from features.ingest.readers.delimited_text import Layout, parse_block
from training.inference.bundle import load_bundle
from training.inference.score import score

torch.set_num_threads(1)
bundle = load_bundle(Path(sys.argv[1]))
schema = bundle.state.schema
layout = Layout.of_log(
    schema,
    schema.log_columns(labelled=False),
    labelled=False,
    short_rows=bundle.manifest.params["ingest"]["short_rows"],
)
app = FastAPI()


@app.post("/score")
async def score_lines(request: Request) -> Response:
    read = parse_block(block_of_text(await request.body()), layout)
    scores = score(bundle, bundle.state.encode(read.rows))
    answer = {"version": bundle.version, "scores": scores}
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
