"""Makes the pictures of the README from the example model: `python docs/images/make.py`; needs Chromium with its driver.

Writes report.png (the page's graph, one fused node clicked) and diff.svg (what `graphopt diff` prints).
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from selenium import webdriver

import graphopt
from graphopt.presets import preset
from graphopt.report.diff import diff
from graphopt.report.html import write_report

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent.parent / "examples" / "digits"
SEARCH = "const box = document.getElementById('node-search'); box.value = 'gelu'; box.dispatchEvent(new Event('input'))"


def main() -> None:
    """Makes both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "model.opt.onnx"
        original = Path(shutil.copy(DIGITS / "attention.onnx", Path(folder) / "model.onnx"))
        graphopt.optimize(original, result, recipe=preset("exact").changed(verify="outputs"), data=DIGITS / "calib.npz")
        photograph(write_report(Path(folder) / "report.html", result, original, DIGITS / "calib.npz"), HERE / "report.png")
        console = Console(record=True, width=150, file=io.StringIO())
        console.print(diff(original, result, DIGITS / "calib.npz"))
        console.save_svg(str(HERE / "diff.svg"), title="graphopt diff model.onnx model.opt.onnx --data calib.npz")


def photograph(page: Path, picture: Path) -> None:
    """Saves what the page's graph looks like after a search."""
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_window_size(1440, 900)
    browser.get(page.as_uri())
    for script in ("location.hash = '#graph'", SEARCH, "graphoptReport.drawing.zoom(0.6)"):
        browser.execute_script(script)
        time.sleep(1)
    browser.save_screenshot(str(picture))
    browser.quit()


if __name__ == "__main__":
    main()
