"""A minimal aiohttp server that streams chat replies as server-sent events."""
