"""The page on which images are dropped."""

from __future__ import annotations

import http.client
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from flatsearch import UsageError
from flatsearch.export.card import ModelCard
from flatsearch.export.classifier import Classifier
from flatsearch.reports.demo import MOST_BYTES, DemoServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

# A name that does harm where it is taken for HTML.
EVIL = "<img src=x onerror=document.title='harmed'>"


def picture(brightness: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (brightness,) * 3).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    card = ModelCard("s", "{}", 3, 2, 8, "d", ("dark", EVIL), (0.0,) * 3, (1.0,) * 3)

    def run(x: torch.Tensor) -> torch.Tensor:
        bright = x.mean((1, 2, 3)) / 64 - 2
        return torch.stack([-bright, bright], 1)

    with DemoServer(Classifier(card, run, None), EVIL, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: DemoServer, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_images_are_classified(server: DemoServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for brightness, name in ((0, "dark"), (255, EVIL)):
        status, text = ask(server, "/predict?name=a.jpg", picture(brightness))
        found = json.loads(text)
        assert (status, found["class"]) == (200, name)
        assert next(iter(found["probabilities"])) == name
        assert sum(found["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("/predict?name=a%20b.jpg", b"no", {}, 422, "image 'a b.jpg' cannot be read: it is no im"),
        (
            "/predict?name=/etc/passwd",
            b"",
            {},
            422,
            "image '/etc/passwd' cannot be read: it is emp",
        ),
        ("/predict", b"", {"Content-Length": str(MOST_BYTES + 1)}, 413, "more than 32 MiB"),
        ("/predict", b"", {"Content-Length": "-1"}, 411, "its size must be given"),
        ("/other", b"", {}, 404, "no such page"),
        ("/../predict", None, {}, 404, "no such page"),
    ],
)
def test_what_is_refused(
    server: DemoServer, path: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    found, text = ask(server, path, body, **headers)
    assert found == status
    assert message in json.loads(text)["error"]


def test_a_port_that_is_taken(server: DemoServer) -> None:
    with pytest.raises(UsageError, match=f"port {server.server_port} cannot be listened on"):
        DemoServer(server.classifier, "m", server.server_port)


def test_the_page_in_a_browser(server: DemoServer, browser: Browser, tmp_path: Path) -> None:
    """Several images at once, on a phone's width; names are words and nothing else."""
    (tmp_path / "bright <b>.jpg").write_bytes(picture(255))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    page.set_input_files("input", [tmp_path / "bright <b>.jpg", tmp_path / "broken.jpg"])
    page.wait_for_selector(".error")
    # The answers come in any order.
    page.wait_for_function(
        "[...document.querySelectorAll('h2')].every(head => head.innerText != '...')"
    )
    assert page.locator("h2").all_inner_texts() == [EVIL, "not read"]
    assert page.locator("small").first.inner_text() == "bright <b>.jpg"
    assert "it is no image that Pillow knows" in page.locator(".error").inner_text()
    assert page.locator(".class").first.inner_text().split("\n")[-1].endswith("%")
    assert page.title() == EVIL
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not errors
    page.close()
