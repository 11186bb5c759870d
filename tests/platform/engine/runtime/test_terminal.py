"""Lines and counts that an actor on a busy node hands out late are not lost."""

import time

from platform.engine.runtime import progress as counting
from platform.engine.runtime import terminal
from platform.engine.runtime.terminal import LineBoard, relayed_lines


class Busy(LineBoard):
    def work(self, seconds):
        time.sleep(seconds)


def wait_for(text: str, capfd) -> None:
    """Wait until the terminal shows `text`."""
    deadline, shown = time.monotonic() + 20, ""
    while text not in shown:
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
        found = capfd.readouterr()
        shown += found.out + found.err


def test_lines_of_a_busy_board(ray_session, monkeypatch, capfd):
    monkeypatch.setattr(terminal, "ANSWER_S", 0.1)
    monkeypatch.setattr(terminal, "LineBoard", Busy)
    monkeypatch.setattr(terminal, "_idle_boards", [])
    with relayed_lines() as board:
        ray_session.get(board.order.remote())  # it has started
        for line in ("first", "second"):
            board.work.remote(1.5)
            board.push.remote(f"the {line} line")
            wait_for(f"the {line} line", capfd)
    for idle in terminal._idle_boards:
        ray_session.kill(idle)


def test_counts_of_a_busy_counter(ray_session, monkeypatch, capfd):
    class BusyCounter(counting.Counter):
        def work(self, seconds):
            time.sleep(seconds)

    monkeypatch.setattr(counting, "ANSWER_S", 0.1)
    monkeypatch.setattr(counting, "Counter", BusyCounter)
    with counting.progress("ingest", "images", 10, every_s=0.2) as counter:
        counter.work.remote(1.5)
        counter.add.remote(images=7)
        wait_for("ingest: 7 of 10 images", capfd)
