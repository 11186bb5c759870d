"""The line for a stream that stands still."""

import threading

from platform.engine.stream.silence import telling_silence


def test_each_wait_that_is_too_long_is_told_once():
    told = []
    heard = threading.Event()

    def tell(seconds):
        told.append((seconds, len(seen)))
        heard.set()

    def items():
        yield "at once"
        assert heard.wait(20)  # this item does not come before the line
        heard.clear()
        yield "late"
        yield "at once again"
        assert heard.wait(20)

    seen = []
    for item in telling_silence(items(), tell, silent_s=0.2):
        seen.append(item)
    assert seen == ["at once", "late", "at once again"]
    assert told == [(0.2, 1), (0.2, 3)]


def test_a_stream_that_ends_leaves_no_timer():
    before = threading.active_count()
    assert list(telling_silence([1, 2], print, silent_s=600)) == [1, 2]
    assert threading.active_count() == before
