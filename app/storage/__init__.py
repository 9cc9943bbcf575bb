"""PostgreSQL: the statements in `sql/`, the pool, the schema, and a server of our own where none is given."""

from typing import Literal

# How a reply ends; until then its row says `streaming`.
FinalStatus = Literal["complete", "disconnected", "failed", "interrupted", "stopped"]
