"""The HTML report: all that was planned is on it, from fake records and files, in one file that fetches nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fakes import BUILT, SMALL, fake_sources
from unlocked import cli, report
from unlocked.errors import DataError
from unlocked.plan import CLAIMS, Plan
from unlocked.report import Sources
from unlocked.units import human_bytes, plural

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A few fake items of the quick plan."""
    return fake_sources(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(sources: Sources) -> str:
    """The report, as its readers get it."""
    out = report.write(sources, sources.results / "quick" / "report.html")
    assert [path.name for path in out.parent.iterdir() if path.is_file()] == ["report.html"]
    return out.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside of style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        """Keep it, unless it is CSS."""
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str, tag: str | None = None) -> list[str]:
        """The attribute's values in the order of the page."""
        return [str(own[attribute]) for name, own in self.tags if attribute in own and tag in (None, name)]


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    """The parsed page."""
    return Reader(page)


def test_every_item_and_claim_is_there(sources: Sources, read: Reader) -> None:
    """Each with its title, its caption and the command that rebuilds it; the contents link to it."""
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    links = read.values("href", "a")
    for item in sources.plan.items.values():
        shown = report.show(item, sources)
        assert item.name in ids
        assert shown.caption in read.text
        assert f"reproduce.py {item.name} --config scale=quick" in read.text
        if item.paper != CLAIMS:
            assert shown.title in read.text
            assert links.count(f"#{item.name}") == 2  # beside the text, and folded on narrow screens
    assert {"claim-A1", "claim-B1"} <= set(ids)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_verdicts_come_first(page: str, read: Reader) -> None:
    """With effect, interval and reason; before the items."""
    assert page.index('id="verdicts"') < page.index('id="acid"') < page.index('id="forward_gradient"')
    assert page.index('id="forward_gradient"') < page.index('id="provenance"')
    assert "2 claims: 1 supported, 1 not run." in read.text
    assert "0.36 [0.138, 0.952]" in read.text
    assert "no record of <x>" in read.text


def test_nothing_is_fetched(read: Reader) -> None:
    """Pictures and downloads are in the page; no other file, no script, and a policy that forbids both."""
    tags = {name for name, _ in read.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "video", "audio", "source", "form"}
    addresses = [*read.values("src"), *read.values("href"), *read.values("srcset")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert all(address.startswith("data:image/png;base64,") for address in read.values("src", "img"))
    (policy,) = [own["content"] for name, own in read.tags if name == "meta" and "http-equiv" in own]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = (report.TEMPLATES / "page.css").read_text()
    assert not re.search(r"url\(|@import|@font-face", style)


def test_figures_have_alternatives(read: Reader) -> None:
    """Every picture has a text, a size, and a caption that describes it."""
    pictures = [own for name, own in read.tags if name == "img"]
    assert len(pictures) == sum(name in ("acid_figure_1", "forward_gradient_width", "claims_effects") for name in BUILT)
    ids = set(read.values("id"))
    for own in pictures:
        assert own["alt"]
        assert own["aria-describedby"] in ids
        assert int(own["width"] or 0) > 300
        assert int(own["height"] or 0) > 100


def test_tables_are_tables(read: Reader) -> None:
    """Header cells, cells and notes of an item's table; text is escaped."""
    assert "accuracy of acid_table_4 (%) n = 4 n = 16" in read.text
    assert "two & more – 3.5" in read.text
    assert "A note." in read.text
    assert "a <b>source</b>" in read.text


def test_downloads(sources: Sources, read: Reader) -> None:
    """A figure's numbers and vector file, a table's numbers and LaTeX, byte for byte."""
    files = {own["download"]: str(own["href"]) for name, own in read.tags if name == "a" and "download" in own}
    expected = {f"quick-acid-figure_1.{kind}" for kind in ("csv", "pdf")}
    expected |= {f"quick-acid-table_4.{kind}" for kind in ("csv", "tex")}
    assert expected <= set(files)
    stem = sources.stem(sources.plan.item("acid_table_4"))
    assert files["quick-acid-table_4.tex"] == report.data_uri(stem.with_suffix(".tex"))


def test_conditions_and_cost(sources: Sources, read: Reader) -> None:
    """Scale, data, seeds, runs, what diverged, cost; for the whole and for an item."""
    shown = report.show(sources.plan.item("acid_table_4"), sources)
    runs = len(sources.plan.item("acid_table_4").runs)
    assert shown.facts["Scale"] == "quick"
    assert shown.facts["Data"] == "scikit-learn digits"
    assert shown.facts["Seeds"] == "0, 1"
    assert shown.facts["Runs"] == f"{runs} (1 diverged)"
    assert shown.facts["Cost"].startswith(f"{runs * 30 / 60:.1f} min in all, at most 734 MB")
    assert f"Items {len(BUILT)} of {len(sources.plan.items)} built" in read.text
    assert "Analytical Engine (cpu)" in read.text


def test_what_is_missing_is_said(sources: Sources, page: str) -> None:
    """An item without files stands there as not built, and its missing runs are counted."""
    missing = [name for name in sources.plan.items if name not in (*BUILT, "claims_verdicts")]
    assert page.count("Not built.") == len(missing)
    shown = report.show(sources.plan.item("acid_figure_7"), sources)
    assert not shown.built
    assert shown.facts == {"Scale": "quick", "Runs": "none: computed without training"}
    shown = report.show(sources.plan.item("acid_quadratic"), sources)
    assert shown.facts["Runs"] == f"0 of {len(sources.plan.item('acid_quadratic').runs)} recorded"


def test_provenance(sources: Sources, read: Reader) -> None:
    """Commits, versions, machines, data with checksum; every run of the plan with its items."""
    tables = report.provenance_of(sources.records.values())
    assert {row["Commit"] for row in tables["Code"]} == {
        "c0ffee" * 6 + "c0ff" + end for end in ("", " (with local changes)")
    }
    assert sum(row["Runs"] for row in tables["Code"]) == len(sources.records)
    assert tables["Data"] == [{"Data set": "digits", "Source": "a <b>source</b>", "SHA-256": "f" * 64,
                               "Runs": len(sources.records)}]  # fmt: skip
    assert tables["Machine"][0]["Hardware"] == "Analytical Engine (cores 2, platform Linux)"
    assert all(name in read.text for name in sources.plan.runs)
    assert "not trained" in read.text
    assert "python 3.12.1, torch 2.11.0" in read.text


def test_nothing_built_at_all(sources: Sources, tmp_path: Path) -> None:
    """Before the first run there is a page too: every item as not built, and how to build the verdicts."""
    empty = Sources(sources.plan, tmp_path / "results", tmp_path / "figures")
    text = Reader(report.render(report.content(empty))).text
    assert text.count("Not built.") == len(sources.plan.items)
    assert "No run has finished yet." in text
    assert "reproduce.py claims_verdicts --config" in text


def test_same_sources_same_page(sources: Sources, page: str) -> None:
    """No date and nothing random in it."""
    again = Sources(sources.plan, sources.results, sources.figures)
    assert report.render(report.content(again)) == page


def test_commands_name_the_settings() -> None:
    """Scale, changes and device are in it, quoted for a shell."""
    plan = Plan("quick", SMALL[:1], {"device": "cuda"}, only=["acid_figure_3"])
    command = Sources(plan, Path("results"), Path("figures")).command("acid_figure_3")
    assert command == "python3 reproduce.py acid_figure_3 --config scale=quick 'set=seeds=[0,1]' device=cuda"


@pytest.mark.parametrize(
    ("content", "problem"),
    [("| a | b |\n|:--|:--|\n| 1 |\n", "holds no table"), ("**Nothing.**\n", "holds no table")],
)
def test_damaged_table(tmp_path: Path, content: str, problem: str) -> None:
    """One line that says which file."""
    (tmp_path / "table.md").write_text(content)
    with pytest.raises(DataError, match=problem):
        report.read_table(tmp_path / "table.md")


def test_verdicts_of_another_version(tmp_path: Path) -> None:
    """One line that names the missing column."""
    (tmp_path / "verdicts.csv").write_text("id,paper\nA1,acid\n")
    with pytest.raises(DataError, match="has no column"):
        report.read_verdicts(tmp_path / "verdicts.csv")


def test_command_line(sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], page: str) -> None:
    """`unlocked report` writes the same page and prints its path; W&B's options need --wandb."""
    where = ["--results", str(sources.results), "--figures", str(sources.figures)]
    out = tmp_path / "somewhere" / "page.html"
    assert cli.main(["report", *where, "--out", str(out), "--set", *SMALL]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text() == page
    assert cli.main(["report", *where, "--upload"]) == 2
    assert "add --wandb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"), [(812, "812 B"), (36_000, "36 kB"), (4_120_000, "4.1 MB"), (999_600, "1.0 MB"), (12e9, "12 GB")]
)
def test_human_bytes(count: float, text: str) -> None:
    """In powers of 1000, two digits at least."""
    assert human_bytes(count) == text


