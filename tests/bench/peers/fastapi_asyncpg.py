"""FastAPI and asyncpg: `POST /chat` with two statements a turn, on uvicorn, uvloop and httptools.

What a developer who picks FastAPI and the fast driver would write. asyncpg prepares each statement once on each
connection. The statements do what this server does for a turn without an Idempotency-Key: one checks the caller,
finds or starts the chat, stores the question and an empty reply, and returns the history; the other stores the
reply. They have tables of their own, so that nothing here changes with this server's.
"""

import argparse
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

TABLES = """
create table users (org_id uuid, id uuid, primary key (org_id, id));
insert into users values ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002');
create table chats (
    org_id uuid, id uuid, user_id uuid not null, title text not null, message_count integer not null,
    created_at timestamptz not null default now(),
    primary key (org_id, id), foreign key (org_id, user_id) references users (org_id, id)
);
create index on chats (org_id, user_id, created_at desc, id desc);
create table messages (
    org_id uuid, id uuid, chat_id uuid not null, position integer not null, role text not null,
    content text not null, status text not null,
    created_at timestamptz not null default now(), finished_at timestamptz,
    primary key (org_id, id), unique (org_id, chat_id, position),
    foreign key (org_id, chat_id) references chats (org_id, id)
);
create unique index on messages (org_id, chat_id) where status = 'streaming';
"""

# $1 org, $2 user, $3 chat or null, $4 new chat, $5 title, $6 question, $7 reply, $8 content, $9 length of history
OPEN = """
with caller as (
    select org_id, id from users where org_id = $1 and id = $2
),
started as (
    insert into chats (org_id, id, user_id, title, message_count)
    select org_id, $4, id, $5, 2 from caller where $3::uuid is null
    returning id, message_count
),
continued as (
    update chats set message_count = message_count + 2
    from caller
    where chats.org_id = caller.org_id and chats.user_id = caller.id and chats.id = $3::uuid
    returning chats.id, chats.message_count
),
chat as (
    select * from started union all select * from continued
),
question as (
    insert into messages (org_id, id, chat_id, position, role, content, status, finished_at)
    select $1, $6, id, message_count - 1, 'user', $8, 'complete', now() from chat
),
reply as (
    insert into messages (org_id, id, chat_id, position, role, content, status)
    select $1, $7, id, message_count, 'assistant', '', 'streaming' from chat
    returning chat_id, created_at
),
history as (
    select position, role, content from messages
    where org_id = $1 and chat_id = $3::uuid and content <> ''
    order by position desc limit $9
)
select
    exists (select from caller) as caller_known, reply.chat_id, reply.created_at,
    (
        select coalesce(json_agg(json_build_object('role', role, 'content', content) order by position), '[]')
        from history
    ) as history
from (select) as one_row left join reply on true
"""

# $1 org, $2 reply, $3 content
CLOSE = """
update messages set content = $3, status = 'complete', finished_at = clock_timestamp()
where org_id = $1 and id = $2 and status = 'streaming'
returning finished_at
"""

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--period-ms", type=float, required=True)
parser.add_argument("--reply", type=Path, required=True)
parser.add_argument("--database-url", required=True)
# As many as this server has by default.
parser.add_argument("--pool", type=int, default=10)
options = parser.parse_args()
text = options.reply.read_text()
pool: asyncpg.Pool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    global pool
    async with asyncpg.create_pool(options.database_url, min_size=options.pool, max_size=options.pool) as pool:
        await pool.execute(TABLES)
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
    opened = await pool.fetchrow(
        OPEN,
        x_org_id,
        x_user_id,
        question.chat_id,
        uuid.uuid4(),
        question.message[:60],
        uuid.uuid4(),
        reply_id,
        question.message,
        40,
    )
    if not opened["caller_known"]:
        raise HTTPException(403)
    if opened["chat_id"] is None:
        raise HTTPException(404)
    # What a model would be given.
    json.loads(opened["history"])
    await pool.fetchrow(CLOSE, x_org_id, reply_id, text)
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
