"""The report page in a real browser: headless Chromium, from disk, without a network."""

import contextlib
import json
import re
import shutil
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import synthetic
from a2tgpo_trl.records import FOLDER, RecordStore, read_turns
from a2tgpo_trl.report import Measures, read_runs, write_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CALLED = "window.hostile=1"
HOSTILE = [
    f"<script>{CALLED}</script>",
    f"</script><script>{CALLED}</script>",
    f"<img src=x onerror='{CALLED}'>",
    f"<svg onload={CALLED}>",
    "\"><iframe srcdoc='<script>parent.hostile=1</script>'></iframe>",
    f"javascript:{CALLED}",
    f"<!--<script>\u2028\u2029\x00\x1b]0;x\x07'`${{{CALLED}}}\\\u202e",
    f"@script @data {{{{{CALLED}}}}} __proto__ constructor",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """`open_page(file, address)`: the page, ready; a message of the console or a request fails the test."""
    contexts, heard = [], []

    def opened(file, address="", **options):
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.on("request", lambda request: request.url.startswith(Path(file).as_uri()) or heard.append(request.url))
        page.goto(Path(file).as_uri() + address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not heard


def write(file, *folders):
    runs = read_runs(folders)
    write_page(runs, [Measures.of(run) for run in runs], file)
    return file


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        synthetic.write_run(folder / "a2tgpo", rollouts=96),
        synthetic.write_run(folder / "grpo", rollouts=64, seed=1, estimator="grpo"),
    ]
    return write(folder / "report.html", *runs), [read_turns(run).to_pandas() for run in runs]


@pytest.fixture(scope="module")
def two_runs_page(two_runs):
    return two_runs[0]


@pytest.fixture(scope="module")
def firsts(two_runs):
    """The first turn of each rollout, run by run."""
    return [turns[turns["turn"] == 0] for turns in two_runs[1]]


def count(page):
    """Rollouts found, once the list says it."""
    page.wait_for_function("() => document.getElementById('list').ariaBusy === 'false'")
    return int(page.inner_text("#count").split(" of ")[0].replace(",", ""))


def fill(page, name, value):
    before = page.evaluate("applyFilter.latest ?? 0")
    page.locator(f"#filter [name={name}]").evaluate(
        "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})) }", value
    )
    page.wait_for_function(f"() => applyFilter.latest > {before}")
    return count(page)


def is_painted(canvas):
    return canvas.evaluate(
        "c => c.width > 100 && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(value => value)"
    )


class TestOverview:
    def test_charts_are_drawn(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        cards = page.locator(".chart")
        assert cards.count() > 15
        for card in cards.all():
            card.scroll_into_view_if_needed()
            page.wait_for_function("c => drawn.has(c)", arg=card.locator("canvas").element_handle())
            assert is_painted(card.locator("canvas"))
            assert card.locator("canvas").get_attribute("aria-label")

    def test_axes_legends_and_tooltips(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        page.locator("#chart-gain").scroll_into_view_if_needed()
        page.wait_for_function("() => [...drawn.values()].some(([, what]) => what.key === 'gain')")
        found = page.evaluate(
            """() => {
                const [chart] = [...drawn.values()].find(([, what]) => what.key === "gain");
                const {x, y} = chart.options.scales;
                return [x.title.text, y.title.text, chart.legend.legendItems.map((item) => item.text)];
            }"""
        )
        assert found[:2] == ["optimizer step", "gain"]
        assert found[2][:2] == ["a2tgpo · all turns", "a2tgpo · turn 0"]
        box = page.locator("#chart-gain canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
        page.wait_for_function(
            "() => [...drawn.values()].find(([, what]) => what.key === 'gain')[0].tooltip.opacity > 0"
        )

    def test_runs_differ_in_colour(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        colours = page.evaluate("[...drawn.values()][0][0].data.datasets.map((line) => line.borderColor)")
        assert len(set(colours)) == 2

    def test_evaluation_stands_out(self, open_page, tmp_path):
        run = synthetic.write_run(tmp_path / "run", rollouts=32, log=False)
        log = [{"step": step, "reward": 0.5, "eval_reward": 0.4} for step in (1, 2)]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        page = open_page(write(tmp_path / "report.html", run))
        lines = "([...drawn.values()].find(([, what]) => what.key === 'reward'))[0].data.datasets"
        training, evaluation = page.evaluate(f"{lines}.map((line) => [line.borderColor, line.borderDash])")
        assert [len(training[0]), len(evaluation[0])] == [len("#rrggbbaa"), len("#rrggbb")]
        assert training[1] == evaluation[1] == []

    def test_a_chart_as_a_table(self, open_page, two_runs_page, firsts):
        page = open_page(two_runs_page)
        page.click("#chart-reward button")
        assert page.locator("#chart-reward .numbers tbody tr").count() == firsts[0]["step"].nunique()
        assert page.locator("#chart-reward canvas").is_hidden()

    def test_a_table_has_the_ends_of_bands(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        page.click("#chart-latency button")
        titles = page.locator("#chart-latency thead th").all_inner_texts()
        assert titles[1:4] == ["a2tgpo · search", "a2tgpo · search, low", "a2tgpo · search, high"]

    def test_whole_numbers_are_whole(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        assert page.evaluate("[10234, 123456, 1234.56, 2e6].map(compact)") == ["10234", "123456", "1235", "2.00e+6"]

    def test_missing_gains_are_said(self, open_page, two_runs_page):
        assert "the estimator measures none." in open_page(two_runs_page).inner_text("ul.notice")

    def test_dark(self, open_page, two_runs_page):
        def background(page):
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        light, dark = open_page(two_runs_page), open_page(two_runs_page, color_scheme="dark")
        assert background(light) != background(dark)
        of_system = background(dark)
        dark.click("#theme")  # light, whatever the system has
        assert background(dark) == background(light)
        dark.reload()
        dark.wait_for_selector("body[data-ready]")
        assert background(dark) == background(light)
        dark.keyboard.press("t")
        assert background(dark) == of_system


def turn_row(text, **columns):
    """A turn record whose every text is the given one."""
    number = dict(belief_before=-1.0, belief_after=-0.5, information_gain=0.5, normalized_gain=0.1, turn_group_size=8)
    number |= dict(advantage=0.5, outcome_advantage=0.4, clip_low=0.99, clip_high=1.01, clip_scale=1.1, reward=1.0)
    place = dict(step=0, batch=0, group=0, generation=0, turn=0, num_turns=1, num_tokens=1, num_observation_tokens=1)
    texts = dict.fromkeys(("prompt", "answer", "text", "observation", "stop_reason"), text)
    call = dict(name=text, arguments=text, result=text, failed=True, seconds=0.1)
    return number | place | texts | dict(calls=[call], rewards={text: 1.0}) | columns


def jpeg(color, size=(64, 48)):
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG")
    return file.getvalue()


COLOR = """(image) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const [red, green, blue] = context.getImageData(8, 8, 1, 1).data;
    return [[canvas.width, canvas.height], ["red", "lime", "blue"][[red, green, blue].findIndex((part) => part > 200)]];
}"""


class TestPictures:
    def group(self, number, **columns):
        """Two rollouts; the files of what both have are with the first."""
        turn = dict(
            turn_row(""), text="Look.", calls=[], group=number, prompt="Which \ufffc is it?", prompt_images=["a"]
        )
        files = {"a": jpeg("red"), "b": jpeg("lime", (20, 10)), "c": jpeg("blue")}
        first = turn | {"observation": "One \ufffcand\ufffc.", "images": ["b", "c"], "thumbnails": files}
        second = turn | {"observation": "Again \ufffc, \ufffc.", "images": ["c", "lost"], "generation": 1}
        return [first | columns, second]

    def test_they_stand_where_they_stood(self, open_page, tmp_path):
        RecordStore(tmp_path / "run" / FOLDER, 2**40).append(self.group(0))
        page = open_page(write(tmp_path / "report.html", tmp_path / "run"), "#/rollouts/0.0.0.0")
        page.wait_for_function("() => [...document.images].every((image) => image.naturalWidth)")
        assert page.inner_text("#question") == "Which [image] is it?"
        red, lime, blue = [[64, 48], "red"], [[20, 10], "lime"], [[64, 48], "blue"]
        assert [image.evaluate(COLOR) for image in page.locator(".pictures img").all()] == [red]
        read = page.locator(".text.observation")
        assert [image.evaluate(COLOR) for image in read.locator("img").all()] == [lime, blue]
        assert read.evaluate("text => [...text.childNodes].map((node) => node.nodeName)") == [
            *("#text", "IMG", "#text", "IMG", "#text")
        ]
        page.goto(page.url.replace("0.0.0.0", "0.0.0.1"))
        page.wait_for_function("() => document.querySelector('.text.observation').textContent.startsWith('Again')")
        assert [image.evaluate(COLOR) for image in page.locator("img").all()] == [red, red, blue]  # whole prompt too
        assert read.text_content() == "Again , [image]."

    def test_a_page_has_pictures_of_every_second_group_where_all_are_too_many(self, open_page, tmp_path):
        folder, size = tmp_path / "run", len(jpeg("red")) + len(jpeg("lime", (20, 10))) + len(jpeg("blue"))
        RecordStore(folder / FOLDER, 2**40).append([row for number in range(5) for row in self.group(number)])
        run = read_runs([folder])
        for groups, kept in ((5, [0, 1, 2, 3, 4]), (4.9, [0, 2, 4]), (2.9, [0, 4]), (1.9, [4]), (0, [])):
            write_page(run, [Measures.of(run[0])], tmp_path / "page.html", pictures_mb=groups * size / 2**20)
            found = re.findall(r'id="data-pictures-(\d+)"', (tmp_path / "page.html").read_text())
            assert [int(place) // 2 for place in found] == kept
        page = open_page(tmp_path / "page.html", "#/rollouts/0.0.2.0")
        assert page.locator("img").count() == 0
        assert page.inner_text(".text.observation") == "One [image]and[image]."

    def test_what_is_no_picture_does_nothing(self, open_page, tmp_path):
        names = ["__proto__", *HOSTILE]
        files = dict.fromkeys(names, f"<svg xmlns='http://www.w3.org/2000/svg' onload='{CALLED}'/>".encode())
        row = dict(turn_row("\ufffc" * len(names)), images=names, thumbnails=files, prompt_images=names)
        RecordStore(tmp_path / "run" / FOLDER, 2**40).append([row])
        page = open_page(write(tmp_path / "report.html", tmp_path / "run"), "#/rollouts/0.0.0.0")
        sources = page.evaluate("[...document.images].map((image) => image.src)")
        assert len(sources) == 3 * len(names)
        assert all(re.fullmatch(r"data:image/jpeg;base64,[\w+/]+=*", source) for source in sources)
        assert page.evaluate("window.hostile") is None


def charts_in(pdf):
    """Drawings in a PDF that have lines in the colour of the charts' grid."""
    found = 0
    for data in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        with contextlib.suppress(zlib.error):  # a picture or a font
            found += b".9098 .9216 .9373 RG" in zlib.decompress(data)
    return found


def pages(pdf):
    return len(re.findall(rb"/Type /Page\b", pdf))


class TestPrinting:
    def test_all_charts_are_drawn(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        count = page.locator(".chart canvas").count()
        assert page.evaluate("drawn.size") < count  # the others have not come into view
        assert charts_in(page.pdf()) == count

    def test_paper_is_light_and_the_screen_as_it_was(self, open_page, two_runs_page):
        page = open_page(two_runs_page, color_scheme="dark")
        page.evaluate("addEventListener('beforeprint', () => { window.paper = cssColor('--ink'); })")
        page.pdf()
        assert page.evaluate("[paper, cssColor('--ink')]") == ["#191d24", "#e6e9ee"]
        page.wait_for_function(
            """() => drawn.size && [...drawn].every(([canvas, [chart]]) => {
                const isWide = Math.abs(canvas.clientWidth - canvas.parentElement.clientWidth) < 2;
                return isWide && chart.options.scales.x.ticks.color === cssColor("--muted");
            })"""
        )

    def test_a_table_is_printed_to_its_end(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        for button in page.locator(".chart header button").all():
            button.click()
        page.emulate_media(media="print")
        is_whole = "(boxes) => boxes.every((box) => box.scrollHeight <= box.clientHeight)"
        assert page.locator(".numbers").evaluate_all(is_whole)

    def test_the_list_prints_the_rows_in_view(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        assert pages(page.pdf()) <= 3  # 160 rows would fill a dozen
        page.emulate_media(media="print")
        assert page.locator(".row >> nth=0").is_visible()

    def test_a_rollout_is_printed_to_its_end(self, open_page, tmp_path):
        store = RecordStore(tmp_path / "run" / FOLDER, 2**40)
        store.append([turn_row("x", observation="line\n" * 60, turn=turn, num_turns=12) for turn in range(12)])
        page = open_page(write(tmp_path / "report.html", tmp_path / "run"), "#/rollouts/0.0.0.0")
        page.wait_for_selector("#detail article >> nth=11")
        assert pages(page.pdf()) > 10  # each observation fills a page


class TestRollouts:
    def test_filters(self, open_page, two_runs_page, firsts):
        page = open_page(two_runs_page, "#/rollouts")
        rewards = [run["reward"].round(2) for run in firsts]
        assert count(page) == 160
        assert fill(page, "low", "1") == sum((run >= 1).sum() for run in rewards)
        assert fill(page, "run", "1") == (rewards[1] >= 1).sum()
        page.click("#filter [type=reset]")
        page.wait_for_function("() => document.getElementById('count').textContent.startsWith('160')")
        assert fill(page, "stop", "=length") == sum((run["stop_reason"] == "length").sum() for run in firsts)
        assert fill(page, "stop", "") == 160
        assert fill(page, "first", "9") == sum((run["step"] >= 9).sum() for run in firsts)
        assert fill(page, "last", "10") == 0

    def test_text_is_found_wherever_it_is(self, open_page, two_runs, firsts):
        file, runs = two_runs
        page = open_page(file, "#/rollouts")
        place = ["batch", "group", "generation"]
        for text in ("Lyon is?", "i look up CAPITAL of", "did not answer", '"query": "osaka"'):
            found = 0
            for turns in runs:
                calls = turns["calls"].map(lambda calls: " ".join(call["arguments"] for call in calls))
                texts = turns["prompt"] + turns["text"] + turns["observation"].fillna("") + calls
                has = texts.str.lower().str.contains(text.lower(), regex=False)
                found += len(turns[has].drop_duplicates(place))
            assert fill(page, "text", text) == found > 0, text

    def test_a_click_shows_the_rollout(self, open_page, two_runs):
        file, (turns, _) = two_runs
        page = open_page(file, "#/rollouts?run=0&sort=oldest")
        page.evaluate("byId('list').scrollTop = 0")  # from the one that is shown at first
        page.click("[aria-posinset='1']")
        page.wait_for_function("() => detail === 'rollouts/0'")
        rows = turns[(turns["batch"] == 0) & (turns["group"] == 0) & (turns["generation"] == 0)]
        assert page.locator("#detail article").count() == len(rows)
        shown = page.inner_text("#detail")
        for row in rows.to_dict("records"):
            assert row["text"] in shown
            assert f"{row['advantage']:+.2f}".replace("-", "−") in shown
            assert f"{row['clip_low']:.4f} – {row['clip_high']:.4f}" in shown
        assert rows["answer"].iloc[0] in shown
        assert page.url.endswith("#/rollouts/0.0.0.0?run=0&sort=oldest")

    def test_turns_have_the_columns_of_their_estimator(self, open_page, two_runs_page, tmp_path):
        run = synthetic.write_run(tmp_path / "run", rollouts=32, estimator="bonus")
        page = open_page(write(tmp_path / "report.html", run), "#/rollouts/0.0.0.0")
        for card in page.locator("#detail article").all():
            names, values = (card.locator(f".credit {kind}").all_inner_texts() for kind in ("dt", "dd"))
            assert dict(zip(names, values, strict=True))["turn_bonus"] in ("0.00", "+0.25", "+0.50", "+0.75")
        assert "turn_bonus" not in open_page(two_runs_page, "#/rollouts/0.0.0.0").inner_text("#detail")

    def test_the_most_telling_rollout_is_there_at_once(self, open_page, two_runs):
        """Of the last batch, the rollout of a group of mixed rewards whose turns differ most, and why it is shown."""
        file, (turns, _) = two_runs
        last = turns[turns["batch"] == turns["batch"].max()]
        last = last[last.groupby("group")["reward"].transform("nunique") > 1]
        apart = last.groupby(["batch", "group", "generation"])["advantage"].agg(
            lambda column: column.max() - column.min()
        )
        batch, group, generation = apart.idxmax()
        why = f"by {apart.max():.2f}, among the rollouts of batch {batch} whose group has mixed rewards."
        page = open_page(file)
        assert page.get_attribute("a.telling", "href") == f"#/rollouts/0.{batch}.{group}.{generation}"
        assert page.inner_text("#overview .why").endswith(why)
        page.click("#to-rollouts")
        page.wait_for_selector("#detail article")
        assert page.locator("#detail article").count() == len(
            last[(last["group"] == group) & (last["generation"] == generation)]
        )
        assert page.inner_text("#detail .why").endswith(why)
        assert (
            page.locator("#detail .chip[aria-current]").get_attribute("title") == f"rollout {generation} of the group"
        )
        assert page.locator(".row[aria-selected=true]").count() == 1

    def test_an_address_and_a_click_choose_another(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts/0.0.0.3")
        assert page.evaluate("detail") == "rollouts/3"
        assert page.locator("#detail .why").count() == 0
        page = open_page(two_runs_page, "#/rollouts")
        page.wait_for_selector("#detail .why")
        page.click(".row[aria-selected=false] >> nth=0")
        page.wait_for_selector("#detail .why", state="detached")
        assert page.locator("#detail article").count() > 0

    def test_a_row_that_is_pressed_stays_when_the_window_changes(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        row = page.query_selector(".row[aria-selected=false]")
        page.evaluate("byId('list').dispatchEvent(new Event('scroll'))")
        page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        assert row.evaluate("(row) => row.isConnected")

    def test_turns_have_the_colour_of_their_advantage(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts/0.0.0.0")
        for card in page.locator("#detail article").all():
            text = card.locator(".advantage").inner_text()
            assert card.evaluate("(card) => card.classList.contains('down')") == ("−" in text)

    def test_what_is_missing_is_a_dash(self, open_page, two_runs_page):
        """Where another turn of the rollout has it; what none of them has is left out."""
        page = open_page(two_runs_page, "#/rollouts/0.0.0.0")
        answer = page.locator("#detail article >> nth=-1")
        names, values = (answer.locator(f".credit {kind}").all_inner_texts() for kind in ("dt", "dd"))
        shown = dict(zip(names, values, strict=True))
        assert [shown[name] for name in ("belief", "gain", "normalised", "turn group")] == ["–"] * 4
        page = open_page(two_runs_page, "#/rollouts/1.0.0.0")
        names = page.locator("#detail article >> nth=0 >> .credit dt").all_inner_texts()
        assert names == ["outcome + turn", "clip range", "clip scale"]
        assert "NaN" not in page.inner_text("body")
        assert "null" not in page.inner_text("body")

    def test_compare_shows_two_of_a_group(self, open_page, two_runs_page, firsts):
        page = open_page(two_runs_page, "#/rollouts/0.1.0.2")
        page.click("#detail .button")
        page.wait_for_selector(".pair")
        assert page.locator(".pair .side").count() == 2
        group = firsts[0][(firsts[0]["batch"] == 1) & (firsts[0]["group"] == 0)].set_index("generation")
        ids = page.url.split("#/compare/")[1].split("?")[0].split("/")
        left, right = (int(one.split(".")[-1]) for one in ids)
        apart = (group["reward"] - group["reward"][left]).abs()
        assert (left, apart[right]) == (2, apart.max())
        turns = [group["num_turns"][one] for one in (left, right)]
        assert page.locator(".pair > article").count() == sum(turns)
        assert page.locator(".pair > .absent").count() == abs(turns[0] - turns[1])
        other = next(one for one in group.index if one not in (left, right))
        page.click(f".side >> nth=1 >> .chip[title='rollout {other} of the group']")
        page.wait_for_url(f"**/compare/0.1.0.2/0.1.0.{other}*")
        page.keyboard.press("Escape")
        page.wait_for_url("**/rollouts/0.1.0.2*")

    def test_only_an_answer_is_called_one(self, open_page, two_runs, firsts):
        first = firsts[0]
        for reason, kind in (("answered", "answer"), ("length", "")):
            place = first[(first["stop_reason"] == reason)].iloc[0]
            rollout = ".".join(str(place[name]) for name in ("batch", "group", "generation"))
            page = open_page(two_runs[0], f"#/rollouts/0.{rollout}")
            head = page.locator("#detail article >> nth=-1").locator("h4").inner_text()
            assert head == f"Turn {place['num_turns'] - 1}{kind}"

    def test_the_overview_stays_while_a_search_runs(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.evaluate(
            """() => {
                const search = loadTexts;
                loadTexts = async (progress) => { await new Promise((done) => window.finish = done); await search(progress); };
            }"""
        )
        page.fill("#filter [name=text]", "lyon")
        page.wait_for_function("() => window.finish")
        page.click("#to-overview")
        page.wait_for_selector("#overview", state="visible")
        page.evaluate("finish()")
        assert count(page) > 0
        assert page.url.endswith("#/overview")
        page.evaluate("loadTexts = async () => {}")
        page.click("#to-rollouts")
        page.wait_for_selector("#rollouts", state="visible")
        assert "text=lyon" in page.url

    def test_the_latest_address_is_shown(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.evaluate(
            """() => {
                const search = loadTexts;
                loadTexts = async (progress) => { await new Promise((done) => window.finish = done); await search(progress); };
            }"""
        )
        page.evaluate("go('#/rollouts/0.0.0.0?text=lyon')")
        page.wait_for_function("() => window.finish")
        page.evaluate("go('#/rollouts/0.0.0.1?stop=%3Danswered')")
        page.evaluate("finish()")
        page.wait_for_selector("#detail article")
        page.wait_for_timeout(200)
        assert page.evaluate("list.selected") == page.evaluate("data.places.get('0.0.0.1')")
        assert page.locator("#detail .chip[aria-current]").get_attribute("title") == "rollout 1 of the group"

    def test_an_address_says_everything(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/compare/0.1.0.2/0.1.0.4?text=lyon&sort=best")
        assert page.locator(".pair .side").count() == 2
        page.goto(two_runs_page.as_uri() + "#/rollouts?text=lyon&low=1")
        page.wait_for_function("() => document.querySelector('#filter [name=low]').value === '1'")
        assert page.input_value("#filter [name=text]") == "lyon"
        assert 0 < count(page) < 160
        page.goto(two_runs_page.as_uri() + "#/rollouts/9.9.9.9")
        page.wait_for_selector("#detail .turns")

    def test_back_goes_back(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        before = page.inner_text("#detail")
        page.click(".row >> nth=1")
        page.wait_for_function("(before) => byId('detail').innerText !== before", arg=before)
        page.go_back()
        page.wait_for_url("**#/rollouts")


class TestKeyboard:
    def test_from_the_list_to_a_comparison(self, open_page, two_runs_page):
        page = open_page(two_runs_page)
        page.keyboard.press("r")
        assert page.locator("#list").is_visible()
        page.wait_for_selector("[aria-selected=true]")
        page.keyboard.press("Home")
        for key in ("j", "j", "ArrowDown", "k"):
            page.keyboard.press(key)
        assert page.locator("[aria-selected=true]").get_attribute("aria-posinset") == "3"
        page.keyboard.press("Enter")
        page.wait_for_selector("#detail:focus article")
        first = page.url
        page.keyboard.press("j")
        page.wait_for_function("(before) => location.href !== before", arg=first)
        page.keyboard.press("c")
        page.wait_for_selector(".pair")
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail .turns")
        page.keyboard.press("Escape")
        page.wait_for_url("**#/rollouts")
        assert page.evaluate("document.activeElement.id") == "list"

    def test_filter_and_back_to_the_list(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.keyboard.press("/")
        page.keyboard.type("jck")  # letters, not commands
        page.wait_for_function("() => document.getElementById('count').textContent.startsWith('0 of')")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "list"
        assert page.input_value("#filter [name=text]") == "jck"

    def test_the_skip_link_stays_in_the_view(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        assert page.locator("#list").is_visible()
        assert page.url.endswith("#/rollouts")

    def test_focus_is_seen(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.keyboard.press("Tab")
        for _ in range(12):
            page.keyboard.press("Tab")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML.slice(0, 200)")

    def test_roles(self, open_page, two_runs_page):
        page = open_page(two_runs_page, "#/rollouts")
        page.keyboard.press("j")
        assert page.get_by_role("listbox", name="Rollouts found").count() == 1
        assert page.locator("#list").get_by_role("option", selected=True).count() == 1
        active = page.get_attribute("#list", "aria-activedescendant")
        assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
        page.keyboard.press("?")
        assert page.get_by_role("dialog", name="Keys").is_visible()


def test_narrow(open_page, two_runs_page):
    page = open_page(two_runs_page, "#/rollouts", viewport={"width": 390, "height": 800})
    page.click(".row >> nth=1")
    page.wait_for_selector("#detail article")
    assert page.locator("#list").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("text=← List")
    page.wait_for_selector("#list", state="visible")
    page.click(".row >> nth=1")
    page.wait_for_selector("#detail article")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    assert page.locator("#list").is_visible()
    page.goto(two_runs_page.as_uri() + "#/overview")
    page.wait_for_selector("#overview", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_ten_thousand_rollouts(open_page, tmp_path):
    folder = synthetic.write_run(tmp_path / "run", rollouts=10_000, batch_size=400)
    firsts = read_turns(folder, ["turn", "reward"]).to_pandas().query("turn == 0")
    page = open_page(write(tmp_path / "report.html", folder), "#/rollouts")
    assert count(page) == 10_000
    assert page.locator(".row").count() < 40  # those in view
    assert fill(page, "low", "1") == (firsts["reward"] >= 1).sum()
    assert fill(page, "low", "") == 10_000
    assert 100 < fill(page, "text", "did not answer") < 5000
    assert fill(page, "text", "") == 10_000
    page.focus("#list")
    page.keyboard.press("End")
    page.wait_for_selector("[aria-posinset='10000'][aria-selected=true]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail article")
    page.evaluate("document.getElementById('list').scrollTop = 300000")
    page.wait_for_function("() => document.querySelector('.row').getAttribute('aria-posinset') > 3000")


def test_hostile_text_stays_text(open_page, tmp_path):
    """In every place that a model, a tool, a dataset or a folder can write to."""
    folder = tmp_path / "<img src=x onerror=window.hostile=1>&'\""
    store = RecordStore(folder / FOLDER, 2**40)
    rows = [turn_row(text, generation=generation) for generation, text in enumerate(HOSTILE)]
    store.append(rows)
    log = [{"step": 1, "reward": 1.0, **{f"rewards/{text}/mean": 1.0 for text in HOSTILE}}]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": log}))
    other = synthetic.write_run(tmp_path / "</title><script>window.hostile=1</script>", rollouts=32)
    page = open_page(write(tmp_path / "report.html", folder, other))
    page.evaluate("[...document.querySelectorAll('canvas')].forEach((canvas) => draw(canvas, canvas.chart))")
    for button in page.locator(".chart header button").all():
        button.click()
    start = page.url.partition("#")[0]
    for generation, text in enumerate(HOSTILE):
        page.goto(f"{start}#/compare/0.0.0.{generation}/0.0.0.0")
        page.wait_for_selector(".pair")
        page.goto(f"{start}#/rollouts/0.0.0.{generation}")
        page.wait_for_function("(text) => document.querySelector('.text.model')?.textContent === text", arg=text)
        assert page.locator(".call .tool").text_content() == text
    assert fill(page, "stop", f"={HOSTILE[0]}") == 1
    assert fill(page, "stop", "") == 40
    assert fill(page, "text", "onerror") == 1
    assert page.evaluate("window.hostile") is None
    assert page.locator("iframe, img, svg, object, embed, link").count() == 0
    assert page.locator("script").count() == page.locator("script[type='text/plain']").count() + 2
