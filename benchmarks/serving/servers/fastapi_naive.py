"""FastAPI as most people write it: a def endpoint (thread pool), one row per ONNX Runtime call."""

import common
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
session = common.session()


Payload = list[float] if common.MODEL == "T" else str


class Request(BaseModel):
    data: Payload


@app.post("/predict")
def predict(request: Request):
    return {"prob": session.run(None, {"x": common.decode(request.data)[None]})[0][0].tolist()}


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        "fastapi_naive:app",
        port=common.PORT,
        workers=common.WORKERS,
        log_level="warning",
        access_log=False,
        backlog=4096,
    )
