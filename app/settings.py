"""Everything that can be configured, read once from the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from jwt.algorithms import has_crypto

from app import parsers
from app.errors import StartError
from app.origins import DEVELOPMENT, parse_hosts, parse_origins

T = TypeVar("T")

DATABASE_URL = "a URL like postgresql://user:password@host:5432/name (in a password, %, @, : and / are escaped)"
DATA_DIR = Path(".data")
# DB_POOL_SIZE=auto where that fits, and the connections that each process has beside its pool.
POOL_SIZE = 10
OWN_CONNECTIONS = 2

MAX_PORT = 65_535

has_prometheus = find_spec("prometheus_client") is not None


def _setting(default: T, parse: Callable[[str], T], expected: str, secret: bool = False) -> T:
    metadata = {"parse": parse, "expected": expected, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings, each named after its environment variable in lower case.

    Units are in the names. app/README.md lists them all; a test holds the two together.
    """

    host: str = _setting("127.0.0.1", parsers.host, "a host name or an IP address to listen on")
    port: int = _setting(3000, *parsers.whole(0, MAX_PORT))
    database_url: str | None = _setting(None, parsers.database_url, DATABASE_URL, secret=True)
    workers: int = _setting(1, *parsers.whole(1, 64))
    data_dir: Path = _setting(DATA_DIR, Path, "a folder for the embedded PostgreSQL")
    seed_demo: bool | None = _setting(None, parsers.switch, "0 or 1")
    log_level: str = _setting("info", *parsers.choice("debug", "info", "warn", "error"))
    metrics_host: str = _setting("127.0.0.1", parsers.host, "a host name or an IP address to listen on")
    metrics_port: int | None = _setting(None, *parsers.whole(0, MAX_PORT))
    trust_identity_headers: bool = _setting(False, parsers.switch, "0 or 1")
    jwt_secret: str | None = _setting(None, parsers.secret, "at least 32 characters", secret=True)
    jwt_jwks_url: str | None = _setting(
        None, parsers.http_url, "a URL like https://id.example.com/.well-known/jwks.json"
    )
    jwt_algorithms: frozenset[str] = _setting(
        frozenset({"HS256", "RS256", "ES256"}),
        parsers.algorithms,
        "some of " + ", ".join(sorted(parsers.ALGORITHMS)),
    )
    jwt_org_claim: str = _setting("org_id", str, "the name of a claim")
    jwt_user_claim: str = _setting("sub", str, "the name of a claim")
    jwt_audience: str | None = _setting(None, str, "any text")
    jwt_issuer: str | None = _setting(None, str, "any text")
    jwt_create_users: bool = _setting(False, parsers.switch, "0 or 1")
    allowed_hosts: frozenset[str] | None = _setting(
        None, parse_hosts, "host names or addresses separated by commas, without ports"
    )
    cors_origins: frozenset[str] = _setting(
        DEVELOPMENT,
        parse_origins,
        "origins like https://example.com separated by commas, among them null for pages opened as files, and"
        " development for those of development servers on this machine",
    )

    model: str = _setting("sim", parsers.model, "sim, anthropic:NAME or openai:NAME")
    model_url: str | None = _setting(
        None, parsers.base_url, "a URL like https://api.example.com/v1, without user, ? and #", secret=True
    )
    model_key: str | None = _setting(None, parsers.key, "a key of printable ASCII characters", secret=True)
    model_system: str | None = _setting(None, parsers.text_or_file, "text, or @ and the name of a file in UTF-8")
    model_max_tokens: int = _setting(4096, *parsers.whole(1))
    model_price: parsers.Price = _setting(
        parsers.TOKEN, parsers.price, "what a million tokens of input and of output cost, as in 3/15"
    )
    model_extra: dict[str, Any] | None = _setting(
        None,
        parsers.extra,
        'a JSON object like {"temperature": 0.5}, without ' + ", ".join(sorted(parsers.RESERVED)),
    )
    model_first_s: float = _setting(300.0, *parsers.seconds(0.1))
    model_silence_s: float = _setting(120.0, *parsers.seconds(0.1))

    sim_delay_ms: tuple[float, float] = _setting(
        (10.0, 30.0), parsers.milliseconds_range, "two numbers of milliseconds, the smaller first, as in 10-30"
    )
    sim_seed: str | None = _setting(None, str, "any text")
    sim_faults: bool = _setting(False, parsers.switch, "0 or 1")

    message_limit_chars: int = _setting(32_000, *parsers.whole(1))
    history_limit_messages: int = _setting(40, *parsers.whole(0, 10_000))
    # Room for the longest message when JSON escapes each character as a surrogate pair, in 12 bytes.
    body_limit_bytes: int = _setting(524_288, *parsers.whole(1_024))
    body_timeout_s: float = _setting(10.0, *parsers.seconds(0.1))
    keepalive_timeout_s: float = _setting(75.0, *parsers.seconds(0.1))

    stream_limit: int = _setting(2_000, *parsers.whole(1))
    user_stream_limit: int = _setting(20, *parsers.whole(0))
    user_reader_limit: int = _setting(40, *parsers.whole(0))
    user_turns_per_minute: int = _setting(120, *parsers.whole(0))
    heartbeat_s: float = _setting(15.0, *parsers.seconds(0.1))
    reply_limit_chars: int = _setting(500_000, *parsers.whole(1))
    unread: str = _setting("pause", *parsers.choice("pause", "finish"))
    checkpoint_s: float = _setting(5.0, *parsers.seconds(0, 3_600))
    resume_window_s: float = _setting(20.0, *parsers.seconds(0, 3_600))
    write_timeout_s: float = _setting(30.0, *parsers.seconds(0.1))
    stop_delay_s: float = _setting(0.0, *parsers.seconds(0, 3_600))
    shutdown_grace_s: float = _setting(5.0, *parsers.seconds(0))

    db_pool_size: int = _setting(0, parsers.pool_size, "auto or a whole number from 1 to 1000")
    db_timeout_s: float = _setting(5.0, *parsers.seconds(0.1, 600))

    @property
    def pool_size(self) -> int:
        """How many connections a pool has, if they fit."""
        return self.db_pool_size or POOL_SIZE

    @property
    def model_provider(self) -> str:
        return self.model.partition(":")[0]

    @property
    def model_name(self) -> str:
        return self.model.partition(":")[2]

    @property
    def checks_tokens(self) -> bool:
        return self.jwt_secret is not None or self.jwt_jwks_url is not None

    @property
    def believes_anybody(self) -> bool:
        """Whether `x-org-id` and `x-user-id` are believed, whoever sends them."""
        return not self.checks_tokens and not self.trust_identity_headers

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Return the settings that `environ` asks for; an empty value counts as unset.

        Raises:
            StartError: a value is not what its setting takes.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            key = _found(environ, setting.name)
            value = environ.get(key, "").strip()
            if not value:
                continue
            try:
                values[setting.name] = setting.metadata["parse"](value)
            except (ValueError, KeyError):
                shown = "(not shown)" if setting.metadata["secret"] else repr(value)
                raise StartError(f"{key} is {shown}, expected {setting.metadata['expected']}") from None
        provider = values.get("model", "sim").partition(":")[0]
        if provider in parsers.PROVIDERS and not values.get("model_key") and not values.get("model_url"):
            raise StartError(
                f"MODEL is {values['model']!r}, and no key is set, expected one in MODEL_KEY or"
                f" {provider.upper()}_API_KEY"
            )
        if "model_url" in values and "model" not in values:
            raise StartError("MODEL_URL is set and MODEL is not, expected openai:NAME or anthropic:NAME")
        if values.get("sim_faults") and provider != "sim":
            raise StartError(f"SIM_FAULTS is 1 and MODEL is {values['model']!r}, expected with it MODEL=sim")
        if values.get("jwt_secret") and values.get("jwt_jwks_url"):
            raise StartError("JWT_SECRET and JWT_JWKS_URL are both set, expected one of them")
        if values.get("jwt_create_users") and not (values.get("jwt_secret") or values.get("jwt_jwks_url")):
            raise StartError("JWT_CREATE_USERS is 1, expected with it JWT_SECRET or JWT_JWKS_URL")
        if values.get("jwt_jwks_url") and not has_crypto:
            raise StartError(
                "JWT_JWKS_URL is set, and cryptography not installed: .venv/bin/pip install -e '.[jwks]'"
            )
        if "metrics_port" in values and not has_prometheus:
            raise StartError(
                "METRICS_PORT is set, and prometheus-client not installed: .venv/bin/pip install -e '.[metrics]'"
            )
        return cls(**values)


def _found(environ: Mapping[str, str], setting: str) -> str:
    """Return the name under which `environ` has a setting."""
    key = setting.upper()
    provider = environ.get("MODEL", "").strip().partition(":")[0]
    if (
        provider in parsers.PROVIDERS
        and setting in ("model_key", "model_url")
        and not environ.get(key, "").strip()
    ):
        return f"{provider.upper()}_{'API_KEY' if setting == 'model_key' else 'BASE_URL'}"
    return key


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)
