import json
import os
import re
import subprocess
import sys
from array import array
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from pelton.bench import Plan, render_html, render_table
from pelton.bench.load import Samples, Window
from pelton.bench.results import Report, Step, summarize
from pelton.bench.search import claim, notes
from pelton.bench.table import number

HEAD = b"HTTP/1.1 200 OK\r\npelton-batch-rows: %d\r\nserver-timing: queue;dur=%.3f, run;dur=%.3f"


def step(kind: str, rate: float, *, callers: int = 0, slow: int = 0, refused: int = 0, bare: bool = False) -> Step:
    """1,000 requests in 1 s: latencies around 8 ms, `slow` of them 30 ms, `refused` after 1 ms."""
    samples, late = Samples(), array("d")
    for i, latency in enumerate(np.random.default_rng(1).uniform(0.006, 0.010, 1_000).tolist()):
        status, head = 200, b"" if bare else HEAD % (4, 2.0, latency * 500)
        if i < slow:
            latency = 0.030
        elif i >= 1_000 - refused:
            latency, status, head = 0.001, 503, b""
        samples.add(i / 1_000, i / 1_000 + 0.0005, latency, status, head)
        late.append(0.0001)
    window = Window(samples, 0.0, 1.0, late, 0.3, False)
    return summarize(window, kind, 20.0, 0.99, offered=rate, callers=callers)


def make(steps: list[Step], held: float | None, **changes) -> Report:
    fields = {
        "name": "fraud & <b>score</b>",
        "url": "http://127.0.0.1:8080/v2/models/fraud/infer",
        "p99_ms": 20.0,
        "bodies": 64,
        "body_bytes": 264.0,
        "plan": Plan(),
        "started": "2026-11-23T10:00:00+00:00",
        "seconds": 51.0,
        "server": "pelton",
        "environment": {"Processor": "A & B", "Python": "CPython 3.11"},
        "command": "pelton bench fraud --p99 '20 <ms>'",
        "steps": steps,
        "capacity": 1_000.0,
        "held": held,
        "claim": claim(Plan(), 20.0, steps, held),
        "notes": notes(Plan(), 20.0, steps, 512),
    }
    return Report(**{**fields, **changes})


def full() -> Report:
    return make(
        [
            step("closed", 0.0, callers=1),
            step("closed", 0.0, callers=32),
            step("probe", 800.0, slow=2),
            step("probe", 1_200.0, slow=300),
            step("confirm", 1_000.0, slow=2),
            step("curve", 250.0),
            step("overload", 2_000.0, refused=500),
        ],
        1_000.0,
    )


