"""The report in a real browser: what a reader sees and does."""

import json
import shutil
import time

import pytest

from grpo_gym.reporting.completions import write_completions
from grpo_gym.reporting.report import write_report
from tests.reporting.synthetic_run import TASKS, make_group, make_run, write_evaluation, write_log

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (the dev extra)")
missing = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"{' and '.join(missing)} not installed: run tools/ci_system_packages.sh as root on Debian",
)

EVIL = (
    "</script><script>window.hacked = 1</script>",
    '<img src="x" onerror="window.hacked = 2">',
    "<svg onload='window.hacked = 3'></svg>",
    "{{ 7 * 7 }} ${window.hacked = 4} \u2028 \x00 \ud800",
    "--><!-- <style>body { display: none }</style>",
)


class Page:
    """A report in a browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path):
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.resolve().as_uri())
        self.wait("return document.documentElement.dataset.ready === 'true'")
        return self

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def wait(self, condition, *args):
        end = time.monotonic() + 60
        while not self.js(condition, *args):
            assert time.monotonic() < end, f"{condition}: {self.driver.get_log('browser')}"
            time.sleep(0.02)

    def set(self, **values):
        """Fill in filters, by id with _ for -, and wait for the list."""
        for name, value in values.items():
            self.js(
                "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
                "document.getElementById('count').dataset.ready = '';"
                "field.dispatchEvent(new Event('input', { bubbles: true }))",
                name.replace("_", "-"),
                str(value),
            )
        self.wait("return document.getElementById('count').dataset.ready !== ''")
        self.settle()

    def settle(self):
        """Wait until the first text of the list is there."""
        self.wait("const s = document.querySelector('.row .snippet'); return !s || s.textContent !== ''")

    def count(self):
        """How many completions the list has."""
        text = self.js("return document.getElementById('count').textContent")
        return int(text.split()[0].replace(",", ""))

    def rows(self):
        """The text of the rows that are drawn, from the top."""
        self.settle()
        return self.js(
            "return [...document.querySelectorAll('.row')].sort((a, b) => a.dataset.index - b.dataset.index)"
            ".map(row => row.innerText)"
        )

    def detail(self, block="completion"):
        self.wait(f"return document.querySelector('[data-text={block}]') !== null")
        return self.js(f"return document.querySelector('[data-text={block}]').textContent")

    def complaints(self):
        """Errors and warnings of the console."""
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        """Everything the page asked for since it was opened."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def page():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"), steps=6, groups=4, size=4, max_steps=9)
    write_evaluation(folder, 0, {TASKS[0]: [True] + [False] * 9, TASKS[1]: [False] * 10})
    write_evaluation(folder, 6, {TASKS[0]: [True] * 9 + [False], TASKS[1]: [True] * 5 + [False] * 5})
    return write_report(folder)[0]


def test_it_renders_and_asks_for_nothing(page, report):
    page.open(report)
    charts = page.js("return [...document.querySelectorAll('[data-chart]')].map(f => f.dataset.chart)")
    assert charts == [
        "accuracy", "reward", "scores", "informative", "length", "clipped", "entropy", "kl", "time",
        "throughput", "loss", "grad_norm", "learning_rate",
    ]  # fmt: skip
    empty = page.js(
        "return [...document.querySelectorAll('.plot')].filter(p => !p.querySelector('path')).length"
    )
    assert empty == 0
    assert page.js("return document.body.innerText").count("NaN") == 0
    assert page.complaints() == []
    assert page.requests() == [report.resolve().as_uri(), "data:,"] or page.requests() == []


def test_before_and_after_per_task(page, report):
    page.open(report)
    rows = page.js(
        "return [...document.querySelectorAll('#evaluation-tasks tbody tr')]"
        ".map(r => [...r.children].map(c => c.innerText).filter(Boolean))"
    )
    assert rows == [
        ["leg_counting", "10", "10.0%", "90.0%", "+80.0"],
        ["chain_sum", "10", "0.0%", "50.0%", "+50.0"],
        ["all problems", "20", "5.0%", "70.0%", "+65.0"],
    ]


def test_reading_a_chart_with_the_keyboard_reads_all_of_them(page, report):
    page.open(report)
    page.js("document.querySelector('[data-chart=reward] .plot').focus()")
    press(page, "Home")
    page.wait("return document.querySelector('[data-chart=reward] .at').textContent === 'step 1'")
    page.wait("return document.querySelector('[data-chart=throughput] .at').textContent === 'step 1'")
    assert "0.105" in page.js("return document.querySelector('[data-chart=reward] .legend').textContent")
    assert "mean 0.105" in page.js(
        "return document.querySelector('[data-chart=reward] [aria-live]').textContent"
    )
    press(page, "ArrowRight")
    page.wait("return document.querySelector('[data-chart=entropy] .at').textContent === 'step 2'")


