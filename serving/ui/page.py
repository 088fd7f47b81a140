"""The page itself, made with Gradio. It asks the routes of the service like any other client, with the key of whoever looks at it.

The photograph travels inside the one call that needs it: Gradio's own uploads, files and queue are not used.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import gradio as gr
import httpx
from fastapi import FastAPI

from hqtl_common.bundle import ModelBundle
from serving.jobs.records import FINISHED
from serving.settings import ServiceSettings
from serving.ui.calls import NONE
from serving.ui.view import draw_circuit, show_answer, show_job, show_map, show_problem

__all__ = ["mount_page"]

_LOOK_EVERY_S = 2.0
_PASSING = (429, 503)
_LOGOUT = "<form method='post' action='/ui/logout'><button>Forget the key</button></form>"
_DROP = """<label class="hq-drop">Drop a photograph here, or choose one (PNG, JPEG, TIFF, BMP, WebP)
<input type="file" id="hq-file" accept=".png,.jpg,.jpeg,.tif,.tiff,.bmp,.webp"><img id="hq-seen" alt="" hidden></label>"""
_SHOW = """element.addEventListener('change', (event) => {
  const file = event.target.files && event.target.files[0], seen = element.querySelector('#hq-seen');
  if (!file || !seen) return;
  URL.revokeObjectURL(seen.src); seen.src = URL.createObjectURL(file); seen.hidden = false;
  seen.onerror = () => { seen.hidden = true; };
});
element.addEventListener('dragover', (event) => event.preventDefault());
element.addEventListener('drop', (event) => {
  const file = element.querySelector('#hq-file');
  if (!file || !event.dataTransfer.files.length) return;
  event.preventDefault(); file.files = event.dataTransfer.files; file.dispatchEvent(new Event('change', {bubbles: true}));
})"""
_READ = """async (_, ...rest) => {
  const file = document.querySelector('#hq-file').files[0];
  if (!file) return ['', ...rest];
  const url = await new Promise((done) => { const r = new FileReader(); r.onload = () => done(r.result); r.readAsDataURL(file); });
  return [url.slice(url.indexOf(',') + 1), ...rest];
}"""


class _Caller:
    """Asks the routes of the service, inside this process.

    Args:
        app: The application that the page is part of.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def ask(self, request: gr.Request, method: str, path: str, **options: Any) -> httpx.Response:
        token = request.headers.get("authorization")
        headers = {**({"authorization": token} if token else {}), **options.pop("headers", {})}
        transport = httpx.ASGITransport(self._app, client=("127.0.0.1", 0))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers, timeout=None) as client:
            return await client.request(method, path, **options)


def mount_page(app: FastAPI, bundle: ModelBundle, settings: ServiceSettings) -> None:
    """Put the page of a bundle at ``/ui`` of ``app``."""
    with ThreadPoolExecutor(1) as thread:  # where no event loop runs, Gradio opens some and never closes them
        thread.submit(asyncio.run, _mount(app, bundle, settings)).result()


async def _mount(app: FastAPI, bundle: ModelBundle, settings: ServiceSettings) -> None:
    page = _make_page(_Caller(app), bundle, settings)
    gr.mount_gradio_app(
        app,
        page,
        path="/ui",
        root_path="/ui",
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        footer_links=[],
        theme=gr.themes.Default(font="system-ui", font_mono="monospace"),
        css=files("serving.ui").joinpath("page.css").read_text("utf-8"),
    )


def _make_page(caller: _Caller, bundle: ModelBundle, settings: ServiceSettings) -> gr.Blocks:
    async def classify(
        encoded: str, first: str, first_shots: int, second: str, second_shots: int, seed: str, request: gr.Request
    ) -> tuple[str, str]:
        image = _image_of(encoded)
        if image is None:
            return show_problem("choose a photograph first"), ""
        asked = [(first, first_shots), (second, second_shots)]
        answers = await asyncio.gather(*(_predict(caller, request, image, name, shots, seed) for name, shots in asked if name != NONE))
        return answers[0], answers[1] if len(answers) > 1 else ""

    async def chart(encoded: str, backend: str, shots: int, tile: int, request: gr.Request) -> str:
        image = _image_of(encoded)
        return show_problem("choose a photograph first") if image is None else await _map(caller, request, image, backend, shots, tile)

    async def follow(identifier: str, request: gr.Request) -> tuple[str, gr.Timer]:
        answer = await caller.ask(request, "GET", f"/v1/jobs/{quote(identifier.strip(), safe='')}")
        if answer.status_code != 200:
            return _problem(answer), gr.Timer(active=answer.status_code in _PASSING)
        job = answer.json()
        return show_job(job), gr.Timer(active=job["state"] not in FINISHED)

    page: gr.Blocks = gr.Blocks(title="Crack inspection", analytics_enabled=False)
    with page:
        gr.HTML(f"<h1>Crack inspection</h1>{'' if settings.insecure_no_auth else _LOGOUT}")
        gr.HTML(_DROP, js_on_load=_SHOW)
        encoded = gr.Textbox(visible="hidden")
        with gr.Tab("Photograph"):
            with gr.Row():
                chosen = [_choices(index, settings) for index in range(2)]
            seed = gr.Textbox(label="Seed (empty: none)", elem_id="hq-seed")
            button = gr.Button("Classify", variant="primary")
            with gr.Row(equal_height=False):
                shown = [gr.HTML(elem_id=f"hq-answer-{index}") for index in range(2)]
            inputs = [encoded, *chosen[0], *chosen[1], seed]
            button.click(classify, inputs, shown, js=_READ, queue=False, api_name="classify")
        with gr.Tab("Large image"):
            _add_map(chart, encoded, bundle.preprocess.size, settings)
        with gr.Tab("Circuit"):
            gr.HTML(f"<p>{_about(bundle)}</p>{draw_circuit(bundle.head)}")
        if settings.jobs is not None:
            _add_jobs(follow)
    return page


