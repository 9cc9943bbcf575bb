"""FastAPI and asyncpg: `POST /chat` with the same two statements a turn, on uvicorn, uvloop and httptools.

What a developer who picks FastAPI and the fast driver would write. asyncpg prepares each statement once on each
connection; the texts are those of `sql/`, with their parameters numbered.
"""

import argparse
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

SQL = Path(__file__).parents[3] / "sql"
SERVER_ID = 1

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--period-ms", type=float, required=True)
parser.add_argument("--reply", type=Path, required=True)
parser.add_argument("--database-url", required=True)
parser.add_argument("--pool", type=int, default=10)
options = parser.parse_args()
text = options.reply.read_text().strip()


class Statement:
    """A file of `sql/`, its `%(name)s` turned into `$1`, `$2`, …"""

    def __init__(self, name: str) -> None:
        self.names: list[str] = []
        self.text = re.sub(r"%\((\w+)\)s", self._number, (SQL / f"{name}.sql").read_text()).replace("%%", "%")

    def _number(self, match: re.Match[str]) -> str:
        if match[1] not in self.names:
            self.names.append(match[1])
        return f"${self.names.index(match[1]) + 1}"

    async def row(self, **params: object) -> asyncpg.Record | None:
        return await pool.fetchrow(self.text, *[params[name] for name in self.names])


turn_open = Statement("turn_open")
turn_close = Statement("turn_close")
pool: asyncpg.Pool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global pool
    async with asyncpg.create_pool(options.database_url, min_size=options.pool, max_size=options.pool) as pool:
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    message: Annotated[str, Field(min_length=1, max_length=32_000)]
    chat_id: uuid.UUID | None = None


@app.post("/chat")
async def send(
    question: Question, x_org_id: Annotated[uuid.UUID, Header()], x_user_id: Annotated[uuid.UUID, Header()]
) -> dict[str, str]:
    reply_id = uuid.uuid4()
    opened = await turn_open.row(
        org_id=x_org_id,
        user_id=x_user_id,
        chat_id=question.chat_id,
        new_chat_id=uuid.uuid4(),
        title=question.message[:60],
        question_id=uuid.uuid4(),
        reply_id=reply_id,
        content=question.message,
        server_id=SERVER_ID,
        history_limit=40,
        key=None,
        asked=b"",
    )
    if opened is None or not opened["caller_known"]:
        raise HTTPException(403)
    if opened["chat_id"] is None:
        raise HTTPException(404)
    await turn_close.row(
        org_id=x_org_id,
        reply_id=reply_id,
        server_id=SERVER_ID,
        content=text,
        status="complete",
        resume_window_s=None,
    )
    return {
        "chat_id": str(opened["chat_id"]),
        "message_id": str(reply_id),
        "reply": text,
        "created_at": opened["created_at"].isoformat(),
    }


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=2048,
    )
