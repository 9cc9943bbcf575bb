"""The documents' own text, run: what they show, say and link to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import sysconfig
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Page, Route, async_playwright
from psycopg2.extensions import parse_dsn
from serving import StartServer
from support import Gated, Rows, Tenant, base, events, eventually, says

from app.models.knobs import FORMS, TEXTS
from app.replies.turns import TURNS
from app.settings import Settings
from app.statuses import AWAY, ERRORS

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "app/README.md", "sql/README.md", "web/README.md", "tests/README.md")
}
SOURCE = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "app").rglob("*.py")))


def snippet(language: str, part: str) -> str:
    """Return the fenced block of this language that holds `part`, in whichever document it is."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(DOCUMENTS.values()), re.DOTALL | re.MULTILINE)
    [found] = [text for tag, text in blocks if tag == language and part in text]
    return str(found)


def table(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table below a heading."""
    part = re.split(rf"^#+ {heading}$", DOCUMENTS[document], flags=re.MULTILINE)[1]
    part = re.split(r"^#", part, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return rows[1:]


def cut_connections(server: TestServer) -> None:
    """Let the network break for all clients of a server."""
    assert server.runner is not None
    assert server.runner.server is not None
    for connection in server.runner.server.connections:
        if connection.transport is not None:
            connection.transport.abort()


def send_away(server: TestServer) -> None:
    """Tell all readers of the server's replies to come back, as where the database does not answer."""
    assert server.app is not None
    for turn in server.app[TURNS]._turns.values():
        turn.reply.cut(AWAY)


@pytest.fixture
def json_headers(tenant: Tenant) -> dict[str, str]:
    return tenant.headers | {"content-type": "application/json"}


# ---- curl, and other commands


async def shell(command: str, **environ: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return (await process.communicate())[0]


async def test_curl_line_gives_the_bytes_shown(start_server: StartServer, rows: Rows) -> None:
    server = await start_server(model=says("Hello", " world"), seed_demo=True)
    out = await shell(snippet("sh", "curl -N http").replace("http://127.0.0.1:3000", base(server)))
    pattern = re.escape(snippet("", '"fullText"').strip()).replace("…", "[0-9a-f-]+")
    assert re.fullmatch(pattern, out.decode().strip())
    rows.forget_demo()


async def test_curl_line_that_resumes_gives_the_rest(start_server: StartServer, rows: Rows) -> None:
    server = await start_server(model=says("Hello", " world"), seed_demo=True)
    ask, resume = (
        snippet("sh", part).replace("http://127.0.0.1:3000", base(server)) for part in ("curl -N http", "$ID")
    )
    done = events(await shell(ask))[-1]
    rest = events(await shell(resume, ID=done["message_id"], N="8"))
    assert [event["token"] for event in rest] == ["", "rld", ""]
    assert rest[-1] == done
    rows.forget_demo()


def sim_lines() -> tuple[str, list[str]]:
    """Return the shell function that asks with knobs, and the lines that call it."""
    function, _, lines = snippet("sh", "chat() {").partition("\n}\n")
    return function + "\n}\n", lines.splitlines()


# What curl shows, by the knob that a line begins with: of the body, or of what follows it.
SEEN: dict[str, Callable[[str], bool]] = {
    "fail": lambda out: out.count('"token"') == 9 and '"error":"Stream failed"' in out,
    "endless": lambda out: out.endswith("\ncurl: 28\n") and '"done":true' not in out and '"token"' in out,
    "status": lambda out: bool(re.match(r"HTTP/1.1 (429|529) ", out)),
    "fin": lambda out: out.endswith("\n\ncurl: 18\n") and out.count('"token"') == 5,
    "rst": lambda out: out.endswith("\n\ncurl: 56\n") and out.count('"token"') == 5,
    "hang": lambda out: out.endswith("\n\ncurl: 28\n") and out.count('"token"') == 5,
    "cut": lambda out: '"done":true' not in out and out.endswith('"done":false}\n\n'),
    "dup": lambda out: len(set(re.findall("^data.*$", out, re.M)[2:4])) == 1 and '"done":true' in out,
    "big": lambda out: int(out) > 65_536,
    "utf8": lambda out: "灯塔的看守人每晚朗读天气。" in out and '"done":true' in out,
    "crlf": lambda out: '"done":false}\r\n\r\n' in out and out.endswith("}\r\n\r\n"),
    "bom": lambda out: "\r\n\r\n\ufeffdata: " in out and '"done":true' in out,
    "noise": lambda out: ": noise\nnoise: noise\n" in out and '"done":true' in out,
    "words": lambda out: len(json.loads(out.split("data: ")[-1])["fullText"].split()) == 500,
}


async def test_curl_lines_break_their_streams(start_server: StartServer, rows: Rows) -> None:
    server = await start_server(seed_demo=True, sim_faults=True, sim_delay_ms=(10.0, 30.0))
    function, lines = sim_lines()
    function = function.replace("http://127.0.0.1:3000", base(server))

    async def run(line: str) -> tuple[str, str, float]:
        began_s = time.monotonic()
        out = (await shell(function + line)).decode()
        return line, out, time.monotonic() - began_s

    for line, out, took_s in await asyncio.gather(*map(run, lines)):
        name = re.findall("chat '([a-z0-9]+)", line)[0]
        assert SEEN.get(name, lambda out: '"done":true' in out)(out), (line, out)
        assert took_s > {"ttft": 2, "stall": 2, "burst": 1, "hang": 2, "endless": 2}.get(name, 0)
        if "*1" in line:
            assert '"done":true' in out
            assert "\nRetry-After: 2\r\n" in out
    rows.forget_demo()


def test_every_knob_has_its_row_and_its_curl_line() -> None:
    part = DOCUMENTS["tests/README.md"].split("## Breaking a stream on purpose")[1].split("\n## ")[0]
    listed = set(re.findall(r"`([a-z0-9]+)(?:[=@][^`]*)?`", "".join(re.findall(r"^\| `.*? \| ", part, re.M))))
    called = set(
        re.findall(r"[' ]([a-z0-9]+)(?:[=@][^' ]*)?(?=[' ])", "".join(re.findall("'.*?'", part.split("```sh")[1])))
    )
    names = {*FORMS, "as"}
    assert names <= listed
    assert listed - names <= set(TEXTS)
    assert names <= called


async def test_token_made_by_the_command_is_believed(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    secret = "a secret of no less than 32 characters"
    command = snippet("sh", "jwt.encode").replace(".venv/bin/python", shlex.quote(sys.executable))
    ids = {"ORG_ID": tenant.org_id, "USER_ID": tenant.user_id, "JWT_SECRET": secret}
    token = (await shell(command, **ids)).decode().strip()
    client = await aiohttp_client(await start_server(jwt_secret=secret))
    response = await client.get("/chats", headers={"Authorization": f"Bearer {token}"})
    assert response.status == 200


async def test_id_that_the_command_prints_is_that_of_a_token(
    start_server: StartServer, aiohttp_client: Any, rows: Rows, tenant: Tenant
) -> None:
    secret, claims = (
        "a secret of no less than 32 characters",
        {"iss": "https://id.example.com/", "sub": "auth0|Jörg"},
    )
    command = snippet("sh", "uuid.uuid5").replace(".venv/bin/python", shlex.quote(sys.executable))
    user_id = (await shell(command, ISSUER=claims["iss"], CLAIM=claims["sub"])).decode().strip()
    # As PostgreSQL's uuid-ossp has it.
    assert user_id == "b255dbc3-4aaf-5496-a66a-5b246aff9579"
    rows("insert into users (org_id, id, email) values (%s, %s, 'joerg@example.com')", tenant.org_id, user_id)
    token = jwt.encode(claims | {"org_id": tenant.org_id, "exp": time.time() + 60}, secret)
    client = await aiohttp_client(await start_server(jwt_secret=secret))
    response = await client.get("/chats", headers={"Authorization": f"Bearer {token}"})
    assert response.status == 200


async def psql(url: str, statement: str) -> bytes:
    """Run the command that is shown, with another statement."""
    command = snippet("sh", "bin/psql")
    for shown, here in (
        (".venv/lib/python3*/site-packages", sysconfig.get_path("purelib")),
        ("$PWD/.data", parse_dsn(url)["host"]),
        ("select chat_id, role, status, content from messages order by chat_id, position;", statement),
    ):
        assert shown in command
        command = command.replace(shown, here)
    return await shell(command)


async def test_embedded_database_is_looked_into(
    postgres_url: str, tenant: Tenant, server: TestServer, aiohttp_client: Any
) -> None:
    client = await aiohttp_client(server)
    assert (await client.post("/chat", json={"message": "Hi"}, headers=tenant.headers)).status == 200
    # Not all of them: each is shown as wide as the widest that other tests have left, which may be megabytes.
    statement = (
        f"select chat_id, role, status, content from messages where org_id = '{tenant.org_id}'"
        " order by chat_id, position;"
    )
    out = await psql(postgres_url, statement)
    assert (out.count(b" user      |"), out.count(b" assistant |")) == (1, 1)


async def test_rows_are_inserted_and_deleted_by_the_lines_shown(postgres_url: str, rows: Rows) -> None:
    org_id, user_id, chat_id = (f"{n}0000000-0000-0000-0000-000000000000" for n in (1, 2, 3))
    rows("delete from orgs where id = %s", org_id)
    await psql(postgres_url, snippet("sql", "insert into orgs"))
    rows(
        "insert into chats (org_id, id, user_id, title, message_count) values (%s, %s, %s, 'Hi', 0)",
        *(org_id, chat_id, user_id),
    )
    for statement in snippet("sql", "delete from orgs").splitlines():
        table = statement.split()[2]
        left = f"select count(*) from {table} where {'id' if table == 'orgs' else 'org_id'} = %s"
        assert rows(left, org_id) == [(1,)]
        await psql(postgres_url, statement)
        assert rows(left, org_id) == [(0,)]


# ---- Events


def test_error_event_shown_is_the_one_sent() -> None:
    assert "The model failed; what it said so far is saved." in snippet("", '"error"')


def test_last_events_are_those_of_the_code() -> None:
    events_code = (ROOT / "app/replies/events.py").read_text() + (ROOT / "app/statuses.py").read_text()
    said = set(re.findall(r'(?:"error": |Cut\(|return |else )"([A-Z][a-z ]+)"', events_code))
    said |= {error for _, error, _ in ERRORS.values()}
    listed = {error.strip("`") for error, *_ in table("web/README.md", "The last event")}
    document = json.loads((ROOT / "web/openapi.json").read_text())
    choices = document["components"]["schemas"]["Failed"]["properties"]["error"]["oneOf"]
    assert said == listed == {choice["const"] for choice in choices}
    assert len(said) == 9


def test_errors_are_those_of_the_code() -> None:
    said = set(re.findall(r'ApiError\(\s*(\d+),\s*"([^"]+)"', SOURCE))
    # A client that is gone does not get it; these are in another form.
    said = said - {("499", "Client closed request")} | {("503", "Database unavailable"), ("400", "Bad fullText")}
    said |= {("400", f"Bad {name}") for name in ("message", "title", "q")}
    said |= {(str(status), error) for status, error, _ in ERRORS.values()}
    listed = {
        (re.findall(r"\d+", statuses)[i if "," in statuses else 0], error)
        for statuses, errors, _ in table("app/README.md", "Errors")
        for i, error in enumerate(re.findall(r"`([^`]+)`", errors))
    }
    assert said == listed


def test_log_lines_shown_have_fields_of_the_code() -> None:
    lines = [json.loads(line) for line in snippet("json", '"timestamp"').splitlines()]
    for line in lines:
        assert list(line)[:5] == ["timestamp", "level", "message", "requestId", "pid"]
        for part in [*list(line)[5:], line["message"]]:
            assert f'"{part}"' in SOURCE
    for messages, _ in table("app/README.md", "Logs"):
        for message in re.findall(r"`([^`]+)`", messages):
            assert f'"{message}"' in SOURCE


# ---- Clients


@pytest.fixture
async def chunked(tenant: Tenant) -> AsyncIterator[TestServer]:
    """A server that sends the reply "Añ 😀" as raw UTF-8, one byte a chunk."""
    done = {"token": "", "done": True, "fullText": "Añ 😀"}
    events = [{"token": token, "done": False} for token in ("Añ", " ", "😀")] + [done]
    wire = b": ping\n" + b"".join(
        b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events
    )

    async def stream(request: web.Request) -> web.StreamResponse:
        assert await request.json() == {"message": "Hello"}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for byte in wire:
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        return response

    async def health(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.add_routes([web.post("/chat/stream", stream), web.get("/health", health)])
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


def python_chat() -> Any:
    names: dict[str, Any] = {}
    exec(snippet("python", "def chat("), names)
    return names["chat"]


async def test_python_client_survives_any_chunks(chunked: TestServer, json_headers: dict[str, str]) -> None:
    tokens = await asyncio.to_thread(lambda: list(python_chat()(base(chunked), json_headers, "Hello")))
    assert tokens == ["Añ", " ", "😀"]


async def test_python_client_against_the_server(start_server: StartServer, json_headers: dict[str, str]) -> None:
    server = await start_server(model=says("Hello", " world"))
    text = await asyncio.to_thread(lambda: "".join(python_chat()(base(server), json_headers, "Hi")))
    assert text == "Hello world"
    with pytest.raises(HTTPError, match="400"):
        await asyncio.to_thread(lambda: list(python_chat()(base(server), json_headers, " ")))
    server = await start_server(model=says("Hello", RuntimeError()))
    with pytest.raises(RuntimeError, match="The model failed"):
        await asyncio.to_thread(lambda: list(python_chat()(base(server), json_headers, "Hi")))


@pytest.mark.parametrize("break_off", [cut_connections, send_away])
async def test_python_client_comes_back(
    start_server: StartServer, rows: Rows, tenant: Tenant, json_headers: dict[str, str], break_off: Any
) -> None:
    model = Gated(pieces=["one ", "🙂🙂 ", "three"])
    server = await start_server(model=model)
    tokens: list[str] = []
    reading = asyncio.create_task(
        asyncio.to_thread(lambda: tokens.extend(python_chat()(base(server), json_headers, "Hi")))
    )
    model.go(2)
    await eventually(lambda: "".join(tokens) == "one 🙂🙂 ")
    break_off(server)
    model.go(2)
    await reading
    assert "".join(tokens) == "one 🙂🙂 three"
    assert rows.messages(tenant.org_id)[1:] == [("assistant", "one 🙂🙂 three", "complete")]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a real browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield await browser.new_page()
        await browser.close()


class Tab:
    """The README's client, run in a page of a server."""

    def __init__(self, page: Page, server: TestServer, headers: dict[str, str]) -> None:
        self._page = page
        self._server = server
        self._headers = headers

    async def ask(self) -> asyncio.Task[Any]:
        """Run the snippet; the task's result is all that was shown, and the last event."""
        await self._page.goto(base(self._server) + "/health")
        code = (
            "async (headers) => { window.shown = '';"
            " window.stopButton = {}; const output = { append: (text) => { window.shown += text; } };"
            f" {snippet('js', 'function ask(')} return [window.shown, reply.last]; }}"
        )
        return asyncio.create_task(self._page.evaluate(code, self._headers))

    async def shows(self, text: str) -> None:
        await self._page.wait_for_function("(text) => window.shown === text", arg=text)

    async def press_stop(self) -> None:
        await self._page.evaluate("void (window.stopping = window.stopButton.onclick())")

    async def stop(self) -> None:
        await self.press_stop()
        await self._page.evaluate("window.stopping")


@pytest.mark.browser
async def test_javascript_client_reads_to_the_last_event(
    chunked: TestServer, start_server: StartServer, page: Page, json_headers: dict[str, str]
) -> None:
    text, last = await (await Tab(page, chunked, json_headers).ask())
    assert (text, last["fullText"]) == ("Añ 😀", "Añ 😀")

    whole = await start_server(model=says("Hello", " world"))
    text, last = await (await Tab(page, whole, json_headers).ask())
    assert (text, last["fullText"], last["chars"]) == ("Hello world", "Hello world", 11)

    failing = await start_server(model=says("Hello", RuntimeError()))
    text, last = await (await Tab(page, failing, json_headers).ask())
    assert text == "Hello (The model failed; what it said so far is saved.)"
    assert last["error"] == "Stream failed"

    stranger = json_headers | {"x-user-id": str(uuid.uuid4())}
    text, last = await (await Tab(page, whole, stranger).ask())
    assert (text, last["error"]) == (" (The user is not in this org.)", "Forbidden")


@pytest.mark.browser
async def test_javascript_client_comes_back_after_a_cut(
    start_server: StartServer, page: Page, rows: Rows, tenant: Tenant, json_headers: dict[str, str]
) -> None:
    model = Gated(pieces=["one ", "🙂🙂 ", "three ", "four ", "five"])
    server = await start_server(model=model)
    tab = Tab(page, server, json_headers)
    reading = await tab.ask()
    model.go(2)
    await tab.shows("one 🙂🙂 ")
    cut_connections(server)
    model.go()
    await tab.shows("one 🙂🙂 three ")
    send_away(server)
    model.go()
    await tab.shows("one 🙂🙂 three four ")
    model.go(2)
    text, last = await reading
    assert text == last["fullText"] == "one 🙂🙂 three four five"
    assert rows.messages(tenant.org_id) == [
        ("user", "Hello", "complete"),
        ("assistant", "one 🙂🙂 three four five", "complete"),
    ]


@pytest.mark.browser
async def test_javascript_client_gives_up_a_silent_connection_and_comes_back(
    start_server: StartServer, page: Page, json_headers: dict[str, str]
) -> None:
    model = Gated(pieces=["one ", "two"])
    tab = Tab(page, await start_server(model=model), json_headers)
    await page.clock.install()
    reading = await tab.ask()
    model.go()
    await tab.shows("one ")
    async with page.expect_request(re.compile(r"/chat/stream/.*offset=4$")):
        await page.clock.run_for(40_000)
        await page.clock.run_for(1_000)
    model.go(2)
    assert (await reading)[0] == "one two"


@pytest.mark.browser
async def test_javascript_client_whose_reply_ended_meanwhile_says_so(
    start_server: StartServer, page: Page, rows: Rows, tenant: Tenant, json_headers: dict[str, str]
) -> None:
    async def return_late(route: Route) -> None:  # in time, it would be given the last event
        await eventually(lambda: rows.messages(tenant.org_id)[1:] == [("assistant", "word ", "disconnected")])
        await route.continue_()

    model = Gated()
    server = await start_server(model=model, resume_window_s=0)
    tab = Tab(page, server, json_headers)
    await page.route(re.compile(r"/chat/stream/.*offset="), return_late)
    reading = await tab.ask()
    model.go()
    await tab.shows("word ")
    cut_connections(server)
    text, last = await reading
    assert text == "word  (The reply ended before it was whole.)"
    assert last["error"] == "Ended"


@pytest.mark.browser
@pytest.mark.parametrize("away", [False, True], ids=["connected", "while away"])
async def test_javascript_client_stops_its_reply(
    start_server: StartServer, page: Page, rows: Rows, tenant: Tenant, json_headers: dict[str, str], away: bool
) -> None:
    model = Gated()
    server = await start_server(model=model)
    tab = Tab(page, server, json_headers)
    reading = await tab.ask()
    model.go(2)
    await tab.shows("word word ")
    if away:
        cut_connections(server)
    await tab.stop()
    text, last = await reading
    assert text.startswith("word word  (")
    assert last["error"] in (("Stopped", "Ended") if away else ("Stopped",))
    await model.closed.wait()
    assert rows.messages(tenant.org_id)[1] == ("assistant", "word word ", "stopped")


@pytest.mark.browser
async def test_javascript_client_stops_a_question_that_is_not_answered_yet(
    start_server: StartServer, page: Page, rows: Rows, tenant: Tenant, json_headers: dict[str, str]
) -> None:
    server = await start_server(model=Gated())
    tab = Tab(page, server, json_headers)
    with rows.locked("messages"):
        reading = await tab.ask()
        await eventually(rows.waiting)
        await tab.press_stop()
    assert (await reading)[1]["error"] == "Stopped"
    assert rows.messages(tenant.org_id)[1] == ("assistant", "", "stopped")


def event_source(part: str) -> str:
    """Return the code that listens with a snippet's EventSource until it is closed, and gives the text."""
    listen = snippet("js", "source.onmessage")
    make = snippet("js", part)
    if make != listen:
        make += listen[listen.index("source.onmessage") :]
    return (
        "async ([url, orgId, userId, headers]) => { window.shown = ''; const message = 'Hi';"
        f" const show = (token) => {{ window.shown += token; }}; {make}"
        " while (source.readyState !== 2) await new Promise((resolve) => setTimeout(resolve, 10));"
        " return window.shown; }"
    )


@pytest.mark.browser
async def test_event_source_comes_back_where_it_is_cut_short(
    start_server: StartServer, page: Page, tenant: Tenant
) -> None:
    model = Gated(pieces=["one ", "two ", "three"])
    server = await start_server(model=model)
    await page.goto(base(server) + "/health")
    ids = [base(server), tenant.org_id, tenant.user_id, {}]
    reading = asyncio.create_task(page.evaluate(event_source("URLSearchParams"), ids))
    model.go(2)
    await page.wait_for_function("window.shown === 'one two '")
    send_away(server)
    model.go(2)
    assert await reading == "one two three"


@pytest.mark.browser
async def test_event_source_with_a_ticket(start_server: StartServer, page: Page, json_headers: Any) -> None:
    server = await start_server(model=says("Hello", " world"))
    await page.goto(base(server) + "/health")
    given = [base(server), "", "", json_headers]
    assert await page.evaluate(event_source("stream/ticket"), given) == "Hello world"


# ---- The seam


async def test_model_of_your_own_speaks_through_the_seam(
    start_server: StartServer, aiohttp_client: Any, tenant: Tenant
) -> None:
    names: dict[str, Any] = {}
    exec(snippet("python", "async def shout("), names)
    client = await aiohttp_client(await start_server(model=names["shout"]))
    response = await client.post("/chat/stream", json={"message": "hello world"}, headers=tenant.headers)
    assert b'"fullText":"HELLO WORLD "' in await response.read()


def test_settings_shown_for_real_models_are_taken() -> None:
    part = DOCUMENTS["app/README.md"].split("\n## A real model\n")[1].split("\n### ")[0]
    recipes = re.findall(r"`((?:[A-Z_]+=\S+ )+)make run`", part)
    assert len(recipes) == 4
    for recipe in recipes:
        environ = dict(pair.split("=", 1) for pair in recipe.replace("…", "key").split())
        assert Settings.from_environ(environ).model == environ["MODEL"]


# ---- SQL


async def test_user_inserted_by_the_sql_shown_may_ask(client: Any, rows: Rows) -> None:
    insert = snippet("sql", "insert into orgs")
    org_id, user_id = re.findall(r"'([0-9a-f-]{36})'", insert)[1:]
    rows(insert)
    response = await client.post(
        "/chat", json={"message": "Hi"}, headers={"x-org-id": org_id, "x-user-id": user_id}
    )
    assert response.status == 200


def test_statement_header_shown_is_that_of_its_file() -> None:
    assert (ROOT / "sql/turn_close.sql").read_text().startswith(snippet("sql", "-- takes:"))


# ---- Links, and the README's length


def slug(heading: str) -> str:
    """Return the anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links() -> list[tuple[str, str]]:
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    return sorted(
        {
            (name, link)
            for name, text in DOCUMENTS.items()
            for link in re.findall(r"\]\(([^)\s]+)\)", code.sub("", text))
        }
    )


@pytest.mark.parametrize(("document", "link"), links())
def test_link_leads_somewhere(document: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / document).parent / path if path else ROOT / document
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        assert anchor in map(slug, headings)


def test_readme_is_read_in_five_minutes() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 150


def test_settings_in_the_readme_are_as_in_the_whole_table() -> None:
    whole = {key: default for key, default, _ in table("app/README.md", "Settings")}
    for keys, defaults, _ in table("README.md", "Settings"):
        names = re.findall(r"`\w+`", keys)
        shown = defaults.split(", ") if len(names) > 1 and ", " in defaults else [defaults] * len(names)
        for name, default in zip(names, shown, strict=True):
            assert whole[name].strip("`") == default.strip("`")