class Strict(HTMLParser):
    """Fails on a tag that is closed wrongly; collects tags, attributes and text."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(report: Report) -> Strict:
    parser = Strict()
    parser.feed(render_html(report))
    parser.close()
    assert parser.stack == []
    return parser


def test_a_step_counts_what_was_slow_refused_and_good() -> None:
    made = step("probe", 1_000.0, slow=10, refused=100)
    assert (made.requests, made.ok, made.refused, made.over) == (1_000, 900, 100, 110)
    assert made.good < made.answered
    assert made.refusal.p50 == pytest.approx(1.0)
    assert made.latency.max == pytest.approx(30.0)


def test_stages_add_up_to_the_latency() -> None:
    made = step("probe", 1_000.0)
    assert made.stages.total == pytest.approx(made.latency.mean)
    assert made.stages.generator == pytest.approx(0.5)
    assert made.stages.queue == pytest.approx(2.0)
    assert made.stages_tail.total == pytest.approx(10.0, rel=0.02)


def test_the_bound_of_p99_leaves_as_many_over_as_the_confidence_allows() -> None:
    made = step("probe", 1_000.0, slow=2)  # of 1,000, 2 may be over: the third slowest is the bound
    assert 9.0 < made.bound_ms < 10.0
    assert step("probe", 1_000.0, slow=3).bound_ms == pytest.approx(30.0)
    assert step("probe", 1_000.0, refused=3).bound_ms is None


def test_the_claim_names_the_requests_that_it_rests_on() -> None:
    assert full().claim == (
        "At 1,000 requests/s, p99 ≤ 20 ms holds with 99 % confidence: 2 of 1,000 requests were over."
    )
    refused = make([step("confirm", 1_000.0, refused=2)], 1_000.0)
    assert "2 of 1,000 requests were over, 2 of them refused or failed" in refused.claim


def test_without_a_rate_that_holds_the_claim_says_so() -> None:
    report = make([step("probe", 800.0, slow=300), step("probe", 500.0, slow=300)], None)
    assert report.claim.startswith("No rate was shown to hold p99 ≤ 20 ms")
    assert "500 requests/s, 300 of 1,000" in report.claim
    assert report.claim in parsed(report).text


def test_a_generator_at_its_own_limit_is_admitted() -> None:
    busy = msgspec.structs.replace(step("probe", 900.0), generator_cpu=0.97, generator_late_ms=7.0)
    found = " ".join(notes(Plan(), 20.0, [busy], 100))
    assert "whole core" in found
    assert "7.0 ms late" in found
    assert "100 connections instead of 512" in found
    assert notes(Plan(), 20.0, [step("probe", 900.0)], 512) == []


def test_the_table_is_aligned_and_has_a_line_per_step() -> None:
    text = render_table(full())
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("load"))
    table = lines[start : start + 8]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, lines[start : start + 8])) <= 120
    assert [line.split("  ")[0] for line in table[1:]] == [
        "1 caller", "32 callers", "250/s", "800/s", "1,000/s *", "1,200/s", "2,000/s (overload)",
    ]  # fmt: skip
    assert "50 % refused, after 1.00 ms at the median" in text


def test_the_html_is_one_well_formed_file_that_loads_nothing() -> None:
    parser = parsed(full())
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert "img" not in parser.tags
    assert not [name for name, _ in parser.attributes if name in ("src", "href", "srcset", "onclick")]
    assert not re.search(r"url\(|@import", render_html(full()))
    assert parser.tags.count("svg") == 6


def test_names_and_commands_are_escaped() -> None:
    html = render_html(full())
    assert "<b>score</b>" not in html
    assert "fraud &amp; &lt;b&gt;score&lt;/b&gt;" in html
    assert "20 &lt;ms&gt;" in html


def test_every_drawn_number_is_finite_and_inside_the_drawing() -> None:
    html = render_html(full())
    assert "nan" not in re.sub(r"<title>.*?</title>", "", html).lower()
    assert not re.search(r'="-?inf', html)
    for x in re.findall(r'(?:cx|x|x1|x2)="(-?[\d.]+)"', html):
        assert 0 <= float(x) <= 480
    for y in re.findall(r'(?:cy|y|y1|y2)="(-?[\d.]+)"', html):
        assert 0 <= float(y) <= 300


def test_a_server_that_names_no_stages_gets_a_report_without_them() -> None:
    parser = parsed(make([step("closed", 0.0, callers=1, bare=True), step("confirm", 900.0, bare=True)], 900.0))
    assert parser.tags.count("svg") == 3  # latency, histogram, goodput
    assert "Where the time went" not in parser.text


def test_a_report_of_refusals_only_is_still_drawn() -> None:
    parser = parsed(make([step("closed", 0.0, callers=1), step("probe", 900.0, refused=1_000)], None, capacity=0.0))
    assert "No rate was shown" in parser.text


def test_a_report_survives_json() -> None:
    report = full()
    text = msgspec.json.encode(report)
    again = msgspec.json.decode(text, type=Report)
    assert again.claim == report.claim
    assert again.confirmed == report.confirmed
    assert json.loads(text)["steps"][0]["requests"] == 1_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.1234, "0.12"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_have_about_three_digits(value, text) -> None:
    assert number(value) == text


def test_importing_the_bench_imports_nothing_heavy() -> None:
    code = "import sys, pelton.bench; print([m for m in ('numpy', 'msgspec', 'asyncio', 'uvloop') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
