"""Secrets in texts and settings are recognized and hidden; ordinary texts stay."""

import pytest

from platform.engine import secrets
from platform.engine.config.compose import load_config, to_plain
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.secrets import hidden, hide, is_secret_name


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(secrets, "_from_environment", {})


@pytest.mark.parametrize(
    "text, shown",
    [
        ("http://joe:PW@host:5000/x", "http://***@host:5000/x"),
        ("see postgresql://a:P/W@host/db: refused", "see postgresql://***@host/db: refused"),
        ("mysql+pymysql://a:P@W@host", "mysql+pymysql://***@host"),
        ("https://PW@host", "https://***@host"),
        ("http://host/?token=PW&run=1", "http://host/?token=***&run=1"),
        ("+tracking.password=PW", "+tracking.password=***"),
        ("--api-key=PW rest", "--api-key=*** rest"),
        ("{'mlflow_password': 'PW', 'x': 1}", "{'mlflow_password': '***', 'x': 1}"),
        ("Authorization: Bearer PW", "Authorization: ***"),
        ("AWS_SECRET_ACCESS_KEY=PW/x", "AWS_SECRET_ACCESS_KEY=***"),
    ],
)
def test_secrets_in_a_text(text, shown):
    assert hide(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/people/joe@home",
        "s3://bucket/a@b/c",
        "key=3, num_tokens: 5, tokens=4",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "cannot read /data/secret/people: it does not exist",
        "the cluster refuses this user's token (bad)",
    ],
)
def test_ordinary_texts_stay(text):
    assert hide(text) == text


def test_values_of_secret_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "correct-horse")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/joe/token")
    assert hide("sent correct-horse: true, /home/joe/token") == "sent ***: true, /home/joe/token"
    monkeypatch.setenv("PWD", str(tmp_path))  # the shell's working folder
    monkeypatch.setenv("DEPLOY_KEY", __file__)
    assert hide(f"output {tmp_path}/run, {__file__}") == f"output {tmp_path}/run, {__file__}"


def test_names_of_secrets():
    for name in ("password", "MLFLOW_TRACKING_PASSWORD", "db_pw", "api_key", "WANDB_API_KEY", "session.token"):
        assert is_secret_name(name), name
    for name in ("num_tokens", "RAY_AUTH_TOKEN_PATH", "keys", "monkey", "source_proxy", "AWS_ACCESS_KEY_ID"):
        assert not is_secret_name(name), name


def test_no_setting_of_a_program_is_hidden_by_its_name():
    plain = to_plain(PretrainConfig())
    assert hidden(plain) == plain


def test_the_environment_is_stored_as_it_was_written(monkeypatch):
    """Where a setting does not change results. Paths and settings that do are stored with their values."""
    for name, value in {"TEAM": "our-phrase", "DB_PW": "hunter2", "PLACE": "/data/people", "KIND": "sgd"}.items():
        monkeypatch.setenv(name, value)
    config = load_config(
        PretrainConfig,
        "pretrain",
        [
            "tracking.experiment=${oc.env:TEAM}",
            "tracking.mlflow=http://joe:${oc.env:DB_PW}@host",
            "tracking.tensorboard=${oc.env:PLACE}/board",
            "data.uri=${oc.env:PLACE}",
            "optimizer.name=${oc.env:KIND}",
        ],
    )
    assert config.tracking.experiment == "our-phrase" and config.tracking.mlflow == "http://joe:hunter2@host"
    stored = hidden(to_plain(config))
    assert stored["tracking"]["experiment"] == "${oc.env:TEAM}"
    assert stored["tracking"]["mlflow"] == "http://***@host"
    assert stored["tracking"]["tensorboard"] == "/data/people/board" and stored["data"]["uri"] == "/data/people"
    assert stored["optimizer"]["name"] == "sgd"
