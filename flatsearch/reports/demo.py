"""A page in the browser on which images are dropped, and a model says what they are.

It is served to this machine only. An image is sent as the body of a request, and read as
`flatsearch predict` reads files; the answer is JSON. What the page shows is set as text, never as
HTML: names of classes and files mean nothing to the browser.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from flatsearch.errors import DataError, UsageError
from flatsearch.reports.colours import BLUE, STYLE

if TYPE_CHECKING:
    from flatsearch.export.classifier import Classifier

__all__ = ["MOST_BYTES", "DemoServer"]

# Of an image that is sent.
MOST_BYTES = 32 * 2**20
# Seconds in which the next part of a request has to come.
_PATIENCE = 30
# Nobody else can reach what listens there.
_LOOPBACK = "127.0.0.1"
_MOST_NAMED = 20
_STYLE = f"""{STYLE}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 44rem;
  padding: 0 1rem; color: var(--words); background: var(--background); overflow-wrap: anywhere }}
h1 {{ font-size: 1.3rem; margin: 0 }}
p {{ color: var(--quiet); margin: .3rem 0 1rem }}
label {{ display: block; border: 2px dashed var(--line); border-radius: .6rem; padding: 2rem 1rem;
  text-align: center; cursor: pointer }}
label.over, label:focus-within {{ border-color: {BLUE} }}
input {{ position: absolute; opacity: 0; width: 1px }}
article {{ display: flex; gap: 1rem; padding: 1rem 0; border-bottom: 1px solid var(--line) }}
img {{ width: 7rem; height: 7rem; object-fit: cover; border-radius: .4rem; flex: none;
  background: var(--line) }}
article > div {{ flex: 1; min-width: 0 }}
h2 {{ font-size: 1.15rem; margin: 0 }}
small {{ color: var(--quiet) }}
.error {{ color: var(--missing) }}
.class {{ position: relative; display: flex; gap: 1rem; justify-content: space-between;
  padding: 0 .4rem; margin: .2rem 0; font-variant-numeric: tabular-nums }}
.class span {{ position: relative; z-index: 1 }}
.class i {{ position: absolute; inset: 0 auto 0 0; background: {BLUE}; opacity: .25;
  border-radius: .2rem }}
"""
_SCRIPT = """
const found = document.getElementById("found"), place = document.querySelector("label");
const input = document.querySelector("input"), most = 5;
let queue = Promise.resolve();
function add(parent, kind, text, name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = name;
  parent.append(made);
  return made;
}
async function classify(file, words) {
  const head = add(words, "h2", "...");
  add(words, "small", file.name);
  try {
    if (file.size > MOST) throw new Error(`it has more than ${MOST / 2 ** 20} MiB`);
    const where = "predict?name=" + encodeURIComponent(file.name);
    const answer = await fetch(where, {method: "POST", body: file});
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    head.textContent = said.class;
    for (const [name, p] of Object.entries(said.probabilities).slice(0, most)) {
      const row = add(words, "div", "", "class");
      add(row, "i", "").style.width = 100 * p + "%";
      add(row, "span", name);
      add(row, "span", (100 * p).toFixed(1) + "%");
    }
  } catch (error) {
    head.textContent = "not read";
    add(words, "div", error.message, "error");
  }
}
function take(files) {
  for (const file of [...files].reverse()) {
    const card = document.createElement("article"), image = add(card, "img", "");
    image.alt = "";
    image.onload = () => URL.revokeObjectURL(image.src);
    image.onerror = () => { image.onload(); image.style.visibility = "hidden"; };
    image.src = URL.createObjectURL(file);
    const words = add(card, "div", "");
    found.prepend(card);
    queue = queue.then(() => classify(file, words));
  }
}
input.onchange = () => { take(input.files); input.value = ""; };
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    place.className = name === "dragover" ? "over" : "";
    if (name === "drop") take(event.dataTransfer.files);
  });
}
""".replace("MOST", str(MOST_BYTES))
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# The browser runs no other script, and loads nothing from anywhere.
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline';"
    " img-src blob: data:; connect-src 'self'"
)


class DemoServer(ThreadingHTTPServer):
    """Serves the page to this machine.

    Args:
        classifier: The model.
        name: What the page calls it.
        port: Where to listen; 0 for any free port.

    Raises:
        UsageError: If the port is taken.
    """

    def __init__(self, classifier: Classifier, name: str, port: int) -> None:
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be listened on ({error.strerror}): give another `port`"
            ) from None
        self.classifier, self.name = classifier, name
        # One image at a time: a network uses all cores, and a photo much memory.
        self.turn = threading.Lock()

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{_LOOPBACK}:{self.server_port}/"

    def page(self) -> str:
        """Return the page."""
        names = self.classifier.class_names
        more = ", ..." if len(names) > _MOST_NAMED else ""
        told = f"Tells {len(names)} classes apart: {', '.join(names[:_MOST_NAMED])}{more}"
        title, told = html.escape(self.name), html.escape(told)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{title}</title><style>{_STYLE}</style></head>'
            f"<body><h1>{title}</h1><p>{told}</p>"
            '<label>Drop images here, or press to choose<input type="file" accept="image/*"'
            ' multiple></label><main id="found"></main>'
            f"<script>{_SCRIPT}</script></body></html>"
        )

    def classify(self, body: bytes, name: str) -> dict[str, Any]:
        """Return what the model says of an image, most probable class first.

        Raises:
            DataError: If it cannot be read.
        """
        item: Any = partial(bytes, body)
        item.name = name  # by which messages call it
        with self.turn:
            (image,) = self.classifier.items([item]).tried()
            if isinstance(image, DataError):
                raise image
            (said,) = self.classifier.predict(image[None])
        return {"class": said.class_name, "probabilities": said.probabilities}


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server: DemoServer

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/":
            self._answer(HTTPStatus.OK, "text/html", self.server.page())
        else:
            self._say(HTTPStatus.NOT_FOUND, error="there is no such page")

    def do_POST(self) -> None:
        parts, length = urlsplit(self.path), self.headers.get("Content-Length", "")
        if parts.path != "/predict":
            return self._say(HTTPStatus.NOT_FOUND, error="there is no such page")
        if not length.isdecimal():
            return self._say(HTTPStatus.LENGTH_REQUIRED, error="its size must be given")
        if int(length) > MOST_BYTES:
            size = f"it has more than {MOST_BYTES // 2**20} MiB"
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error=size)
        name = parse_qs(parts.query).get("name", ["sent"])[0]
        try:
            said = self.server.classify(self.rfile.read(int(length)), name)
        except DataError as error:
            return self._say(HTTPStatus.UNPROCESSABLE_ENTITY, error=str(error))
        return self._say(HTTPStatus.OK, **said)

    def _say(self, status: HTTPStatus, **fields: Any) -> None:
        self._answer(status, "application/json", json.dumps(fields))

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing of every request."""
