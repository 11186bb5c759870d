"""Answers of an object store that refuses a request, given in place of the server's by a hook of botocore."""

from botocore.awsrequest import AWSResponse


class _Body:
    """The content of an answer, as urllib3 gives it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stream(self, **_):
        yield self.content


def refusal(request, status: int, code: str) -> AWSResponse:
    """The answer to `request` with this HTTP status and error code; to be returned by a handler of "before-send"."""
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>not here</Message></Error>".encode()
    return AWSResponse(request.url, status, {"content-type": "application/xml"}, _Body(content))
