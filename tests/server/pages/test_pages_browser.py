"""The page in a real browser: a form is filled in and sent. Skipped where Chromium and its driver are not installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.timeout(120),
]

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Runs in the page: opens a model, waits for its form, fills fields, sends it, and hands the answer's text back. Every
# wait is for a change of the document, so nothing hangs on the speed of the machine.
SCRIPT = """
const [name, values, done] = arguments;
function when(find, then) {
  const found = find();
  if (found) return then(found);
  const observer = new MutationObserver(() => {
    const late = find();
    if (late) { observer.disconnect(); then(late); }
  });
  observer.observe(document, { childList: true, subtree: true, characterData: true });
}
when(() => document.getElementById(name), (model) => {
  model.open = true;
  when(() => model.querySelector("form"), (form) => {
    for (const [field, value] of Object.entries(values)) form.elements[field].value = value;
    const out = model.querySelector(".answer");
    form.requestSubmit();
    when(() => out.querySelector(".times, .bad"), () => done([out.textContent, model.querySelector("form").textContent,
      [...model.querySelectorAll(".curl pre")].map((line) => line.textContent)]));
  });
});
"""


class Browser:
    """A headless Chromium, driven over the W3C WebDriver protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        assert DRIVER
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        port = next(
            match[1] for line in self.driver.stdout if (match := re.search(r"successfully on port (\d+)", line))
        )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self._base = "/session"
        try:
            self._open(profile)
        except BaseException:
            self.close()
            raise

    def _open(self, profile: Path) -> None:
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", capabilities={"alwaysMatch": wanted})
        self._base = f"/session/{session['sessionId']}"
        self._call("POST", f"{self._base}/timeouts", script=45_000)

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(method, path, json=body if method == "POST" else None).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def visit(self, url: str) -> None:
        self._call("POST", f"{self._base}/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("POST", f"{self._base}/execute/async", script=script, args=list(arguments))

    def complaints(self) -> list[str]:
        """What the browser's console holds: script errors, and what the page's own policy blocked."""
        return [entry["message"] for entry in self._call("POST", f"{self._base}/se/log", type="browser")]

    def close(self) -> None:
        try:
            self._http.delete(self._base)
        finally:
            self._http.close()
            self.driver.terminate()
            self.driver.wait(20)
            assert self.driver.stdout is not None
            self.driver.stdout.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_a_form_is_filled_in_sent_and_answered(server: Any, browser: Browser) -> None:
    browser.visit(server.url + "/docs")
    answer, form, _ = browser.run(SCRIPT, "people", {"age": "2", "member": "false", "children": "", "country": "AT"})
    assert re.search(r"yes0\.88", answer), answer  # softmax of 0 and 2: two years, not a member, no children, code 0
    assert "batch of 1 row" in answer
    assert re.search(r"run [\d.]+ ms", answer)
    assert "may be left out" in form


def test_the_example_is_prefilled_for_every_kind_of_field(server: Any, browser: Browser) -> None:
    browser.visit(server.url + "/docs")
    for name, says in (("linear", "y = [ 0, 0 ]"), ("grey", "mean = 128"), ("words", '"text"'), ("people", "yes1")):
        answer, _, _ = browser.run(SCRIPT, name, {})
        assert says in answer, (name, answer)


def test_a_wrong_value_is_answered_with_the_servers_own_words(server: Any, browser: Browser) -> None:
    browser.visit(server.url + "/docs")
    answer, _, _ = browser.run(SCRIPT, "linear", {"x": "[1, 2]"})
    assert "400: " in answer
    assert "'x'" in answer


def test_the_curl_lines_work_when_pasted(server: Any, browser: Browser) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    browser.visit(server.url + "/docs")
    for name in ("people", "grey", "linear", "words"):
        _, _, lines = browser.run(SCRIPT, name, {})
        assert len(lines) >= 2
        for line in lines:
            if "picture.png" in line:
                continue  # a file of the reader's own
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, line
            assert '"error"' not in done.stdout, (line, done.stdout)
            assert done.stdout.startswith("{")


def test_the_browser_has_nothing_to_complain_of(server: Any, browser: Browser) -> None:
    browser.complaints()
    browser.visit(server.url + "/docs")
    browser.run(SCRIPT, "people", {})
    assert browser.complaints() == []
