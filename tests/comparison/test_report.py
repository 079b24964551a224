"""What a comparison's folder says, and the page about it in a real browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from regard.base.errors import UserError
from regard.base.files import slug
from regard.comparison import permutation, report, report_charts, report_maps
from regard.comparison.results import Comparison
from stored import CLASSES, curves, fit, store

EVIL = "<script>alert(1)</script>"


def test_reads_runs_scores_and_gaps(tmp_path):
    comparison = Comparison.load(store(tmp_path, failed=[("se", 3)], missing=[("wider", 7)]))
    assert comparison.arms == ["none", "se", "cbam[squeeze=max]", "wider"]
    assert comparison.seeds == list(range(8))
    assert [(run["arm"], run["seed"]) for run in comparison.failed] == [("se", 3)]
    assert comparison.missing == [("wider", 7)]
    assert len(comparison.done) == 30
    assert sorted(comparison.scores["se"]) == [0, 1, 2, 4, 5, 6, 7]
    assert [(v.arm, v.against) for v in comparison.verdicts] == [
        ("se", "none"), ("cbam[squeeze=max]", "none"), ("wider", "none"),
        ("se", "wider"), ("cbam[squeeze=max]", "wider"),
    ]  # fmt: skip
    assert [v.word for v in comparison.against("none")][1] == "better by more than the margin"


def test_the_table_agrees_with_the_files(tmp_path):
    comparison = Comparison.load(store(tmp_path, gains={"se": 0.02}, seeds=range(7)))  # none is always an arm
    assert comparison.missing == [("none", seed) for seed in range(7)]
    comparison = Comparison.load(store(tmp_path, gains={"se": 0.02, "none": 0.0}, seeds=range(7)))
    assert comparison.arms == ["none", "se"]
    files = [json.loads(path.read_text()) for path in tmp_path.glob("runs/se/*.json")]
    row = comparison.table()[1]
    assert float(row["accuracy %"].split()[0]) == pytest.approx(100 * sum(run["top1"] for run in files) / 7, abs=0.005)
    assert row["runs"] == "7/7"
    assert row["verdict"] == comparison.verdicts[0].word


def test_text_for_the_terminal(tmp_path):
    text = str(
        Comparison.load(store(tmp_path, failed=[("se", 3)], missing=[("wider", 7)], broken=[("a.jpg", "cut short")]))
    )
    assert all(len(line) < 200 for line in text.splitlines())
    for piece in ("cbam[squeeze=max]", "better", "Failed: se, seed 3: the loss became NaN", "wider seed 7", "a.jpg",
                  "Slow: cbam[squeeze=max] takes 1.25 times"):  # fmt: skip
        assert piece in text


def test_a_run_that_needed_a_second_try_is_named(tmp_path):
    path = store(tmp_path, gains={"none": 0.0, "se": 0.02}) / "runs" / "se" / "seed-0002.json"
    record = json.loads(path.read_text())
    for layout, words in (
        ("contiguous_format", "in the contiguous memory layout, finished"),
        ("channels_last", "try finished"),
    ):
        path.write_text(json.dumps(record | {"killed": "SIGSEGV", "layout": layout}))
        (note,) = [n for n in Comparison.load(tmp_path).notes() if "SIGSEGV" in n]
        assert note.startswith("Tried again: se, seed 2: ")
        assert words in note


def test_late_seeds_and_arms_are_counted(tmp_path):
    folder = store(tmp_path, gains={"none": 0.0, "se": 0.02}, later=[8, 9])
    comparison = Comparison.load(folder)
    assert comparison.added_after_looking == ([], [8, 9])
    assert "2 seeds (8, 9)" in str(comparison)
    stored = json.loads((folder / "question.json").read_text())
    stored["asked"][1] |= {"arms": ["none", "eca"], "seeds": [0, 1]}
    (folder / "question.json").write_text(json.dumps(stored))
    late = Comparison.load(folder)
    assert late.added_after_looking == (["eca"], [])
    assert late.missing == [("eca", 0), ("eca", 1)]


@pytest.mark.parametrize("seeds", [range(0), range(1), range(2), range(3), range(8)])
def test_json_is_strict_whatever_is_there(tmp_path, seeds):
    comparison = Comparison.load(store(tmp_path, gains={"none": 0.0, "se": 0.01}, seeds=seeds, cost=False))
    written = json.loads(comparison.save().read_text(), parse_constant=pytest.fail)  # NaN or Infinity would call it
    assert written == comparison.to_json()
    assert len(written["verdicts"][0]["differences"]) == len(seeds)
    if len(seeds) < 6:
        assert written["verdicts"][0]["low"] is None
        assert written["verdicts"][0]["word"] == "undecided"
    assert report.write(comparison).stat().st_size > 10_000
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no comparison"):
        Comparison.load(tmp_path)
    store(tmp_path)
    (tmp_path / "cost.json").write_text("{")
    with pytest.raises(UserError, match=r"cost\.json"):
        Comparison.load(tmp_path)


def test_slugs_are_safe_and_never_collide():
    arms = ["se", "cbam[squeeze=max]", "cbam(squeeze=max)", "cbam_squeeze=max_", "../../etc", EVIL, "ä", "ö"]
    slugs = [slug(arm) for arm in arms]
    assert len(set(slugs)) == len(arms)
    assert slugs[0] == "se"
    assert all(re.fullmatch(r"[A-Za-z0-9=,._-]+", text) and "/" not in text for text in slugs)


def test_headline_counts_when_there_are_many_arms(tmp_path):
    few = Comparison.load(store(tmp_path / "few"))
    assert report.headline(few.against("none")).startswith(
        "Better than none by more than the margin: cbam[squeeze=max]."
    )
    gains = {"none": 0.0} | {f"arm{i}": 0.05 * (i < 2) for i in range(5)}
    many = Comparison.load(store(tmp_path / "many", gains=gains, seeds=range(10)))
    assert report.headline(many.against("none")).startswith(
        "Better than none by more than the margin: 2 of 5 variants."
    )
    assert report.headline([]) == "Undecided"


class Outline(HTMLParser):
    """The facts of a page that need no browser."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.unnamed: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]
        if (tag == "img" and not named.get("alt")) or (tag == "th" and not named.get("scope")):
            self.unnamed.append(self.get_starttag_text())


