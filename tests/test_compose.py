"""docker-compose.yml, as a compose tool reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import leave_out

from app.settings import Settings
from app.storage.programs import LOGGING

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    for tool in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(tool[0]) and subprocess.run([*tool, "version"], capture_output=True).returncode == 0:
            break
    else:
        leave_out("there is no compose tool to read the file (Debian: apt-get install docker-compose)")
    shown = subprocess.run(
        [*tool, "--file", ROOT / "docker-compose.yml", "config"],
        capture_output=True,
        text=True,
        check=True,
        # Without the variables of the run: PORT and others would be filled in.
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
    ).stdout
    config = yaml.safe_load(shown)
    assert list(config["volumes"]) == ["postgres-data"]
    services: dict[str, Any] = config["services"]
    return services


def test_database_has_its_name_its_check_and_a_volume(services: dict[str, Any]) -> None:
    postgres = services["postgres"]
    assert postgres["image"] == "postgres:18"
    assert postgres["container_name"] == "llm-app-postgres"
    assert postgres["environment"]["POSTGRES_DB"] == "llm_app"
    assert "pg_isready" in str(postgres["healthcheck"]["test"])
    assert "/var/lib/postgresql" in str(postgres["volumes"])
    assert "ports" not in postgres


def test_database_logs_no_message_text(services: dict[str, Any]) -> None:
    command = str(services["postgres"]["command"])
    for name in ("log_min_error_statement", "log_error_verbosity"):
        assert f"{name}={LOGGING[name]}" in command


def test_app_waits_for_the_database_and_its_settings_are_taken(services: dict[str, Any]) -> None:
    app = services["app"]
    assert app["depends_on"]["postgres"]["condition"] == "service_healthy"
    settings = Settings.from_environ(app["environment"])
    assert settings.database_url == "postgresql://postgres:postgres@postgres:5432/llm_app"
    assert settings.seed_demo is True
    assert settings.model == "sim"
    # What people have set for the providers' own libraries reaches the server, too.
    assert {"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"} < app[
        "environment"
    ].keys()
    # None are shown, unless METRICS_PORT says where; then to the other containers alone.
    assert (settings.metrics_port, settings.metrics_host) == (None, "0.0.0.0")
    assert "METRICS_PORT" in app["environment"]
    assert len(app["ports"]) == 1
    # Published on this machine alone: identity is whatever a header says.
    assert "127.0.0.1" in str(app["ports"])


def test_container_runs_as_another_user_than_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER app" in lines
    assert lines[-1] == 'CMD ["python", "-m", "app"]'
