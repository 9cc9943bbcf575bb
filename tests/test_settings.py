"""Settings: what is taken, what is refused and how."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from app.errors import StartError
from app.settings import Settings

README = (Path(__file__).parent.parent / "app/README.md").read_text("utf-8")


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 3000, None)
    assert settings.sim_delay_ms == (10, 30)
    assert settings.heartbeat_s == 15
    assert settings.shutdown_grace_s == 5
    assert {"http://localhost:5173", "http://127.0.0.1:8080"} < settings.cors_origins


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("PORT", "8080", 8080),
        ("PORT", "", 3000),
        ("PORT", " 1 ", 1),
        ("HOST", "::1", "::1"),
        ("SIM_DELAY_MS", "0-2.5", (0, 2.5)),
        ("LOG_LEVEL", "WARN", "warn"),
        ("CORS_ORIGINS", "null", {"null"}),
        ("CORS_ORIGINS", "https://a.example/, http://b.example:81", {"https://a.example", "http://b.example:81"}),
        ("ALLOWED_HOSTS", "Chat.example., [::5],10.1.2.3", {"chat.example", "::5", "10.1.2.3"}),
        ("SEED_DEMO", "0", False),
        ("DATA_DIR", "/tmp/x", Path("/tmp/x")),
        *(
            ("DATABASE_URL", url, url)
            for url in (
                "postgres://u:p@h/d",
                "postgresql://u:p@h1:5432,h2:5433/d?target_session_attrs=read-write",
                "postgresql://u:p@[::1]:5432,[2001:db8::1]/d",
                "postgresql://u:p@/d?host=/run/postgresql",
                "postgresql://u:p@%2Frun%2Fpostgresql/d",
            )
        ),
        ("MODEL_SYSTEM", " Be kind. ", "Be kind."),
        ("MODEL_EXTRA", '{"temperature": 0}', {"temperature": 0}),
    ],
)
def test_value_is_taken(key: str, value: str, parsed: Any) -> None:
    assert getattr(Settings.from_environ({key: value}), key.lower()) == parsed


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("PORT", "x", "PORT is 'x', expected a whole number from 0 to 65535"),
        ("PORT", "65536", "PORT is '65536', expected a whole number from 0 to 65535"),
        ("PORT", "-1", "PORT is '-1', expected a whole number from 0 to 65535"),
        ("HOST", "a b", "HOST is 'a b', expected a host name or an IP address to listen on"),
        (
            "SIM_DELAY_MS",
            "30-10",
            "SIM_DELAY_MS is '30-10', expected two numbers of milliseconds, the smaller first, as in 10-30",
        ),
        (
            "SIM_DELAY_MS",
            "20",
            "SIM_DELAY_MS is '20', expected two numbers of milliseconds, the smaller first, as in 10-30",
        ),
        ("LOG_LEVEL", "loud", "LOG_LEVEL is 'loud', expected one of debug, info, warn, error"),
        ("HEARTBEAT_S", "nan", "HEARTBEAT_S is 'nan', expected a number of seconds from 0.1 to 86400"),
        ("WRITE_TIMEOUT_S", "0", "WRITE_TIMEOUT_S is '0', expected a number of seconds from 0.1 to 86400"),
        ("SEED_DEMO", "yes", "SEED_DEMO is 'yes', expected 0 or 1"),
        (
            "CORS_ORIGINS",
            "*",
            "CORS_ORIGINS is '*', expected origins like https://example.com separated by commas, among them null"
            " for pages opened as files, and development for those of development servers on this machine",
        ),
        (
            "ALLOWED_HOSTS",
            "chat.example:3000",
            "ALLOWED_HOSTS is 'chat.example:3000', expected host names or addresses separated by commas, without"
            " ports",
        ),
        ("SIM_FAULTS", "yes", "SIM_FAULTS is 'yes', expected 0 or 1"),
        ("MODEL", "gpt-5", "MODEL is 'gpt-5', expected sim, anthropic:NAME or openai:NAME"),
        ("MODEL", "openai:", "MODEL is 'openai:', expected sim, anthropic:NAME or openai:NAME"),
        ("MODEL", "mistral:x", "MODEL is 'mistral:x', expected sim, anthropic:NAME or openai:NAME"),
        (
            "MODEL",
            "openai:x",
            "MODEL is 'openai:x', and no key is set, expected one in MODEL_KEY or OPENAI_API_KEY",
        ),
        (
            "MODEL",
            "anthropic:x",
            "MODEL is 'anthropic:x', and no key is set, expected one in MODEL_KEY or ANTHROPIC_API_KEY",
        ),
        (
            "MODEL_URL",
            "http://127.0.0.1:11434/v1",
            "MODEL_URL is set and MODEL is not, expected openai:NAME or anthropic:NAME",
        ),
        (
            "MODEL_URL",
            "https://user:secret@host/v1",
            "MODEL_URL is (not shown), expected a URL like https://api.example.com/v1, without user, ? and #",
        ),
        ("MODEL_KEY", "sk é", "MODEL_KEY is (not shown), expected a key of printable ASCII characters"),
        ("MODEL_KEY", "a\nb", "MODEL_KEY is (not shown), expected a key of printable ASCII characters"),
        (
            "MODEL_SYSTEM",
            "@no/such/file",
            "MODEL_SYSTEM is '@no/such/file', expected text, or @ and the name of a file in UTF-8",
        ),
        (
            "MODEL_EXTRA",
            '{"stream": false}',
            'MODEL_EXTRA is \'{"stream": false}\', expected a JSON object like {"temperature": 0.5}, without'
            " max_completion_tokens, max_tokens, messages, model, n, stream, system",
        ),
        (
            "MODEL_EXTRA",
            "{",
            "MODEL_EXTRA is '{', expected a JSON object like {\"temperature\": 0.5}, without"
            " max_completion_tokens, max_tokens, messages, model, n, stream, system",
        ),
        *(
            (
                "MODEL_PRICE",
                price,
                f"MODEL_PRICE is '{price}', expected what a million tokens of input and of output cost,"
                " as in 3/15",
            )
            for price in ("3", "-3/15", "3/nan", "3/1e9", "3/15/15")
        ),
        (
            "DATABASE_URL",
            "mysql://u:secret@h/d",
            "DATABASE_URL is (not shown), expected a URL like postgresql://user:password@host:5432/name"
            " (in a password, %, @, : and / are escaped)",
        ),
    ],
)
def test_bad_value_is_one_line_with_key_value_and_expectation(key: str, value: str, line: str) -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_environ({key: value})
    assert str(caught.value) == line


def test_keys_at_a_url_without_cryptography_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.has_crypto", False)
    with pytest.raises(StartError, match="JWT_JWKS_URL is set, and cryptography not installed: "):
        Settings.from_environ({"JWT_JWKS_URL": "https://id.example.com/keys"})
    assert Settings.from_environ({"JWT_SECRET": "x" * 32}).checks_tokens


def test_users_are_made_only_where_tokens_are_checked() -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_environ({"JWT_CREATE_USERS": "1"})
    assert str(caught.value) == "JWT_CREATE_USERS is 1, expected with it JWT_SECRET or JWT_JWKS_URL"
    assert Settings.from_environ({"JWT_CREATE_USERS": "1", "JWT_SECRET": "x" * 32}).jwt_create_users


def test_streams_are_broken_only_where_the_model_is_simulated() -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_environ({"SIM_FAULTS": "1", "MODEL": "openai:x", "OPENAI_API_KEY": "key"})
    assert str(caught.value) == "SIM_FAULTS is 1 and MODEL is 'openai:x', expected with it MODEL=sim"
    assert Settings.from_environ({"SIM_FAULTS": "1", "MODEL": "sim"}).sim_faults
    assert Settings.from_environ({"SIM_FAULTS": "1"}).sim_faults


OPENAI = {"OPENAI_API_KEY": "o-key", "OPENAI_BASE_URL": "http://o/v1"}
ANTHROPIC = {"ANTHROPIC_API_KEY": "a-key", "ANTHROPIC_BASE_URL": "http://a"}


@pytest.mark.parametrize(
    ("environ", "url", "key"),
    [
        ({"MODEL": "openai:x"}, "http://o/v1", "o-key"),
        ({"MODEL": "anthropic:x"}, "http://a", "a-key"),
        ({"MODEL": "openai:x", "MODEL_KEY": "key"}, "http://o/v1", "key"),
        ({"MODEL": "openai:x", "MODEL_URL": "http://m/v1/", "MODEL_KEY": " "}, "http://m/v1", "o-key"),
        ({"MODEL": "openai:x", "OPENAI_API_KEY": ""}, "http://o/v1", None),
        ({"MODEL": "openai:x", "OPENAI_BASE_URL": ""}, None, "o-key"),
        ({"MODEL": "sim"}, None, None),
        ({}, None, None),
    ],
)
def test_names_of_the_providers_libraries_count_where_ours_are_unset(
    environ: dict[str, str], url: str | None, key: str | None
) -> None:
    settings = Settings.from_environ(OPENAI | ANTHROPIC | environ)
    assert (settings.model_url, settings.model_key) == (url, key)


def test_bad_value_under_a_librarys_name_is_called_by_it() -> None:
    with pytest.raises(StartError, match="OPENAI_BASE_URL is "):
        Settings.from_environ({"MODEL": "openai:x", "OPENAI_BASE_URL": "o"})


@pytest.mark.parametrize(("value", "prices"), [("3/15", (3, 15)), ("0/0.075", (0, Decimal("0.075")))])
def test_price_is_of_input_and_of_output(value: str, prices: tuple[Decimal, Decimal]) -> None:
    assert Settings.from_environ({"MODEL_PRICE": value}).model_price == prices


def test_system_prompt_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Be kind.\nÉ\n", "utf-8")
    assert Settings.from_environ({"MODEL_SYSTEM": f"@{tmp_path}/prompt.txt"}).model_system == "Be kind.\nÉ"
    (tmp_path / "prompt.txt").write_bytes(b"\xff")
    with pytest.raises(StartError, match="expected text, or @ and the name of a file"):
        Settings.from_environ({"MODEL_SYSTEM": f"@{tmp_path}/prompt.txt"})


def test_secrets_are_not_shown() -> None:
    settings = Settings(model_key="hidden", jwt_secret="hidden", database_url="hidden")
    assert "hidden" not in repr(settings)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_readme_lists_every_setting_and_no_other() -> None:
    assert documented().keys() == {setting.name.upper() for setting in fields(Settings)}


def test_readme_has_the_defaults() -> None:
    for key, default in documented().items():
        # Where the database is, is known later.
        value = "" if default in ("unset", "1 if embedded") else default
        assert getattr(Settings.from_environ({key: value}), key.lower()) == getattr(Settings(), key.lower()), key
        assert (value == "") == (getattr(Settings(), key.lower()) is None), key


def documented() -> dict[str, str]:
    """Return the default of each setting, as the table has it."""
    table = README.split("\n## Settings\n")[1].split("\n## ")[0]
    rows = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {key.strip("`"): default.strip("`") for key, default, _ in rows}


@pytest.mark.parametrize("password", ["p@secret", "p/secret", "p?secret@"])
def test_password_that_is_not_escaped_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_environ({"DATABASE_URL": f"postgresql://user:{password}@host/name"})
    assert "secret" not in str(caught.value)
