"""The message of an error that Ray returns to the user."""

import pytest

from platform.engine.errors import StorageError, UserError, user_error_of


def test_a_users_error_is_its_own():
    error = UserError("first line\nsecond line")
    assert user_error_of(error) is error
    assert user_error_of(ValueError("a bug")) is None


@pytest.mark.parametrize("kind", [UserError, StorageError])
def test_of_a_task_it_is_the_words_without_the_remote_trace(ray_session, kind):
    """Ray's wrapper is an instance of the same class, and its text is the whole remote stack trace."""

    @ray_session.remote(max_retries=0)
    def fail():
        raise kind("cannot read s3://bucket/shard: it answered 503")

    with pytest.raises(kind) as caught:
        ray_session.get(fail.remote())
    assert "ray::fail()" in str(caught.value) and "test_errors.py" in str(caught.value)
    assert str(user_error_of(caught.value)) == "cannot read s3://bucket/shard: it answered 503"