def test_plural() -> None:
    """One is not many."""
    assert [plural(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


# in a browser

PROBE = """<!doctype html><title>waiting</title><body style="margin:0">
<iframe style="border:0;width:WIDTHpx;height:844px" srcdoc="PAGE"></iframe>
<script>
document.querySelector("iframe").onload = event => {
  const view = event.target.contentWindow, page = view.document, root = page.documentElement;
  const images = [...page.images];
  const fetched = view.performance.getEntriesByType("resource").map(entry => entry.name);
  const found = {
    overflow: Math.max(root.scrollWidth, page.body.scrollWidth) - root.clientWidth,
    images: images.length,
    broken: images.filter(image => !image.complete || image.naturalWidth === 0).length,
    fetched: fetched.filter(name => !name.startsWith("data:")),
    articles: page.querySelectorAll("article").length,
    columns: view.getComputedStyle(page.body).display,
    font: parseFloat(view.getComputedStyle(page.querySelector("main p")).fontSize),
  };
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
};
</script></body>"""


def browse(page: str, width: int, folder: Path) -> tuple[dict, str]:
    """What headless Chromium finds on the page at a width, and its log."""
    probe = folder / f"probe_{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", html.escape(page)), encoding="utf-8")
    line = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    line += ["--enable-logging=stderr", "--virtual-time-budget=20000", f"--user-data-dir={folder / 'profile'}"]
    line += [f"--window-size={max(width, 500)},900", "--dump-dom", probe.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    found = re.search(r"FOUND(\{.*?\})END", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1))), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser(page: str, width: int, tmp_path: Path) -> None:
    """All pictures are drawn, nothing is fetched, nothing sticks out of the page, and the console stays empty."""
    found, log = browse(page, width, tmp_path)
    assert found["images"] == 3
    assert found["broken"] == 0
    assert found["fetched"] == []
    assert found["overflow"] <= 0
    assert found["font"] >= 16
    assert found["columns"] == ("block" if width == 390 else "grid")
    assert "CONSOLE" not in log


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_browser_test_can_fail(page: str, tmp_path: Path) -> None:
    """A picture from the network, a script's error and a line that is too wide are found."""
    spoilt = page.replace("<main", '<img src="nowhere.png"><script>fail()</script><pre>' + "wide" * 200 + "</pre><main")
    found, log = browse(spoilt, 390, tmp_path)
    assert found["broken"] == 1
    assert found["overflow"] > 0
    assert "CONSOLE" in log