def test_the_page_stands_alone_and_is_well_formed(tmp_path):
    comparison = Comparison.load(store(tmp_path, later=[8]))
    path = report.write(comparison)
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert len(html) < 1_500_000
    page = Outline(html)
    assert page.headings[0] == "h1"
    assert page.headings.count("h1") == 1
    assert all(int(b[1]) <= int(a[1]) + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert not page.unnamed
    assert page.tags.count("caption") == page.tags.count("table") > 5
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in page.links)
    assert "script" not in page.tags
    assert "http" not in re.sub(r"http-equiv", "", html)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for piece in ("5f1d0c2e9ab4", "2.15.0", "regard compare se cbam[squeeze=max] wider", "the validation part",
                  "1 seed (8)", "flat: says nothing", "the same for every image", "share of the map on the object",
                  "uninformative", "taken for T-shirt", "same 2,000 test images"):  # fmt: skip
        assert piece in text, piece


@pytest.mark.parametrize(
    ("varies", "says", "does_not_say"),
    [
        ("nothing", "same 2,000 test images", "and nothing"),
        ("the validation part", "and the validation part", "draws overlap"),
        ("the whole split", "draws overlap", "same 2,000 test images"),
    ],
)
def test_says_what_the_interval_covers(tmp_path, varies, says, does_not_say):
    comparison = Comparison.load(store(tmp_path, gains={"none": 0.0}, seeds=[0], cost=False))
    comparison = replace(comparison, question=replace(comparison.question, split_varies=varies))
    html = report.write(comparison).read_text(encoding="utf-8")
    assert says in html
    assert does_not_say not in html


