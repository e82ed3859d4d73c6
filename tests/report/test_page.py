"""The HTML report: all that was planned is on it, from fake records and files, in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fakes import BUILT, SMALL, fake_sources
from unlocked import cli
from unlocked.artifact.plan import CLAIMS, Plan
from unlocked.errors import DataError
from unlocked.report import claims
from unlocked.report import page as report
from unlocked.report.sources import Sources, show
from unlocked.units import human_bytes, plural

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return fake_sources(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(sources: Sources) -> str:
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
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.words.append(data)

    def values(self, attribute: str, tag: str | None = None) -> list[str]:
        return [str(own[attribute]) for name, own in self.tags if attribute in own and tag in (None, name)]


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_every_item_and_claim_is_there(sources: Sources, read: Reader) -> None:
    """Each with its title, its caption and the command that rebuilds it; the contents link to it."""
    ids, links = read.values("id"), read.values("href", "a")
    assert len(ids) == len(set(ids))
    for item in sources.plan.items.values():
        shown = show(item, sources)
        assert item.name in ids
        assert shown["caption"] in read.text
        assert f"reproduce.py {item.name} --config scale=quick" in read.text
        if item.paper != CLAIMS:
            assert shown["title"] in read.text
            assert links.count(f"#{item.name}") >= 2  # beside the text, and folded on narrow screens
    assert {"claim-A1", "claim-B1"} <= set(ids)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_verdicts_come_first(page: str, read: Reader) -> None:
    """With effect, interval and reason; before the items."""
    places = [page.index(f'id="{name}"') for name in ("verdicts", "acid", "forward_gradient", "provenance")]
    assert places == sorted(places)
    for text in ("2 claims: 1 supported, 1 not run.", "0.36 [0.138, 0.952]", "no record of <x>"):
        assert text in read.text


def test_nothing_is_fetched(page: str, read: Reader) -> None:
    """Pictures and downloads are in the page; no other file, one script, and a policy that forbids any other."""
    tags = {name for name, _ in read.tags}
    assert not tags & {"iframe", "object", "embed", "base", "video", "audio", "source", "form"}
    addresses = [*read.values("src"), *read.values("href"), *read.values("srcset")]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    (policy,) = [own["content"] for name, own in read.tags if name == "meta" and "http-equiv" in own]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"url\(|@import|@font-face", (report.TEMPLATES / "page.css").read_text())


def test_figures_have_alternatives(read: Reader) -> None:
    """Every picture has a text, a size, and a caption that describes it."""
    pictures = [own for name, own in read.tags if name == "img"]
    assert len(pictures) == 3
    for own in pictures:
        assert str(own["src"]).startswith("data:image/png;base64,")
        assert own["alt"]
        assert own["aria-describedby"] in read.values("id")
        assert int(own["width"] or 0) > 300
        assert int(own["height"] or 0) > 100


def test_downloads(sources: Sources, read: Reader) -> None:
    """A figure's numbers and vector file, a table's numbers and LaTeX, byte for byte."""
    files = {own["download"]: str(own["href"]) for name, own in read.tags if name == "a" and "download" in own}
    expected = {f"quick-acid-{name}" for name in ("figure_1.csv", "figure_1.pdf", "table_4.csv", "table_4.tex")}
    assert expected <= set(files)
    assert files["quick-acid-table_4.tex"] == report.data_uri(sources.figures / "quick" / "acid" / "table_4.tex")


def test_tables_conditions_and_cost(sources: Sources, read: Reader) -> None:
    """Cells and notes, escaped; scale, data, seeds, runs, what diverged and cost of the whole and of an item."""
    for text in ("accuracy of acid_table_4 (%) n = 4 n = 16", "two & more – 3.5", "A note.", "a <b>source</b>"):
        assert text in read.text
    runs = len(sources.plan.item("acid_table_4").runs)
    known = show(sources.plan.item("acid_table_4"), sources)["facts"]
    assert known.pop("Cost").startswith(f"{runs * 30 / 60:.1f} min in all, at most 734 MB")
    data = "scikit-learn digits"
    assert known == {"Scale": "quick", "Data": data, "Seeds": "0, 1", "Runs": f"{runs} (1 diverged)"}
    assert f"Items {len(BUILT)} of {len(sources.plan.items)} built" in read.text


def test_what_is_missing_is_said(sources: Sources, page: str) -> None:
    """An item without files stands there as not built, and its missing runs are counted."""
    missing = [name for name in sources.plan.items if name not in (*BUILT, "claims_verdicts")]
    assert page.count("Not built.") == len(missing)
    computed, trained = (sources.plan.item(name) for name in ("acid_figure_7", "acid_quadratic"))
    assert show(computed, sources)["facts"] == {"Scale": "quick", "Runs": "none: computed without training"}
    assert show(trained, sources)["facts"]["Runs"] == f"0 of {len(trained.runs)} recorded"


def test_provenance(sources: Sources, read: Reader) -> None:
    """Commits, versions, machines, data with checksum; every run of the plan with its items."""
    tables = {title: table.to_dict("records") for title, table in report.provenance(sources.frames).items()}
    count = len(sources.frames.runs)
    commits = {"c0ffee" * 6 + "c0ff" + end for end in ("", " (with local changes)")}
    assert {row["Commit"] for row in tables["Code"]} == commits
    assert sum(row["Runs"] for row in tables["Code"]) == count
    assert tables["Data"] == [{"Data set": "digits", "Source": "a <b>source</b>", "SHA-256": "f" * 64, "Runs": count}]
    assert tables["Machine"][0]["Hardware"] == "Analytical Engine (cores 2, platform Linux)"
    for text in (*sources.plan.runs, "not trained", "python 3.12.1, torch 2.11.0", "1234", "30.0 s", "734 MB"):
        assert text in read.text


def test_nothing_built_at_all(sources: Sources, tmp_path: Path) -> None:
    """Before the first run there is a page too: every item as not built, and how to build the verdicts."""
    text = Reader(report.render(Sources(sources.plan, tmp_path / "results", tmp_path / "figures"))).text
    assert text.count("Not built.") == len(sources.plan.items)
    assert "No run has finished yet." in text
    assert "reproduce.py claims_verdicts --config" in text


def test_commands_name_the_settings() -> None:
    """Scale, changes and device are in it, quoted for a shell."""
    plan = Plan("quick", SMALL[:1], {"device": "cuda"}, only=["acid_figure_3"])
    command = Sources(plan, Path("results"), Path("figures")).command("acid_figure_3")
    assert command == "python3 reproduce.py acid_figure_3 --config scale=quick 'set=seeds=[0,1]' device=cuda"


@pytest.mark.parametrize("content", ["{", "{}", '{"title": "t", "caption": "c", "facts": {}, "table": {"rows": []}}'])
def test_an_item_that_cannot_be_read(sources: Sources, tmp_path: Path, content: str) -> None:
    """One line that says which file, and what to do."""
    item = sources.plan.item("acid_table_4")
    (tmp_path / "quick" / "acid").mkdir(parents=True)
    for suffix in item.suffixes:
        (tmp_path / "quick" / "acid" / f"table_4.{suffix}").write_text(content)
    with pytest.raises(DataError, match=r"table_4\.json: cannot be read .* build the item again"):
        show(item, Sources(sources.plan, sources.results, tmp_path))


def test_verdicts_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "verdicts.csv").write_text("id,paper\nA1,acid\n")
    with pytest.raises(DataError, match="has no column kind"):
        claims.read(tmp_path / "verdicts.csv")


def test_command_line(sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str], page: str) -> None:
    """`unlocked report` writes the very same page and prints its path; W&B's options need --wandb."""
    where = ["--results", str(sources.results), "--figures", str(sources.figures)]
    out = tmp_path / "somewhere" / "page.html"
    assert cli.main(["report", *where, "--out", str(out), "--set", *SMALL]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text() == page
    assert cli.main(["report", *where, "--upload"]) == 2
    assert "add --wandb" in capsys.readouterr().err


def test_units() -> None:
    """Bytes in powers of 1000, two digits at least; one is not many."""
    sizes = {812: "812 B", 36_000: "36 kB", 4_120_000: "4.1 MB", 999_600: "1.0 MB", 12e9: "12 GB"}
    assert list(map(human_bytes, sizes)) == list(sizes.values())
    assert [plural(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


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
    columns: view.getComputedStyle(page.body).display,
    font: parseFloat(view.getComputedStyle(page.querySelector("main p")).fontSize),
  };
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
};
</script></body>"""


def browse(page: str, width: int, folder: Path) -> tuple[dict, str]:
    """What headless Chromium finds on the page at a width, and its log."""
    probe = folder / f"probe_{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", escape(page)), encoding="utf-8")
    line = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    line += ["--enable-logging=stderr", "--virtual-time-budget=20000", f"--user-data-dir={folder / 'profile'}"]
    line += [f"--window-size={max(width, 500)},900", "--dump-dom", probe.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    found = re.search(r"FOUND(\{.*?\})END", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found.group(1))), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "columns"), [(390, "block"), (1400, "grid")])
def test_in_a_browser(page: str, width: int, columns: str, tmp_path: Path) -> None:
    """All pictures are drawn, nothing is fetched, nothing sticks out of the page, and the console stays empty."""
    found, log = browse(page, width, tmp_path)
    assert found.pop("overflow") <= 0
    assert found.pop("font") >= 16
    assert found == {"images": 3, "broken": 0, "fetched": [], "columns": columns}
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