def test_hovering_a_chart_reads_it_and_a_click_shows_its_completions(page, report):
    from selenium.webdriver import ActionChains

    page.open(report)
    plot = page.driver.find_element("css selector", "[data-chart=reward] .plot")
    left_end = -plot.size["width"] // 2 + 52
    ActionChains(page.driver).move_to_element_with_offset(plot, left_end, 0).perform()
    page.wait("return document.querySelector('[data-chart=reward] .at').textContent === 'step 1'")
    ActionChains(page.driver).move_to_element_with_offset(plot, left_end, 0).click().perform()
    page.wait("return document.getElementById('step-to').value === '0'")
    page.wait("return document.getElementById('count').textContent.startsWith('16 of 96')")


def test_filters(page, report):
    page.open(report)
    assert page.count() == 96
    page.set(task=0)
    assert page.count() == 48
    assert all("leg_counting" in row for row in page.rows())
    page.set(step_from=2, step_to=3)
    assert page.count() == 16
    page.set(reward_from=0.5)
    found = page.rows()
    assert 0 < len(found) < 16
    assert {row.split()[0] for row in found} <= {"0.5", "1"}
    page.set(outcome="worst")
    assert page.count() == 0
    assert "No completion matches" in page.js("return document.getElementById('detail').innerText")
    page.js("document.getElementById('clear').click()")
    page.wait("return document.getElementById('count').textContent.startsWith('96 ')")


def test_search_finds_prompts_and_completions_and_marks_them(page, report):
    page.open(report)
    page.set(query="PROBLEM 3 of step 5")
    assert page.count() == 4
    page.wait("return document.querySelector('[data-text=prompt] mark') !== null")
    assert (
        page.js("return document.querySelector('[data-text=prompt] mark').textContent")
        == "Problem 3 of step 5"
    )
    page.set(query="<answer>")
    assert page.count() == 96
    page.set(query="no such thing.*")
    assert page.count() == 0


def test_sort(page, report):
    page.open(report)
    page.set(sort="-reward")
    assert page.rows()[0].split()[0] == "1"
    page.set(sort="reward")
    assert page.rows()[0].split()[0] == "0"
    page.set(sort="tokens")
    lengths = [int(row.split(" tokens")[0].split()[-1]) for row in page.rows()]
    assert lengths == sorted(lengths)
    page.set(sort="-step")
    assert "step 5" in page.rows()[0]


def test_a_text_keeps_its_whitespace_and_the_others_of_its_prompt_are_one_key_away(page, report):
    page.open(report)
    group = make_group(0, 0, TASKS[0], 4)
    assert page.detail("prompt") == group.prompt_text
    assert page.detail() == group.rollouts[0].completion_text
    assert page.js(
        "return getComputedStyle(document.querySelector('[data-text=prompt]')).whiteSpace"
    ).startswith("pre")
    page.js("document.getElementById('list').focus()")
    press(page, "ArrowDown")
    page.wait("return document.querySelector('#detail').dataset.row === '1'")
    assert page.detail() == group.rollouts[1].completion_text
    page.js("document.querySelectorAll('.siblings button')[3].click()")
    page.wait("return document.querySelector('#detail').dataset.row === '3'")
    assert page.detail() == group.rollouts[3].completion_text
    page.wait("return document.querySelector('.row[aria-selected=true]').dataset.index === '3'")


