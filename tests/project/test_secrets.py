"""Neither the database's password nor the model's key is in what is logged, printed, stored or loaded."""

import logging
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from rec import bundles, postgres, publish
from rec.errors import RecError
from tests.bundle import tiny

PASSWORD, KEY = "hunter2-of-the-shop", "sk-a-secret-of-the-shop"


@pytest.mark.slow
def test_no_secret_of_the_environment_leaves_it(
    new_store: Callable[[], Path],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE secrets")
    url = psycopg.conninfo.make_conninfo(database_url, dbname="secrets", password=PASSWORD)
    monkeypatch.setenv(postgres.URL_VARIABLE, url)
    monkeypatch.setenv("REC_LLM_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    recipe = tiny.make(tiny.config(new_store()))
    publish.run(recipe)
    said = ""
    with pytest.raises(RecError) as refused:  # there is no bundle before the first
        publish.rollback(recipe)
    said += str(refused.value)
    bundles.collect(recipe)
    monkeypatch.setenv(postgres.URL_VARIABLE, psycopg.conninfo.make_conninfo(url, dbname="gone"))
    with pytest.raises(RecError) as refused:
        publish.run(recipe)
    said += str(refused.value)

    said += caplog.text + "".join(capfd.readouterr())
    assert "gone" in said, "nothing was said at all"
    stored = b"".join(path.read_bytes() for path in Path(recipe.store).rglob("*") if path.is_file())
    assert len(stored) > 10_000
    for secret in (PASSWORD, KEY):
        assert secret not in said
        assert secret.encode() not in stored
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert tables
        for (table,) in tables:
            query = sql.SQL("SELECT count(*) FROM {0} WHERE {0}::text LIKE %s OR {0}::text LIKE %s")
            row = connection.execute(query.format(sql.Identifier(table)), (f"%{PASSWORD}%", f"%{KEY}%")).fetchone()
            assert row == (0,), table
