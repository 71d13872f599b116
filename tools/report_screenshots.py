"""Pictures of a report for the docs, light and dark, by headless Chromium.

    grpo-gym train configs/experiments/tiny_leg_counting.yaml output_dir=outputs/report_example
    grpo-gym report outputs/report_example
    python tools/report_screenshots.py outputs/report_example/report.html docs

writes docs/report_light.png, docs/report_dark.png and docs/report_completions.png.
Needs the dev extra (selenium) and Debian's chromium and chromium-driver (tools/ci_system_packages.sh).
"""

from __future__ import annotations

import argparse
import base64
import time
from pathlib import Path

from selenium import webdriver

WIDTH = 1280


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    browser = open_browser()
    try:
        for name, theme, anchor, height in PICTURES:
            path = args.folder / f"report_{name}.png"
            path.write_bytes(picture(browser, args.report, theme, anchor, height))
            print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")
    finally:
        browser.quit()


PICTURES = (
    ("light", "light", None, 1240),
    ("dark", "dark", None, 1240),
    ("completions", "light", "samples", 900),
)
"""Name, theme, id of the element at the top, and height in pixels."""


def open_browser() -> webdriver.Chrome:
    """Debian's Chromium, without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={WIDTH},1300",
    ):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))


def picture(browser: webdriver.Chrome, report: Path, theme: str, anchor: str | None, height: int) -> bytes:
    """PNG of the page from its top, or from an element on."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.get(report.resolve().as_uri())
    while browser.execute_script("return document.documentElement.dataset.ready") != "true":
        time.sleep(0.1)
    time.sleep(0.5)  # the list and the charts draw on the next frames
    find = "return document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY - 20"
    top = browser.execute_script(find, anchor) if anchor else 0
    clip = {"x": 0, "y": top, "width": WIDTH, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(shot["data"])


if __name__ == "__main__":
    main()
