"""Values of turns in every medium, and the tree of a prompt on the page, in a real browser."""

import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from test_report_page import browser, open_page, pytestmark, write  # noqa: F401

import synthetic
from a2tgpo_trl.records import SCHEMA, read_turns, store
from a2tgpo_trl.report import as_markdown, draw_credit, shown_rollout
from a2tgpo_trl.report.formats import signed

INTEGERS = ("node", "parent", "depth", "leaves_below")
COLUMNS = {name: pa.int32() for name in INTEGERS} | {"surprisal": pa.float32()}


@pytest.fixture(scope="module")
def tree_columns():
    """Records with the columns of trees, also where `SCHEMA` has none."""
    added = [pa.field(name, kind) for name, kind in COLUMNS.items() if name not in SCHEMA.names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SCHEMA", pa.schema([*SCHEMA, *added]))
        yield


@pytest.fixture(scope="module")
def official(tree_columns, tmp_path_factory):
    """10 chains and 2 rounds of 6: the page and its records."""
    folder = tmp_path_factory.mktemp("tree")
    run = synthetic.write_tree(folder / "run")
    return write(folder / "report.html", run), read_turns(run).to_pandas()


@pytest.fixture
def tree_page(open_page, official):  # noqa: F811
    page = open_page(official[0], "#/rollouts/0.0.0.12", viewport={"width": 1280, "height": 900})
    page.wait_for_selector(".tree")
    return page


def record(**columns):
    return {"prompt": "?", "text": "x", "advantage": 0.5} | columns


class TestValues:
    def test_a_turn_has_its_value_in_text(self):
        valued = record(estimator_columns={"value": 0.25, "return": -0.5, "other": 1.0})
        first, last = shown_rollout([valued, record(estimator_columns=[("value", None)])], "?").turns
        assert first.credit == {"advantage": "+0.50", "value": "+0.25", "return": "−0.50", "other": "+1.00"}
        assert last.credit["value"] == "–"
        assert (first.drawn["value"], first.drawn["return"], last.drawn["value"]) == (0.25, -0.5, None)
        table = as_markdown(shown_rollout([valued], "?")).splitlines()[-3:]
        assert [cell.strip() for cell in table[0].strip("|").split("|")] == ["turn", *first.credit]
        assert [cell.strip() for cell in table[2].strip("|").split("|")] == ["0", *first.credit.values()]

    def test_the_picture_draws_them(self, tmp_path, monkeypatch):
        labels, written = [], []
        set_ylabel, annotate = Axes.set_ylabel, Axes.annotate
        monkeypatch.setattr(Axes, "set_ylabel", lambda self, text: labels.append(text) or set_ylabel(self, text))
        monkeypatch.setattr(
            Axes, "annotate", lambda self, text, *a, **kw: written.append(text) or annotate(self, text, *a, **kw)
        )
        valued = record(estimator_columns={"value": 0.25, "return": 1.5}, advantage=1.25)
        draw_credit([valued, record(advantage=0.75)], tmp_path / "credit.png")
        assert labels == ["value", "advantage"]
        assert written == ["+0.25", "+1.25", "+0.75"]
        labels.clear()
        draw_credit([record(belief_before=-1.0, clip_low=0.9, clip_high=1.1, clip_scale=1.0)], tmp_path / "credit.png")
        assert labels == ["belief in the answer", "advantage", "clip range\nof ratio − 1"]

    def test_texts_under_many_turns_stay_apart(self, tmp_path, monkeypatch):
        labels = []
        set_xticks = Axes.set_xticks
        monkeypatch.setattr(
            Axes, "set_xticks", lambda self, at, names, **kw: labels.extend(names) or set_xticks(self, at, names, **kw)
        )
        draw_credit([record(text="one two three " * 9)] * 8, tmp_path / "credit.png")
        assert len(labels) == 8
        assert max(len(line) for label in labels for line in label.splitlines()) * 8 <= 80

    @pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "<end_of_turn>", ""])
    def test_the_token_that_ends_a_turn_is_not_drawn(self, tmp_path, monkeypatch, end):
        labels = []
        set_xticks = Axes.set_xticks
        monkeypatch.setattr(
            Axes, "set_xticks", lambda self, at, names, **kw: labels.extend(names) or set_xticks(self, at, names, **kw)
        )
        draw_credit([record(text=f"<answer> Euro</answer>{end}")], tmp_path / "credit.png")
        assert labels == ["turn 0\n<answer> Euro</answer>"]

    def test_the_page_shows_them(self, tree_page, official):
        _, turns = official
        rows = turns[turns["generation"] == 12]
        cards = tree_page.locator("#detail article").all()
        assert len(cards) == len(rows)
        for card, row in zip(cards, rows.to_dict("records"), strict=True):
            names, values = (card.locator(f".credit {kind}").all_inner_texts() for kind in ("dt", "dd"))
            shown = dict(zip(names, values, strict=True))
            assert shown["value"] == signed(dict(row["estimator_columns"])["value"])
            assert shown["surprisal"] == f"{row['surprisal']:.2f} nats"
            assert shown["leaves below"] == str(row["leaves_below"])


