"""PostgreSQL: the statements in `sql/`, the pool, the schema, and a server of our own where none is given."""