def test_shares_on_the_object_are_right(tmp_path):
    """The stored map is 0.9 on the disc and 0.1 elsewhere, up to its coarse rim."""
    store(tmp_path)
    rows = report_maps.gallery(tmp_path, "se")["rows"]
    finds, flat = rows[1]["object"], rows[0]["object"]
    area = int(flat["flat"]) / 100
    assert int(finds["share"]) / 100 == pytest.approx(0.9 * area / (0.9 * area + 0.1 * (1 - area)), abs=0.06)
    assert not finds["uninformative"]
    assert flat["uninformative"]
    assert flat["share"] == flat["flat"]


def test_accuracy_charts_show_chance_and_the_linear_model(tmp_path):
    folder = store(tmp_path)
    older = report.write(Comparison.load(folder)).read_text()
    assert "linear model" not in older, "older folders have no lines"
    comparison = fit(folder, top1=0.846, chance=0.1)
    page = report.write(comparison).read_text()
    charts = 2 + len(comparison.arms)  # the costs for wide and for narrow screens, and a panel for each arm
    assert page.count("linear model on the pixels 84.6 %</text>") == charts
    assert page.count("↓ chance 10.0 %</text>") == charts, "a line for it would press the others together"


def test_an_axis_reaches_for_what_is_near(tmp_path):
    near, (low, high) = report_charts.levels(fit(store(tmp_path), top1=0.92, chance=0.85), [86.0, 90.0])
    assert near.shown == ((92.0, "linear model on the pixels 92.0 %"), (85.0, "chance 85.0 %"))
    assert low < 85 < 92 < high
    far, (low, high) = report_charts.levels(fit(tmp_path, top1=1.0, chance=0.1), [86.0, 90.0])
    assert (far.shown, far.below, far.above) == ((), "chance 10.0 %", "linear model on the pixels 100.0 %")
    assert 80 < low < 86 < 90 < high < 100


def test_a_curve_says_whether_it_ended(tmp_path):
    curves(store(tmp_path, gains={"none": 0.0, "se": 0.0}, cost=False), 0.1, 0.6, 0.8, 0.805)
    comparison = fit(tmp_path)
    ends = {panel["arm"]: panel["end"] for panel in report_charts.curves(comparison)["panels"]}
    assert ends["none"] == "ended: +0.50 points in the last quarter"
    assert ends["se"].startswith("ended")
    curves(tmp_path, 0.1, 0.6, 0.8, 0.85)
    ends = {panel["arm"]: panel["end"] for panel in report_charts.curves(fit(tmp_path))["panels"]}
    assert ends["none"] == "still climbing: +5.00 points in the last quarter"
    assert ends["none"] in report.write(fit(tmp_path)).read_text()


def test_the_second_endpoint_stands_beside_the_first(tmp_path):
    comparison = Comparison.load(store(tmp_path, logits=True))
    second = comparison.log_loss_against_none["cbam[squeeze=max]"]
    losses = comparison.log_loss
    differences = [losses["cbam[squeeze=max]"][seed] - losses["none"][seed] for seed in range(8)]
    assert second.mean == pytest.approx(sum(differences) / 8)
    assert second.low < second.mean < second.high
    alone = permutation.paired(np.array(differences))
    (verdict,) = (v for v in comparison.verdicts if (v.arm, v.against) == ("cbam[squeeze=max]", "none"))
    first = permutation.paired(np.array(verdict.differences))
    corrected = verdict.p / (float(first.count) / first.size)
    assert corrected > 3, "one of three comparisons, at one look of several"
    assert second.p == pytest.approx(min(1, corrected * float(alone.count) / alone.size)), "by the plan of accuracy"
    assert second.word == ("undecided" if second.p > 0.05 else "lower" if second.mean < 0 else "higher")
    page = re.sub(r"\s+", " ", report.write(comparison).read_text())
    assert "What else changed?" in page
    assert f"<td>{sum(losses['se'].values()) / 8:.3f}<small>" in page
    churn = comparison.churn["se"]
    assert f"<td>{100 * churn['seeds']:.2f}</td><td>{100 * churn['none']:.2f}</td>" in page
    assert page.count('<th scope="row">Ankle boot</th>') == 1
    assert "What else changed?" not in report.write(Comparison.load(store(tmp_path / "old"))).read_text()