def _choices(index: int, settings: ServiceSettings) -> tuple[gr.Dropdown, gr.Number]:
    with gr.Column():
        names = list(settings.backends) if index == 0 else [NONE, *settings.backends]
        backend = gr.Dropdown(
            names,
            value=settings.default_backend if index == 0 else NONE,
            label="Backend" if index == 0 else "Compare with",
            filterable=False,
            elem_id=f"hq-backend-{index}",
        )
        shots = gr.Number(label="Shots (0: exact)", precision=0, minimum=0, value=1000 * index, elem_id=f"hq-shots-{index}")
    return backend, shots


def _add_map(chart: Any, encoded: gr.Textbox, size: int, settings: ServiceSettings) -> None:
    with gr.Row():
        backend = gr.Dropdown(list(settings.backends), value=settings.default_backend, label="Backend", filterable=False)
        shots = gr.Number(label="Shots per tile (0: exact)", precision=0, minimum=0, value=0)
        tile = gr.Number(label="Edge of a tile in pixels", precision=0, minimum=16, value=size, elem_id="hq-tile")
    button = gr.Button("Map", variant="primary")
    seen = gr.HTML(elem_id="hq-map")
    button.click(chart, [encoded, backend, shots, tile], [seen], js=_READ, queue=False, api_name="chart")


def _add_jobs(follow: Any) -> None:
    with gr.Tab("Job"):
        identifier = gr.Textbox(label="Id of a job", elem_id="hq-job")
        look = gr.Button("Follow")
        seen = gr.HTML(elem_id="hq-followed")
        timer = gr.Timer(_LOOK_EVERY_S, active=False)  # until the job is finished
        look.click(follow, [identifier], [seen, timer], queue=False, api_name="follow")
        timer.tick(follow, [identifier], [seen, timer], queue=False, show_progress="hidden", api_name="follow_on")


def _about(bundle: ModelBundle) -> str:
    head = bundle.head
    return f"{head.num_qubits} qubits, {head.num_weights} trained weights; θ: angles of the image, w: weights, ⟨Z⟩ of each qubit"


def _image_of(encoded: str) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True) or None
    except (binascii.Error, TypeError, ValueError):
        return None


async def _predict(caller: _Caller, request: gr.Request, image: bytes, backend: str, shots: int, seed: str) -> str:
    fields = {**_options(backend, shots), **({"seed": seed.strip()} if seed.strip() else {})}
    answer = await caller.ask(request, "POST", "/v1/predict", files={"image": ("photograph", image)}, data=fields)
    if answer.status_code == 202:
        return show_job(answer.json())
    return show_answer(answer.json()) if answer.status_code == 200 else _problem(answer)


async def _map(caller: _Caller, request: gr.Request, image: bytes, backend: str, shots: int, tile: int) -> str:
    query = {"format": "png", "tile": str(tile), **_options(backend, shots)}
    headers = {"content-type": "application/octet-stream"}
    answer = await caller.ask(request, "POST", "/v1/inspect", params=query, content=image, headers=headers)
    return show_map(answer.content) if answer.status_code == 200 else _problem(answer)


def _options(backend: str, shots: int) -> dict[str, str]:
    return {"backend": backend, **({"shots": str(shots)} if shots else {})}


def _problem(answer: httpx.Response) -> str:
    try:
        error = answer.json()["error"]
    except (json.JSONDecodeError, KeyError):
        return show_problem(f"the service answered {answer.status_code}")
    return show_problem(error["message"], error["request_id"])
