"""The page in a real browser against ``bentoml serve``: what a person does, and that the browser asks nobody but the service."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hqtl_common import ModelBundle
from tests.e2e.test_bentoml import Served, photo, probabilities, wait_until

pytest.importorskip("gradio", reason="needs the extra ui")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

CHROMIUM = os.environ.get("HQTL_TEST_CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium on the PATH")


@pytest.fixture(scope="module")
def service(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    served = Served(folder, HQTL_BUNDLE=str(bundle.path), HQTL_UI="1", HQTL_JOBS=str(folder / "jobs.db"))
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, service: Served) -> Iterator[Any]:
    """The login, in a fresh profile; afterwards nothing must have gone wrong in it or gone out of it."""
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(300_000)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{service.url}/ui")
    yield page
    context.close()
    assert {urlsplit(url.removeprefix("blob:")).netloc for url in asked if not url.startswith("data:")} == {urlsplit(service.url).netloc}
    assert not wrong
    assert not any(service.token in url for url in asked)


@pytest.fixture
def home(page: Any, service: Served) -> Any:
    """The page after the login."""
    page.fill("input[name=key]", service.token)
    page.click("text=Enter")
    page.wait_for_selector("#hq-file")
    return page


@pytest.fixture
def wall(tmp_path: Path) -> Path:
    (tmp_path / "wall.png").write_bytes(photo(1))
    return tmp_path / "wall.png"


def put_back(service: Served, job: str, retry_at: float) -> None:
    with closing(sqlite3.connect(service.keys.parent / "jobs.db")) as connection, connection:
        changes = "state = 'queued', answer = NULL, finished = NULL, retry_at = ?"
        connection.execute(f"UPDATE service_jobs SET {changes} WHERE id = ?", (retry_at, job))


def percent(text: str) -> float:
    found = re.search(r"([\d.]+) %", text)
    assert found is not None, text
    return float(found[1])


def test_a_wrong_key_stays_outside(page: Any) -> None:
    page.fill("input[name=key]", "hqtl_wrong")
    page.click("text=Enter")
    assert "unknown, expired or revoked" in page.text_content("[role=alert]")
    assert page.query_selector("#hq-file") is None


def test_two_backends_side_by_side(home: Any, service: Served, wall: Path) -> None:
    home.set_input_files("#hq-file", wall)
    home.wait_for_selector("#hq-seen:visible")
    home.locator("#hq-backend-1 input").click()
    home.get_by_role("option", name="aer").click()
    home.locator("#hq-shots-1 input").fill("800")
    home.locator("#hq-seed input, #hq-seed textarea").first.fill("5")
    home.get_by_role("button", name="Classify").click()
    home.wait_for_selector("#hq-answer-1 .hq-label")
    exact, sampled = (home.locator(f"#hq-answer-{index}") for index in range(2))
    asked: list[dict[str, Any]] = [{"seed": 5}, {"backend": "aer", "shots": 800, "seed": 5}]
    for shown, options in zip((exact, sampled), asked, strict=True):
        (expected,) = probabilities(service.predict(wall.read_bytes(), **options))
        assert percent(shown.locator(".hq-label").inner_text()) == pytest.approx(100 * max(expected.values()), abs=0.051)
        assert shown.locator(".hq-bar").count() == 4
    assert (exact.locator(".hq-error").count(), sampled.locator(".hq-error").count()) == (0, 4)
    assert "QPU seconds" in sampled.inner_text()


def test_a_photograph_is_dropped_and_a_map_is_drawn(home: Any, wall: Path) -> None:
    data = home.evaluate_handle(
        "bytes => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], 'wall.png')); return t; }",
        list(wall.read_bytes()),
    )
    home.dispatch_event(".hq-drop", "drop", {"dataTransfer": data})
    home.wait_for_selector("#hq-seen:visible")
    home.get_by_role("tab", name="Large image").click()
    home.locator("#hq-tile input").fill("20")
    home.get_by_role("button", name="Map").click()
    home.wait_for_selector("#hq-map img")
    assert home.evaluate("document.querySelector('#hq-map img').naturalWidth") > 0


def test_the_circuit_and_what_is_not_there(home: Any, tmp_path: Path) -> None:
    home.get_by_role("tab", name="Circuit").click()
    assert home.locator(".hq-circuit circle").count() == 6  # three CX
    home.get_by_role("tab", name="Job").click()
    home.locator("#hq-job input, #hq-job textarea").first.fill("none of mine")
    home.get_by_role("button", name="Follow").click()
    home.wait_for_selector("#hq-followed [role=alert]")
    home.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_job_is_followed_to_its_end_without_another_click(home: Any, service: Served, wall: Path, tmp_path: Path) -> None:
    """It is put back into the queue for later, so that the first look sees it there; then it is let go."""
    images = [("image", (name, wall.read_bytes())) for name in ("wall.png", "again.png")]
    asked: dict[str, Any] = {"files": images, "data": {"backend": "aer", "shots": "300", "seed": "4"}}
    job = service.ask("POST", "/v1/jobs", **asked).json()
    wait_until(lambda: service.ask("GET", f"/v1/jobs/{job['id']}").json()["state"] == "done")
    put_back(service, job["id"], retry_at=1e12)
    home.get_by_role("tab", name="Job").click()
    home.locator("#hq-job input, #hq-job textarea").first.fill(job["id"])
    home.get_by_role("button", name="Follow").click()
    home.wait_for_selector("#hq-followed >> text=queued")
    home.screenshot(path=tmp_path / "queued.png")
    put_back(service, job["id"], retry_at=0)
    home.wait_for_selector("#hq-followed .hq-bar", timeout=300_000)
    seen = home.locator("#hq-followed").inner_text()
    assert all(word in seen for word in ("done", "wall.png", "again.png"))
    assert home.locator("#hq-followed .hq-bar").count() == 8
    expected, _ = probabilities(service.ask("POST", "/v1/predict", **asked))
    shown = [float(found) for found in re.findall(r"([\d.]+) %", home.locator("#hq-followed .hq-label").nth(1).inner_text())]
    assert shown == pytest.approx([100 * max(expected.values())], abs=0.051)
    home.screenshot(path=tmp_path / "done.png", full_page=True)
    calls: list[str] = []
    home.on("request", lambda request: calls.append(request.url))
    home.wait_for_timeout(4500)
    assert not calls, "what is finished is not looked at again"


def test_forgetting_the_key_leads_out(home: Any) -> None:
    home.get_by_role("button", name="Forget the key").click()
    home.wait_for_selector("input[name=key]")
    assert home.context.cookies() == []


def test_the_worker_holds_no_torch_and_an_open_page_does_not_hold_it(home: Any, service: Served) -> None:
    home.wait_for_load_state("networkidle")
    assert "torch" not in Path(f"/proc/{service.worker().pid}/maps").read_text()
    service.process.terminate()
    assert service.process.wait(300) == 0
    assert service.token not in service.log.read_text()