def test_charts_are_text_in_the_colours_of_the_page(tmp_path):
    gains = {"none": 0.0, f"{EVIL}$a^$": 0.02}
    page = report.write(fit(store(tmp_path, gains=gains))).read_text()
    charts = re.findall(r'<svg class="chart.*?</svg>', page, re.DOTALL)
    assert len(charts) == 2 + 2 + 2
    for chart in charts:
        assert "var(--soft)" in chart
        assert not re.search(r"#[0-9a-f]{6}\b", chart), "a colour that a dark page cannot change"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$a^$</text>" in charts[0]
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names)), "one chart lends nothing to another"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page whose names, all of them, try to run a script."""
    classes = [EVIL, *CLASSES[1:]]
    gains = {"none": 0.0, f"se{EVIL}": 0.002, "cbam[squeeze=max]": 0.021, "wider": 0.012}
    folder = store(
        tmp_path_factory.mktemp("page"), gains=gains, classes=classes, later=[8], failed=[(f"se{EVIL}", 1)],
        broken=[(f"{EVIL}.jpg", "cut short")], logits=True,
    )  # fmt: skip
    fit(folder)
    return report.write(Comparison.load(folder))


def _open(browser, path, **context):
    """The page, the addresses it asked for, and everything that went wrong in it."""
    page = browser.new_context(**context).new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    return page, asked, wrong


def _contrasts(page):
    """WCAG contrast of every element's own text with the background that is behind it."""
    return page.evaluate("""() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
      const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c } return 'rgb(255, 255, 255)' };
      return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
          [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !['title', 'desc'].includes(e.tagName))
        .map(e => { const style = getComputedStyle(e);
          const a = light(e.closest('svg') ? style.fill : style.color), b = light(behind(e));
          const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
          return [ratio, e.tagName + ': ' + e.textContent.trim().slice(0, 40)] })
    }""")


def test_opens_quietly_with_the_verdict_first(browser, written):
    page, asked, wrong = _open(browser, written)
    assert wrong == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    first = page.locator("h1, h2, h3").first
    assert first.inner_text() == page.locator("h1").inner_text()
    assert "cbam[squeeze=max]" in first.inner_text()
    assert first.bounding_box()["y"] < 300
    assert page.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    assert page.locator("svg[role=img]").count() > 5
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_names_are_text_and_no_script_runs(browser, written):
    page, _, wrong = _open(browser, written)
    assert wrong == []
    assert page.locator("script").count() == 0
    text = page.locator("body").inner_text()
    assert f"se{EVIL}" in text
    assert f"{EVIL}.jpg" in text
    assert page.locator("table.gallery th").first.inner_text().strip() == EVIL
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None  # the page's own policy refuses scripts
    assert "Content Security Policy" in wrong[0]


@pytest.mark.parametrize("width", [360, 1100])
def test_only_tables_scroll_sideways(browser, written, width):
    page, _, _ = _open(browser, written, viewport={"width": width, "height": 740})
    page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate("""() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
      && !e.closest('.wide, svg') && e.getBoundingClientRect().right > innerWidth + 1)
      .map(e => e.outerHTML.slice(0, 80))""")
    assert outside == []


def test_light_and_dark_can_both_be_read(browser, written):
    colours = {}
    for scheme in ("light", "dark"):
        page, _, _ = _open(browser, written, color_scheme=scheme)
        page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        contrasts = _contrasts(page)
        assert len(contrasts) > 100
        assert min(contrasts)[0] >= 4.5, (scheme, min(contrasts))
    assert colours["light"] != colours["dark"]


def test_prints_what_is_folded_on_the_screen(browser, written):
    page, _, _ = _open(browser, written)
    cell = page.locator("details table td").first
    assert not cell.is_visible()
    page.emulate_media(media="print")
    assert cell.is_visible()
