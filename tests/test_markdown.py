"""The page's Markdown renderer in a real Chromium: by the specifications' own examples, and by hostile texts."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from pages import CHROMIUM_ARGS
from playwright.async_api import Page, async_playwright
from support import EVERYTHING

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WEB = Path(__file__).parent.parent / "web"

RAW_HTML = "raw HTML is text"
# What the renderer does otherwise, on purpose, by the numbers of CommonMark's examples.
UNSUPPORTED = {
    25: "of the names of characters it knows those that are written in texts",
    201: RAW_HTML,
    214: "a definition holds for what comes after it, not for the heading before it",
    218: "the same, and here it is in a quote",
    317: "a definition is no block, so nothing after it stands apart",
    **dict.fromkeys([21, 31, *range(148, 192), 308, 309, 344, 475, 476, 477, 491, 494, 524, 536], RAW_HTML),
    **dict.fromkeys([*range(613, 618), 623, *range(625, 632), 642, 643], RAW_HTML),
    **dict.fromkeys([602, 608, 611], "bare URLs are links, as on GitHub"),
}
# They define a label after its use. The renderer does not touch again what is finished: these are judged with the
# definitions first.
DEFINED_LATE = {
    *(23, 33, 203, 204, *range(527, 536), 539, 540, 542, 543, 549, *range(553, 563), 565, 566),
    *(*range(568, 572), 573, 576, 577, *range(582, 590), 591, 593),
}

# Both specifications are CC BY-SA: not copied here, but taken from the source of a package that tests with them.
JUDGE = "marko==2.2.4"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"), args=CHROMIUM_ARGS, chromium_sandbox=False
        )
        page = await browser.new_page()
        for room in ("inlines.js", "markdown.js"):
            await page.add_script_tag(path=WEB / room)
        await page.add_script_tag(path=Path(__file__).with_name("markdown_judge.js"))
        yield page
        await browser.close()


@pytest.fixture(scope="session")
def specifications() -> Path:
    """The examples, downloaded once into the environment that the tests run in."""
    folder = Path(sys.prefix) / "specifications"
    if not list(folder.glob("*.tar.gz")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(folder), JUDGE], check=True)
    return next(folder.glob("*.tar.gz"))


def examples(archive: Path, name: str) -> Iterator[dict[str, Any]]:
    with tarfile.open(archive) as tar:
        member = next(member for member in tar.getmembers() if member.name.endswith(f"tests/spec/{name}"))
        file = tar.extractfile(member)
        assert file is not None
        spec = file.read().decode().replace("→", "\t")
    fence = "`" * 32
    found = re.findall(rf"^{fence} example( \w+)?\n(.*?)^\.\n(.*?)^{fence}$", spec, re.M | re.S)
    for number, (kind, source, html) in enumerate(found, 1):
        yield {"number": number, "kind": kind.strip(), "source": source, "html": html}


def definitions_first(source: str) -> str:
    parts = source.strip("\n").split("\n\n")
    return "\n\n".join(sorted(parts, key=lambda part: not re.match(r"\[[^]]+\]:", part))) + "\n"


async def judge(page: Page, examples: list[dict[str, Any]]) -> dict[int, str]:
    """Return what is made of each example that is not made as expected."""
    judged = await page.evaluate("(examples) => examples.map(judge)", examples)
    assert [made["cut"] for made in judged if made["cut"]] == []
    return {
        example["number"]: f"{example['source']!r}: {made['whole']}, expected {made['wanted']}"
        for example, made in zip(examples, judged, strict=True)
        if made["whole"] != made["wanted"]
    }


async def test_commonmarks_examples_are_rendered_as_it_says_whole_and_by_the_character(
    page: Page, specifications: Path
) -> None:
    found = list(examples(specifications, "commonmark.txt"))
    assert len(found) == 652
    wrong = await judge(page, found)
    late = [example | {"source": definitions_first(example["source"])} for example in found]
    still_wrong = await judge(page, [example for example in late if example["number"] in DEFINED_LATE])
    assert {number: wrong[number] for number in wrong.keys() - UNSUPPORTED.keys() - DEFINED_LATE} == {}
    assert still_wrong == {}
    assert (UNSUPPORTED.keys() | DEFINED_LATE) - wrong.keys() == set(), "supported after all"


async def test_githubs_tables_and_strikethrough_are_rendered_as_it_says(page: Page, specifications: Path) -> None:
    found = [e for e in examples(specifications, "gfm.txt") if e["kind"] in ("table", "strikethrough")]
    assert len(found) == 10
    assert await judge(page, found) == {}


@pytest.mark.parametrize("chars", [1, 3, 50])
async def test_what_is_finished_is_never_touched_again(page: Page, chars: int) -> None:
    pieces = [EVERYTHING[i : i + chars] for i in range(0, len(EVERYTHING), chars)]
    touched, tags = await page.evaluate(
        """(pieces) => {
            const place = document.createElement('div');
            const observer = new MutationObserver(() => {});
            observer.observe(place, { subtree: true, childList: true, characterData: true, attributes: true });
            const writer = markdown.into(place);
            const finished = new Set();
            const touched = [];
            for (const piece of [...pieces, null]) {
                if (piece === null) writer.end(); else writer.append(piece);
                for (const { target, type } of observer.takeRecords())
                    for (let node = target; node !== place && node; node = node.parentNode)
                        if (finished.has(node)) touched.push(`${type} in ${target.nodeName} at ${piece}`);
                const blocks = ':is(p, h1, h2, hr, ul, ol, li, blockquote, .code, .table, tr):not(:last-child)';
                place.querySelectorAll(blocks).forEach((block) => finished.add(block));
            }
            return [touched, Array.from(place.children, ({ localName }) => localName)];
        }""",
        pieces,
    )
    assert touched == []
    assert tags == ["h1", "p", "h2", "p", "ul", "ol", "blockquote", "div", "div", "div", "p", "hr", "p"]


@pytest.mark.parametrize(
    ("so_far", "shown"),
    [
        ("**", ""),
        ("**bo", "<strong>bo</strong>"),
        ("**bold*", "<strong>bold</strong>"),
        ("**bold** a", "<strong>bold</strong> a"),
        ("a 2 * 3", "a 2 * 3"),
        ("say `co", "say <code>co</code>"),
        ("see [the](https://exa", 'see <span class="unlinked">the</span>'),
        ("*not*\n*this\nany more", "<em>not</em>\n*this\nany more"),
        ("[label]: https://exa", ""),
        ("takes ~10 min", "takes ~10 min"),
        ("~~gone", "<del>gone</del>"),
    ],
)
async def test_marks_are_not_shown_before_it_is_known_what_they_do(page: Page, so_far: str, shown: str) -> None:
    made = await page.evaluate("(text) => begun(text).innerHTML", so_far)
    assert re.sub(r"^<p[^>]*>|</p>$", "", made) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("**注意：**请", "<strong>注意：</strong>请"),
        ("这是**“引用”**的", "这是<strong>“引用”</strong>的"),
        ("**한국어(Korean)**는", "<strong>한국어(Korean)</strong>는"),
        ("~~削除。~~と", "<del>削除。</del>と"),
        ("**bold:**text", "**bold:**text"),
        ("10~20元，30~40元", "10~20元，30~40元"),
        ("10~20 and 30~40", "10~20 and 30~40"),
        ("~gone~", "<del>gone</del>"),
    ],
)
async def test_emphasis_needs_no_spaces_beside_east_asian_text_and_a_range_is_not_struck_through(
    page: Page, text: str, shown: str
) -> None:
    made = await page.evaluate("(text) => rendered(text, [text]).innerHTML", text)
    assert re.sub(r"^<p[^>]*>|</p>$", "", made) == shown


async def test_bare_url_ends_before_the_marks_that_follow_it_without_a_space(page: Page) -> None:
    found = await page.evaluate(
        "(text) => Array.from(rendered(text, [text]).querySelectorAll('a'), (link) => link.href)",
        "请看https://example.com/文档，然后看：https://example.com。（http://example.com/a_(b)）「https://example.com/佐々木」",
    )
    paths = ["文档", "", "a_(b)", "佐々木"]
    schemes = ["https", "https", "http", "https"]
    assert [unquote(url) for url in found] == [
        f"{scheme}://example.com/{path}" for scheme, path in zip(schemes, paths, strict=True)
    ]


async def test_bars_in_code_are_text_where_a_row_has_too_many_cells(page: Page) -> None:
    found = await page.evaluate(
        """(text) => Array.from(rendered(text, [...text]).querySelectorAll('tr'),
            ({ cells }) => Array.from(cells, (cell) => cell.textContent))""",
        "| `x|y` | b |\n|---|---|\n| `a || b` | or |\n| `a \\| b` | pipe |\n| `a | b` |\n| ` | ` | c | d |",
    )
    assert found == [["x|y", "b"], ["a || b", "or"], ["a | b", "pipe"], ["`a", "b`"], ["`", "`"]]


async def test_br_in_a_tables_cell_is_a_line_break_and_no_other_html_is_anything(page: Page) -> None:
    rows = [
        ("a<br>b", "a<br>b"),
        ("a <BR/> b", "a<br>b"),
        ("**a<Br />b**", "<strong>a<br>b</strong>"),
        ("[a<br>b](https://e.com)", None),
        ("`a<br>b`", "<code>a&lt;br&gt;b</code>"),
        ("\\<br>", "&lt;br&gt;"),
        ("&lt;br>", "&lt;br&gt;"),
        ("<br onclick=hit()>", "&lt;br onclick=hit()&gt;"),
        ("<br", "&lt;br"),
        ("<break> </br> <b>c</b>", "&lt;break&gt; &lt;/br&gt; &lt;b&gt;c&lt;/b&gt;"),
        ("<br>1.<br>שלום", "<br>1.<br>שלום"),
    ]
    text = "| x<br>y | z |\n|---|---|\n" + "".join(f"| {source} | 1 |\n" for source, _ in rows) + "\na<br>b"
    for pieces in ("[text]", "[...text]"):
        head, cells, direction, after = await page.evaluate(
            f"""(text) => {{
                const place = rendered(text, {pieces});
                const cells = [...place.querySelectorAll('td:first-child')];
                return [place.querySelector('th').innerHTML, cells.map((cell) => cell.innerHTML),
                    cells.at(-1).dir, place.querySelector('p').textContent];
            }}""",
            text,
        )
        assert head == "x<br>y"
        link = cells.pop(3)
        assert re.fullmatch(r"<a [^>]*>a<br>b</a>", link)
        assert cells == [shown for _, shown in rows if shown is not None]
        assert direction == "rtl"
        assert after == "a<br>b"


async def test_break_in_a_row_is_never_shown_as_text_while_it_comes(page: Page) -> None:
    seen = await page.evaluate(
        """(text) => {
            const place = document.createElement('div');
            const writer = markdown.into(place);
            const seen = new Set();
            for (const char of text) {
                writer.append(char);
                seen.add(place.textContent);
            }
            return [...seen];
        }""",
        "| a<br>b |\n|---|\n| c<br />d |\n",
    )
    assert seen == ["", "ab", "abcd"]


async def test_columns_of_a_table_begin_where_its_language_does(page: Page) -> None:
    found = await page.evaluate(
        """(text) => {
            const place = rendered(text, [...text]);
            document.body.append(place);
            return Array.from(place.querySelectorAll('tr'), ({ cells: [one, other] }) =>
                one.getBoundingClientRect().left < other.getBoundingClientRect().left);
        }""",
        "| שם | Size |\n|---|---|\n| a | 1 |\n\n| Name | גודל |\n|---|---|\n| א | 1 |",
    )
    assert found == [False, False, True, True]


@pytest.mark.parametrize(
    "start", ["-", "- ", "1", "1.", "#", "##", ">", "```", "```py", "|", "| a | b |", "~~~", "  ", "="]
)
async def test_line_is_not_shown_before_it_is_known_what_it_begins(page: Page, start: str) -> None:
    made = await page.evaluate(
        """(start) => {
            const place = document.createElement('div');
            const writer = markdown.into(place);
            writer.append('Before\\n');
            writer.append(start);
            return place.innerText;
        }""",
        start,
    )
    assert made == "Before"


async def test_list_after_a_line_of_text_never_makes_that_a_heading(page: Page) -> None:
    made = await page.evaluate(
        """() => {
            const place = document.createElement('div');
            const writer = markdown.into(place);
            const seen = new Set();
            for (const char of 'Intro:\\n- one\\n- two') {
                writer.append(char);
                seen.add(Array.from(place.children, ({ localName }) => localName).join(' '));
            }
            return [...seen];
        }"""
    )
    assert made == ["p", "p ul"]


# ---- Hostile texts

HOSTILE = {
    "script": '<script>window.hit = 1</script>\n\n<img src=x onerror="window.hit = 1">\n<svg/onload=hit=1>',
    "script in a link": '[<script>hit = 1</script>](https://example.com) [x](https://e.com ""onclick=hit=1)',
    "javascript:": "[a](javascript:hit=1) [b](JaVaScRiPt:hit) [c](<java\tscript:hit=1>) [d](\x01javascript:hit=1)",
    "javascript: by entities": "[a](&#106;avascript:hit=1) [b](java&#9;script:hit=1) [c](javascript&#x3a;hit=1)",
    "javascript: by others": "<javascript:hit=1> ![i](javascript:hit)\n\n[s]: javascript:hit\n[s] [v](vbscript:x)",
    "other schemes": "[a](data:text/html,<script>hit=1</script>) [f](file:///etc/passwd) [b](blob:https://e.com/1) [i](ftp://e)",
    "relative": "[a](/logout) [b](//example.com) [c](?q) [d](#x) [e](\\\\example.com) [f](https:\\\\e.com)",
    "breaks": "| <br onclick=hit=1> | <br/onclick=hit=1> |\n|---|---|\n| <br><script>hit=1</script> | <br\t/> |",
    "attributes": '```x" onclick="hit=1\ncode\n```\n\n<a href="javascript:hit=1">x</a>',
    "nested fences": "````\n```\n<b>x</b>\n```\n````\n~~~ ```\n~~~~\n",
    "NUL and surrogates": "a\0b \ud800 [x](https://e.com/\ud800) &#0; &#xd800;",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_text_makes_no_node_that_does_anything(page: Page, name: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    # As JSON, for the surrogates.
    made = await page.evaluate(
        """(source) => {
            const place = rendered(JSON.parse(source), [...JSON.parse(source)]);
            document.body.append(place);
            const found = Array.from(place.querySelectorAll('*'), (element) => [
                element.localName,
                element.getAttributeNames(),
                element.getAttribute('href'),
            ]);
            place.querySelectorAll('span, code').forEach((element) => element.click());
            return { found, hit: window.hit ?? null };
        }""",
        json.dumps(HOSTILE[name]),
    )
    allowed = [
        "p",
        "h1",
        "h2",
        "ul",
        "ol",
        "li",
        "blockquote",
        "div",
        "span",
        "button",
        "pre",
        "code",
        "em",
        "strong",
        "del",
        "a",
        "br",
        *("table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"),
    ]
    for tag, attributes, href in made["found"]:
        assert tag in allowed
        assert set(attributes) <= {"dir", "class", "href", "title", "target", "rel", "type", "tabindex", "style"}
        assert href is None or re.match(r"https?://|mailto:", href)
    assert made["hit"] is None
    assert requests == []


async def test_link_says_where_it_leads_where_letters_are_turned_around(page: Page) -> None:
    turned = "\u202emoc.live\u202c"
    text = await page.evaluate(
        "(text) => rendered(text, [text]).innerText",
        f"[{turned}](https://evil.com) `{turned}` <https://e.com/{turned}> [x](/{turned})\n\n```\n{turned}\n```",
    )
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert text.count("[U+202E]moc.live[U+202C]") == 5


SIZE = 20_000
# Of about so many characters, or twice as many.
LONG: dict[str, Callable[[int], str]] = {
    "backticks": lambda n: "`" * 2 * n,
    "backticks of many lengths": lambda n: " a ".join("`" * i for i in range(1, math.isqrt(n))),
    "lone backticks": lambda n: "`a ``b " * (n // 4),
    "brackets": lambda n: "[" * 2 * n,
    "brackets, closed": lambda n: "[" * n + "]" * n,
    "brackets with parentheses": lambda n: "[a](" * (n // 2),
    "brackets with angles": lambda n: "[a](<b" * (n // 3),
    "brackets with titles": lambda n: '[a](b "c' * (n // 4),
    "images": lambda n: "![[" * (n // 2),
    "images in images": lambda n: "![a" * (n // 4) + "](b)" * (n // 4),
    "labels": lambda n: ("[" + "a" * 900 + "]") * (n // 400),
    "definitions": lambda n: "[a]: b\n" * (n // 4),
    "stars": lambda n: "*" * 2 * n,
    "stars in pairs": lambda n: "*" * n + "a" + "*" * n,
    "stars and letters": lambda n: "*a " * (n // 2) + "a* " * (n // 2),
    "stars and underscores": lambda n: "*a_ " * (n // 2),
    "emphasis in emphasis": lambda n: "*a **a " * (n // 4) + "a** a* " * (n // 4),
    "tildes": lambda n: "~~a ~b " * (n // 4),
    "angles": lambda n: "<a@" * (n // 2) + "<a:" * (n // 2),
    "entities": lambda n: "&#1;&x;&" * (n // 4),
    "URLs": lambda n: "https://a(" * (n // 5) + " " + "https://[ " * (n // 5),
    "closing parentheses": lambda n: "https://a" + ")" * 2 * n,
    "blanks": lambda n: "a" + " " * n + "a" + "\t" * n + "b",
    "backslashes": lambda n: "\\" * 2 * n,
    "quotes in quotes": lambda n: ">" * n + "a\n" + "> " * (n // 2) + "b",
    "lists in lists": lambda n: "- " * (n // 2) + "a\n" + "1. " * (n // 3) + "b",
    "lists, indented": lambda n: "\n".join("  " * i + "- a" for i in range(math.isqrt(n))),
    "hashes": lambda n: "# " + "# a " * (n // 4) + "#" * n,
    "bars": lambda n: "|" * n + "\n" + "|-" * (n // 2) + "\n" + "|" * n,
    "rows": lambda n: "|a|b|\n|-|-|\n" + "|a|\n" * (n // 4),
    "breaks": lambda n: "|a|\n|-|\n|" + "<br>" * (n // 4) + "<br " * (n // 4),
    "dashes": lambda n: "-" * n + "a\n" + "- " * (n // 2) + "a",
    "fences": lambda n: "```\n~~~\n" * (n // 8),
    "blank lines in code": lambda n: "    a\n" + "\n" * n + "    b",
    "items and blank lines": lambda n: "- a\n\n" * (n // 4),
    "one line": lambda n: "word " * (n // 2),
    "one line of code": lambda n: "```\n" + "word " * (n // 2),
    "one paragraph": lambda n: "some words\n" * (n // 5),
    "many paragraphs": lambda n: "some *words*\n\n" * (n // 7),
    "right to left": lambda n: "\u202e[a\u2066](https://a) " * (n // 10),
}


async def cost(page: Page, text: str, in_pieces: bool) -> tuple[float, int]:
    """Return the processor's time that a text takes, in s, and how deep its elements are in each other.

    What else the machine does is not in it.
    """
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")

    async def spent() -> float:
        metrics = (await session.send("Performance.getMetrics"))["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime"))

    before = await spent()
    depth = await page.evaluate("([text, inPieces]) => depthOf(text, inPieces)", [text, in_pieces])
    return await spent() - before, depth


async def is_linear(page: Page, text: Callable[[int], str], in_pieces: bool) -> None:
    for _ in range(3):
        once, _ = await cost(page, text(SIZE), in_pieces)
        twice, depth = await cost(page, text(2 * SIZE), in_pieces)
        if twice < 3 * max(once, 0.03):
            break
    assert twice < 3 * max(once, 0.03)
    assert depth < 60


async def test_more_nodes_are_made_than_a_call_takes_arguments(page: Page) -> None:
    for text in ("*" + "`a`\\\\\n" * 66_000 + "*", "`a` " * 70_000 + "\n==="):
        assert (await cost(page, text, in_pieces=False))[1] < 6


@pytest.mark.parametrize("name", LONG)
async def test_time_is_linear_and_depth_bounded(page: Page, name: str) -> None:
    await is_linear(page, LONG[name], in_pieces=False)


@pytest.mark.parametrize(
    "name",
    [
        "one line",
        "one paragraph",
        "many paragraphs",
        "one line of code",
        "fences",
        "rows",
        "items and blank lines",
    ],
)
async def test_time_is_linear_in_pieces_of_1_to_3_characters(page: Page, name: str) -> None:
    await is_linear(page, lambda n: LONG[name](2 * n), in_pieces=True)


async def test_no_script_of_the_page_makes_markup_from_text() -> None:
    sinks = (
        "innerHTML outerHTML insertAdjacentHTML DOMParser setHTML createContextualFragment document.write eval("
    )
    for script in WEB.glob("*.js"):
        assert [sink for sink in sinks.split() if sink in script.read_text()] == [], script.name
