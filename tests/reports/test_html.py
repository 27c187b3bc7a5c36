"""The HTML page: offline in a real browser, and what is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from flatsearch import UsageError, record
from flatsearch.analysis.summary import summarise
from flatsearch.cli import main
from flatsearch.networks.layers import Layer
from flatsearch.reports.drawings import picture
from flatsearch.reports.html import write_page
from flatsearch.search.storage import open_storage
from tests.cases import add, final_training, large_study, small_study, study_of

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

NASTY = "</script><script>document.title = 'owned'</script><img src=http://localhost:1/x.png>"
# Also away from any figure and table, the page has to say so.
WITHOUT = "delete window.DecompressionStream"


class Opened:
    """A page without a network, and what it asked for and complained about."""

    def __init__(self, browser: Browser, path: Path, before: str = "", **options: Any) -> None:
        context = browser.new_context(offline=True, **options)
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        if before:
            self.page.add_init_script(before)
        self.page.goto(path.resolve().as_uri())

    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="module")
def on_a_phone(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("phone") / "page.html"
    write_page(summarise(large_study(60)), path)
    opened = Opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme="dark")
    opened.page.wait_for_selector("body[data-drawn]", timeout=60_000)
    return opened


def test_every_figure_is_drawn_without_a_network(on_a_phone: Opened) -> None:
    opened = on_a_phone
    drawn = opened.page.eval_on_selector_all(
        ".figure", "all => all.map(e => [e.id, e.querySelectorAll('.main-svg .trace').length > 0])"
    )
    assert drawn == [
        [f"figure-{name}", True] for name in ("front", "epochs", "gap", "layers", "budget")
    ]
    assert opened.outside() == []
    assert opened.errors == []
    assert opened.page.locator("#missing").is_hidden()
    points = opened.page.locator("#figure-front .scatterlayer .point").count()
    assert points == 60


def test_a_browser_that_cannot_inflate_says_so(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(summarise(small_study()), path)
    opened = Opened(browser, path, WITHOUT)
    opened.page.wait_for_selector("#missing:visible", timeout=20_000)
    assert "any from 2023 or later" in opened.page.locator("#missing").inner_text()
    assert opened.page.locator(".figure:visible").count() == 0
    assert opened.page.locator("td").count() > 5  # the tables are there all the same


def test_what_users_name_is_text(browser: Browser, tmp_path: Path) -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0), (0.9, 2.0)], words=NASTY)
    record.write_study(study, settings={"space": NASTY, "data": NASTY, "epochs": 2})
    nasty = optuna.create_study(study_name=NASTY, directions=study.directions)
    nasty.set_metric_names(["a" + NASTY, "b"])
    nasty.add_trials(study.trials)
    record.write_study(nasty, settings={"space": NASTY, "data": NASTY, "epochs": 2})
    path = tmp_path / "page.html"
    write_page(summarise(nasty), path)
    opened = Opened(browser, path)
    opened.page.wait_for_selector("body[data-drawn]", timeout=60_000)
    assert opened.page.title() == NASTY
    assert opened.page.locator("h1").inner_text() == NASTY
    assert opened.page.locator("img[src*=localhost]").count() == 0
    assert opened.outside() == []


def test_what_the_page_says(tmp_path: Path) -> None:
    study = small_study()
    record.write_study(study, settings={"space": "toys", "data": "digits", "epochs": 2})
    path = tmp_path / "page.html"
    write_page(summarise(study), path)
    text = path.read_text()
    assert "Search space toys on digits, 2 epochs per trial." in text
    cells = {"trial": "1", "accuracy": "0.600", "flatness": "1"}
    row = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in cells.items())
    assert f"<tr>{row}<td>3</td></tr>" in text
    assert ">Stop early? It saved 17% of the epochs; nothing was run on to see" in text
    assert "No figure of flatness by layer: measuring all would take more than 5% of a tr" in text
    assert "Pruning stopped 2 trials and saved 2 of 12 epochs (17%)." in text
    assert '<td data-label="setting">epochs</td><td>2</td>' in text
    best = text.index("Best trials by accuracy</h2>")
    order = re.findall(
        r'<tr><td data-label="trial">(\d+)</td>', text[best : text.index(">Settings</h2>")]
    )
    assert order == ["0", "1", "2"]  # the infeasible ones are not among them
    assert path.stat().st_size < 3_000_000


def test_nothing_is_wider_than_a_phone(on_a_phone: Opened) -> None:
    page = on_a_phone.page
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_final_model_and_the_networks_are_on_the_page(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    drawn = picture([Layer("conv 3x3", 8, 4, 4, 80), Layer("linear", 3, 0, 0, 27)])
    write_page(summarise(small_study()), path, final=final_training(3), networks={0: drawn})
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=60_000)
    links = page.locator("nav a")
    assert {"The final model, of trial 0", "Networks"} < set(links.all_inner_texts())
    for link in links.all():  # every link goes to a heading
        assert link.inner_text()
        assert page.locator(f"h2{link.get_attribute('href')}").count() == 1
    assert "2-class-number" in page.locator("#true-class-by-predicted-class + table").inner_text()
    assert page.locator("#how-sure-the-model-is-and-how-often-it-is-right + table").count() == 1
    page.locator("details", has=page.locator("svg")).locator("summary").click()
    assert page.locator("svg.network rect").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_tables_are_sorted_by_what_their_cells_mean(browser: Browser, tmp_path: Path) -> None:
    study = study_of("accuracy", "flatness")
    for point in ((0.7, 900.0), (0.8, 26_700.0), (0.6, 1.5e6)):
        add(study, [point])
    path = tmp_path / "page.html"
    write_page(summarise(study), path)
    page = Opened(browser, path).page
    heading = page.locator("h2", has_text="Best trials").get_attribute("id")
    table = page.locator(f"#{heading} + table")

    def column() -> list[str]:
        return table.locator("tbody tr td:nth-child(3)").all_inner_texts()

    table.locator("th:nth-child(3) button").click()
    assert column() == ["900", "26700", "1.5e+06"]
    table.locator("th:nth-child(3) button").click()
    assert column() == ["1.5e+06", "26700", "900"]
    assert table.locator("th:nth-child(3)").get_attribute("aria-sort") == "descending"
    cells = ["38 s", "2.5 min", "26.7k", "0.98 ± 0.1", "20.5 kB", "1,234"]
    assert page.evaluate(f"{cells}.map(worth)") == [38, 150, 26700, 0.98, 20500, 1234]


def test_large_studies_fit(tmp_path: Path) -> None:
    write_page(summarise(large_study(2000)), tmp_path / "page.html")
    assert 1_000_000 < (tmp_path / "page.html").stat().st_size < 3_000_000


def test_an_empty_study_is_a_page_too(tmp_path: Path) -> None:
    write_page(summarise(study_of("accuracy", "flatness")), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Trials: none." in text
    assert 'class="figure"' not in text


def test_an_existing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    summary = summarise(small_study())
    with pytest.raises(UsageError, match=r"page.html' exists; `force` overwrites it"):
        write_page(summary, path)
    assert path.read_text() == "mine"
    write_page(summary, path, force=True)
    assert path.read_text().startswith("<!doctype html>")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(UsageError, match="is a folder"):
        write_page(summary, tmp_path, force=True)
    with pytest.raises(UsageError, match=r"the folder '.*nowhere' of the file to write"):
        write_page(summary, tmp_path / "nowhere" / "page.html")


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(
        storage=open_storage("sqlite:///flatsearch.db"),
        study_name="stored",
        directions=["maximize", "minimize"],
    )
    study.add_trials(small_study().trials)
    assert main(["report", "--html", "page.html"]) == 0
    assert "page.html" in capsys.readouterr().err
    assert "<title>stored</title>" in (tmp_path / "page.html").read_text()
    assert main(["report", "--html", "page.html"]) == 2
    error = capsys.readouterr().err
    assert error == ("flatsearch report: error: 'page.html' exists; --force overwrites it\n")
    assert main(["report", "--html", "page.html", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "stored"