class TestLayout:
    """
    Rollouts of the nodes 0 1 2, 0 3, 0 1 4, 5:

        0 ─ 1 ─ 2
            └── 4
        └── 3
        5
    """

    ROLLOUTS = """[[0, 1, 2], [0, 3], [0, 1, 4], [5]].map((path, place) => ({
        place,
        turns: path.map((node, k) => ({node, parent: k ? path[k - 1] : null, drawn: {value: VALUE, advantage: place - 1}})),
    }))"""

    def nodes(self, page, result, value="null"):
        rollouts = self.ROLLOUTS.replace("VALUE", value)
        return page.evaluate(f"() => {{ const nodes = treeNodes({rollouts}); const rows = layOut(nodes); {result} }}")

    def test_rows_and_columns(self, tree_page):
        found = self.nodes(tree_page, "return [rows, nodes.map((node) => [node.number, node.depth, node.row])]")
        assert found == [4, [[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 1, 2], [4, 2, 1], [5, 0, 3]]]

    def test_a_node_knows_its_rollouts(self, tree_page):
        found = self.nodes(tree_page, "return nodes.map((node) => node.through)")
        assert found == [[0, 1, 2], [0, 2], [0], [1], [2], [3]]

    def test_an_unknown_parent_is_the_prompt(self, tree_page):
        found = tree_page.evaluate("[layOut([{number: 3, parent: 9, depth: 1}]), layOut([{number: 0, parent: null}])]")
        assert found == [1, 1]

    def test_colours_without_values_are_of_the_mean_advantage(self, tree_page):
        found = self.nodes(
            tree_page, "const {name, scale} = treeColors(nodes); return [name, scale, nodes.map(({worth}) => worth)]"
        )
        assert found == ["advantage", 2, [0, 0, -1, 0, 1, 2]]  # advantages of the rollouts: -1, 0, 1, 2

    def test_colours_are_of_values_where_there_are_any(self, tree_page):
        result = "const {name, scale} = treeColors(nodes); return [name, scale, nodes.map(({worth}) => worth)]"
        assert self.nodes(tree_page, result, "path.length === 1 ? null : -place / 2") == [
            "value",
            1,
            [-0.5, -0.5, 0, -0.5, -1, None],
        ]

    def test_strength_of_colours(self, tree_page):
        numbers = "[[0.5, 2], [-3, 2], [0, 1], [null, 1]].map(([number, scale]) => tint(number, scale))"
        assert tree_page.evaluate(numbers) == [["up", "25%"], ["down", "100%"], ["up", "0%"], ["none", "0%"]]

    def test_arrow_keys(self, tree_page):
        keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "x"]
        found = self.nodes(
            tree_page, f"return {keys}.map((key) => neighbour(nodes, nodes[1], key)?.number ?? null)"
        )  # of node 1
        assert found == [0, 2, None, 3, None]

    def test_signed_is_as_python_writes_it(self, tree_page):
        numbers = [0.5, -0.5, 0, -0.001, 12.345, 1e-9]
        assert tree_page.evaluate(f"[...{numbers}, null].map(signed)") == [*map(signed, numbers), "–"]


