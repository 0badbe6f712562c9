"""Make docs/report-run.png and docs/report-sweep.png: screenshots of a real run's and a real sweep's report.

    python docs/report_pictures.py

Needs Chromium and the data in DLTRAIN_DATA. Takes about five minutes on two cores.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
RUN = ("model=attention", "data=mnist", "epochs=3", "optim=adamw", "optim.lr=0.002", "device.threads=1")
SWEEP = ("-m", "model=mlp,cnn", "optim.lr=0.1,0.05,0.02", "seed=0,1,2", "epochs=5")


def train(folder: str, *overrides: str) -> None:
    subprocess.run([sys.executable, "-m", "dltrain", "train", *overrides], cwd=folder, check="-m" not in overrides)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        train(folder, *RUN)
        train(folder, *SWEEP)
        (sweep,) = Path(folder).glob("outputs/sweeps/*/*/report.html")
        (run,) = Path(folder).glob("outputs/2*/*/report.html")
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for path, scheme, height in ((run, "light", 2450), (sweep, "dark", 1960)):
            page = browser.new_page(viewport={"width": 1200, "height": height}, color_scheme=scheme)
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-drawn=yes]")
            page.evaluate("document.querySelectorAll('details').forEach(it => { it.open = false; })")
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(255)
            image.save(DOCS / f"report-{'run' if path == run else 'sweep'}.png", optimize=True)


if __name__ == "__main__":
    main()
