"""Pictures of the dashboard and of the HTML report, to be looked at.

    python scripts/screenshots.py FOLDER [--study NAME]

Makes a small study in FOLDER unless there is one, serves it with ``flatsearch dashboard``, and
saves screenshots of the study list, the study's pages, a trial of the front with its artifacts, and
of the page that ``flatsearch report --html`` writes: as wide as a window and as a phone, light and
dark. Needs Chromium and the extra "test".
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
from playwright.sync_api import Page, sync_playwright

from flatsearch.analysis.summary import summarise
from flatsearch.search.storage import open_storage
from flatsearch.search.study import load_study

FLATSEARCH = [sys.executable, "-m", "flatsearch"]
DATABASE = "flatsearch.db"
SEARCH = ["run", "--space", "plain_cnn", "--epochs", "3", "--trials", "14"]
# The dashboard draws after it has loaded, and asks for the trials again every few seconds.
SETTLED_MS = 4000
VIEWS = {"wide": {"width": 1280, "height": 1050}, "phone": {"width": 390, "height": 844}}


def shoot(page: Page, url: str, path: Path) -> None:
    """Save what an address shows, as far down as it goes."""
    view = page.viewport_size or VIEWS["wide"]
    page.goto(url)
    page.wait_for_timeout(SETTLED_MS)
    # The dashboard scrolls inside of the page, so that the window has to be high enough.
    drawn = "[...document.querySelectorAll('.MuiCard-root, .MuiTypography-root, img, table')]"
    lowest = page.evaluate(f"Math.max(0, ...{drawn}.map(e => e.getBoundingClientRect().bottom))")
    page.set_viewport_size({**view, "height": max(view["height"], int(lowest) + 20)})
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    print(path, "" if wide <= view["width"] else f"is {wide} pixels wide")
    page.set_viewport_size(view)


def pages(folder: Path, address: str, study: str | None) -> dict[str, str]:
    """Return the addresses to look at by name."""
    summary = summarise(load_study(study, open_storage(f"sqlite:///{folder / DATABASE}")))
    best = f"?numbers={summary.front[0]}" if summary.front else ""
    return {
        "list": address.split("/studies")[0],
        "history": address,
        "analytics": f"{address}/analytics",
        "trials": f"{address}/trials{best}",
        "table": f"{address}/trialTable",
        "note": f"{address}/note",
        "report": (folder / "report.html").resolve().as_uri(),
    }


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", help="of the folder's database (default: the only one)")
    parser.add_argument("--only", nargs="*", metavar="PAGE", help="such as report, note, trials")
    args = parser.parse_args()
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not (folder / DATABASE).exists():
        subprocess.run([*FLATSEARCH, *SEARCH], cwd=folder, check=True)
    study = [args.study] if args.study else []
    report = ["report", *study, "--html", "report.html", "--force"]
    subprocess.run([*FLATSEARCH, *report], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        [*FLATSEARCH, "dashboard", *study, "--port", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = server.stdout.readline().strip() if server.stdout else ""
        if not address:
            sys.exit("flatsearch dashboard did not start; its message is above")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            for kind, view in VIEWS.items():
                for scheme in ("light", "dark"):
                    page = browser.new_page(viewport=view, color_scheme=scheme)
                    for name, url in pages(folder, address, args.study).items():
                        if not args.only or name in args.only:
                            shoot(page, url, folder / f"{name}-{kind}-{scheme}.png")
                    page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