class TestTree:
    def test_every_turn_is_there_once(self, tree_page, official):
        _, turns = official
        assert tree_page.locator(".node").count() == turns["node"].nunique() < len(turns)
        assert tree_page.locator(".leaf").count() == 22
        assert tree_page.locator(".tree h4").inner_text() == f"Tree22 rollouts, {turns['node'].nunique()} turns"
        assert tree_page.locator(".tree .scale").inner_text().startswith("value")

    def test_leaves_show_their_reward(self, tree_page, official):
        _, turns = official
        rewards = turns[turns["turn"] == 0].set_index("generation")["reward"]
        shown = [text.split("rollout ") for text in tree_page.locator(".leaf").all_inner_texts()]
        assert {int(rollout): float(reward) for reward, rollout in shown} == rewards.to_dict()

    def test_a_node_says_what_is_known(self, tree_page, official):
        _, turns = official
        shared = turns[turns["leaves_below"] > 1].iloc[0]
        value = signed(dict(shared["estimator_columns"])["value"])
        node = tree_page.locator(f"#node-{shared['node']}")
        node.hover()
        said = tree_page.locator(".tip").inner_text()
        assert said.startswith(f"Turn {shared['turn']} · value {value} · surprisal {shared['surprisal']:.2f} nats")
        assert f"leaves below {shared['leaves_below']} · Search {shared['node']}." in said
        assert node.get_attribute("aria-label") == said
        assert node.evaluate("(node) => node.classList.contains('down')") == value.startswith("−")

    def test_a_click_opens_the_rollout_at_the_turn(self, tree_page, official):
        _, turns = official
        leaf = turns[(turns["generation"] == 3) & (turns["turn"] == turns["num_turns"] - 1)].iloc[0]
        tree_page.click(f"#node-{leaf['node']}")
        tree_page.wait_for_url(f"**#/rollouts/0.0.0.3/{leaf['turn']}*")
        tree_page.wait_for_function("() => detail === `rollouts/${data.places.get('0.0.0.3')}`")
        self.is_open(tree_page, leaf)
        assert tree_page.locator("[aria-selected=true]").get_attribute("data-place") == str(
            tree_page.evaluate("data.places.get('0.0.0.3')")
        )

    @staticmethod
    def is_open(page, row):
        card = page.locator(".turns > article[aria-current]")
        assert card.get_attribute("aria-label").startswith(f"Turn {row['turn']},")
        assert row["text"] in card.inner_text()
        assert page.evaluate("document.activeElement.matches('.turns > article[aria-current]')")
        top = card.evaluate("(card) => card.getBoundingClientRect().top")
        assert 0 < top < 900

    def test_a_turn_of_the_rollout_that_is_shown_stays_in_it(self, tree_page, official):
        _, turns = official
        shared = turns[(turns["generation"] == 12) & (turns["leaves_below"] > 1)].iloc[-1]
        for _ in range(2):  # again, once it was scrolled away
            tree_page.click(f"#node-{shared['node']}")
            tree_page.wait_for_selector(".turns > article[aria-current]")
            self.is_open(tree_page, shared)
            tree_page.evaluate("byId('detail').scrollTop = 0")
        assert f"#/rollouts/0.0.0.12/{shared['turn']}" in tree_page.url

    def test_all_leaves_below_a_turn_can_be_reached(self, tree_page, official):
        _, turns = official
        shared = turns[(turns["generation"] == 12) & (turns["leaves_below"] > 1)].iloc[-1]
        through = turns[turns["node"] == shared["node"]]["generation"].tolist()
        chips = tree_page.locator("#detail article").nth(int(shared["turn"])).locator(".shared")
        assert f"shared by {len(through)} rollouts" in chips.inner_text()
        ends = [href.split("?")[0] for href in chips.locator("a").evaluate_all("(all) => all.map((a) => a.hash)")]
        assert ends == [f"#/rollouts/0.0.0.{generation}/{shared['turn']}" for generation in through]
        other = next(generation for generation in through if generation != 12)
        chips.locator("a").nth(through.index(other)).click()
        tree_page.wait_for_function(f"() => detail === `rollouts/${{data.places.get('0.0.0.{other}')}}`")
        self.is_open(tree_page, shared)

    def test_what_is_not_shared_does_not_say_so(self, tree_page, official):
        _, turns = official
        rows = turns[turns["generation"] == 12]
        said = ["shared by" in card.inner_text() for card in tree_page.locator("#detail article").all()]
        assert said == (rows["leaves_below"] > 1).tolist() and 0 < sum(said) < len(said)

    def test_by_keyboard(self, tree_page, official):
        _, turns = official
        rows = turns[turns["generation"] == 12]
        assert tree_page.locator(".node[tabindex='0']").count() == 1
        tree_page.locator(".node[tabindex='0']").focus()
        assert tree_page.evaluate("document.activeElement.id") == f"node-{rows['node'].iloc[0]}"
        tree_page.keyboard.press("ArrowRight")
        second = tree_page.evaluate("document.activeElement.id")
        assert second == f"node-{rows['node'].iloc[1]}" and tree_page.locator(".tip").inner_text().startswith(
            "Turn 1 ·"
        )
        assert tree_page.locator(".node[tabindex='0']").get_attribute("id") == second
        tree_page.keyboard.press("Enter")
        tree_page.wait_for_url("**/1*")
        tree_page.wait_for_selector(".turns > article[aria-current]")
        self.is_open(tree_page, rows.iloc[1])
        tree_page.keyboard.press("Tab")  # the way back stands first in the card
        tree_page.keyboard.press("Enter")
        assert tree_page.evaluate("document.activeElement.id") == second

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_fits_and_can_be_read(self, open_page, official, scheme):  # noqa: F811
        page = open_page(
            official[0], "#/rollouts/0.0.0.12", viewport={"width": 1280, "height": 900}, color_scheme=scheme
        )
        box = page.locator(".tree .scroll")
        assert box.evaluate("(box) => [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight]") == [
            0,
            0,
        ]
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        overlaps = """(nodes) => {
            const boxes = nodes.map((node) => node.getBoundingClientRect());
            const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
            return boxes.filter((a, i) => boxes.some((b, j) => i < j && meet(a, b))).length;
        }"""
        assert page.locator(".node, .leaf, .root").evaluate_all(overlaps) == 0
        cut = "(nodes) => nodes.filter((node) => node.scrollWidth > node.clientWidth).length"
        assert page.locator(".node").evaluate_all(cut) == 0

    def test_a_narrow_screen_scrolls_within_the_tree(self, open_page, official):  # noqa: F811
        page = open_page(official[0], "#/rollouts/0.0.0.12", viewport={"width": 390, "height": 800})
        page.wait_for_selector(".tree")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

    def test_64_leaves(self, open_page, tree_columns, tmp_path):  # noqa: F811
        run = synthetic.write_tree(tmp_path / "run", chains=16, rounds=4, expanded=12)
        page = open_page(write(tmp_path / "report.html", run), "#/rollouts/0.0.0.63")
        assert page.locator(".leaf").count() == 64
        seen = """(node) => {
            const [a, b] = [node, node.closest(".scroll")].map((one) => one.getBoundingClientRect());
            return a.top >= b.top && a.bottom <= b.bottom;
        }"""
        assert page.locator(".node[aria-current] >> nth=-1").evaluate(seen)

    def test_it_is_printed_to_its_end(self, tree_page):
        tree_page.emulate_media(media="print")
        assert tree_page.locator(".tree .scroll").evaluate("(box) => box.scrollHeight <= box.clientHeight")

    def test_turns_stay_text(self, open_page, tree_columns, tmp_path):  # noqa: F811
        hostile = "<img src=x onerror='window.hostile=1'>"
        rows = [
            record(step=0, batch=0, group=0, generation=k, turn=0, num_turns=1, node=k, leaves_below=1, depth=0)
            | dict(text=hostile, num_tokens=1, num_observation_tokens=0, calls=[], estimator_columns={}, reward=1.0)
            | dict(rewards={})
            for k in range(2)
        ]
        store.RecordStore(tmp_path / "run" / "turns", 2**40).append(rows)
        page = open_page(write(tmp_path / "report.html", tmp_path / "run"), "#/rollouts/0.0.0.1")
        page.hover(".node >> nth=0")
        assert page.locator(".tip").inner_text().endswith(hostile)
        assert page.locator("img").count() == 0 and page.evaluate("window.hostile") is None


def test_a_page_without_trees(open_page, tmp_path):  # noqa: F811
    run = synthetic.write_run(tmp_path / "run", rollouts=32)
    page = open_page(write(tmp_path / "report.html", run), "#/rollouts/0.0.0.0")
    page.wait_for_selector("#detail article")
    assert page.locator(".tree, .node, .shared").count() == 0
    shown = page.inner_text("#detail")
    assert not [name for name in ("surprisal", "leaves below", "shared by", "value") if name in shown]
    page.goto(page.url.split("?")[0] + "/1")
    page.wait_for_selector(".turns > article[aria-current]")