def test_theme_follows_the_system_and_can_be_chosen(page, report):
    def background():
        return page.js("return getComputedStyle(document.body).backgroundColor")

    def system(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("light")
    page.open(report)
    light = background()
    system("dark")
    dark = background()
    assert light != dark
    page.js("document.getElementById('theme').click()")
    assert background() == light
    page.open(report)
    assert background() == light  # the choice is kept
    page.js("document.getElementById('theme').click()")
    system("light")
    assert background() == dark
    page.js("document.getElementById('theme').click()")
    assert background() == light
    assert page.js("return document.getElementById('theme').textContent") == "Theme: auto"


def test_text_has_enough_contrast_in_both_themes(page, report):
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.open(report)
        page.settle()
        for text, behind in (
            (".lead", "body"), (".note", ".chart"), (".fact span", ".fact"), (".row .meta", ".list"), ("h1", "body"),
            (".reward.high", ".reward.high"), (".reward.low", ".reward.low"), (".text .tag", ".text"),
            ("td.up", ".table-card"), (".row[aria-selected=true] .task", ".row[aria-selected=true]"),
        ):  # fmt: skip
            ratio = contrast(color(page, text, "color"), color(page, behind, "backgroundColor"))
            assert ratio >= 4.5, f"{text} on {behind} in {scheme}: {ratio:.2f}"
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_that_can_be_operated_has_a_name(page, report):
    page.open(report)
    nameless = page.js(
        "return [...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')]"
        ".filter(e => !e.getAttribute('aria-label') && !(e.labels && e.labels.length) && !e.textContent.trim())"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("width", [380, 760, 1600])
def test_no_width_needs_sideways_scrolling(page, report, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.open(report)
    overflow = page.js("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert overflow <= 0


def test_nothing_a_model_writes_can_act(page, tmp_path):
    groups = []
    for number, text in enumerate(EVIL):
        group = make_group(0, number, text.encode("utf-8", "replace").decode(), 2)
        group.prompt_text, group.answer = group.task, group.task
        for rollout in group.rollouts:
            rollout.completion_text, rollout.metrics = group.task, {group.task: 1.0, "other": 0.0}
        groups.append(group)
    write_completions(tmp_path, 0, groups)
    write_log(tmp_path, 2, 2)
    entry = {"step": 2, "reward": 0.5, **{f"rewards/{text}/mean": 0.5 for text in EVIL[:3]}}
    with (tmp_path / "log_history.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    write_evaluation(tmp_path, 2, {text: [True] for text in EVIL[:3]})
    (tmp_path / "config.yaml").write_text(
        "training:\n  run_name: '</title><img src=x onerror=window.hacked=5>'\n"
    )
    path, _ = write_report(tmp_path)
    page.open(path)
    for row in range(len(EVIL) * 2):
        page.js("document.getElementById('list').focus()")
        page.wait("return document.querySelector('#detail').dataset.row === arguments[0]", str(row))
        assert page.detail() == groups[row // 2].task
        assert page.detail("prompt") == groups[row // 2].task
        press(page, "ArrowDown")
    assert page.js("return window.hacked") is None
    assert (
        page.js("return document.querySelectorAll('img, [onload], [onerror], style').length") == 1
    )  # its own style
    assert page.js("return getComputedStyle(document.body).display") == "block"
    page.set(query="<img")
    assert page.count() == 2
    assert page.js("return window.hacked") is None
    assert page.complaints() == []


def test_a_hundred_thousand_completions(page, tmp_path):
    make_run(tmp_path, steps=50, groups=100, size=20)
    path, _ = write_report(tmp_path)
    page.open(path)
    assert page.count() == 100_000
    assert len(page.rows()) < 60
    page.js("document.getElementById('list').focus()")
    press(page, "End")
    page.wait("return document.querySelector('#detail').dataset.row === '99999'")
    assert page.js("return document.querySelector('.row[aria-selected=true]').dataset.index") == "99999"
    assert make_group(49, 99, TASKS[1], 20).rollouts[-1].completion_text == page.detail()
    page.js("document.getElementById('list').scrollTop = 3e6")
    page.wait("return [...document.querySelectorAll('.row')].some(row => row.dataset.index === '50000')")
    page.set(query="Problem 42 of step 17:")
    assert page.count() == 20
    page.set(query="", sort="-tokens")
    assert "60 tokens" in page.rows()[0]
    assert page.complaints() == []


@pytest.mark.parametrize("missing_part", ["completions", "log_history.jsonl"])
def test_a_run_that_lacks_something_still_renders(page, tmp_path, missing_part):
    make_run(tmp_path, steps=2)
    target = tmp_path / missing_part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    page.open(write_report(tmp_path)[0])
    assert page.complaints() == []


def press(page, key):
    from selenium.webdriver.common.keys import Keys

    names = {"Home": Keys.HOME, "End": Keys.END, "ArrowDown": Keys.ARROW_DOWN, "ArrowRight": Keys.ARROW_RIGHT}
    page.driver.switch_to.active_element.send_keys(names[key])


def color(page, selector, name):
    """Red, green, blue from 0 to 1 of a computed colour."""
    text = page.js(f"return getComputedStyle(document.querySelector({json.dumps(selector)})).{name}")
    assert text.startswith("rgb("), text
    return [int(part) / 255 for part in text[4:-1].split(",")]


def contrast(one, other):
    """WCAG 2.2's contrast ratio."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
