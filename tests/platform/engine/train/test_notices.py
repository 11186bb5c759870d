"""Notices: the reaction of all workers to each kind, and the orders that the board forwards."""

import time

import torch

from platform.engine.runtime.terminal import LineBoard
from platform.engine.train import notices
from platform.engine.train.notices import Notices


class Info:
    """A preemption notice as Ray Train gives it to a worker."""

    def __init__(self, seconds_left: float | None) -> None:
        self.deadline_ms = None if seconds_left is None else int(1000 * (time.time() + seconds_left))


def decisions(notice: Notices, times: int = 1) -> list[str]:
    return [notice.decide(notice.seen()) for _ in range(times)]


def test_nothing_to_do():
    assert decisions(Notices(), 3) == ["", "", ""]


def test_a_drain_notice_asks_for_one_checkpoint_now_and_one_near_the_deadline(monkeypatch):
    notice, info = Notices(margin_s=5.0), Info(20)
    monkeypatch.setattr(notices, "preemption", lambda: info)
    assert decisions(notice, 3) == ["save", "", ""]
    now = time.time()
    monkeypatch.setattr(notices.time, "time", lambda: now + 16)
    assert decisions(notice) == ["wait"]
    monkeypatch.setattr(notices, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(notices.time, "time", lambda: now + 30)
    notice.wait()
    assert decisions(notice, 2) == ["", ""]  # the workers were not restarted: training continues
    info = Info(20)  # another node is taken away
    assert decisions(notice, 2) == ["save", ""]
    monkeypatch.setattr(notices.time, "time", lambda: now + 46)
    assert decisions(notice) == ["wait"]


def test_slow_checkpoints_begin_earlier(monkeypatch):
    notice, info = Notices(margin_s=5.0), Info(20)
    monkeypatch.setattr(notices, "preemption", lambda: info)
    notice.checkpoint_took(10.0)
    assert notice.margin_s == 23.0
    assert decisions(notice) == ["wait"]


def test_a_notice_without_a_deadline_is_one_checkpoint(monkeypatch):
    info = Info(None)
    monkeypatch.setattr(notices, "preemption", lambda: info)
    assert decisions(Notices(), 2) == ["save", ""]


def test_what_one_worker_saw_all_do():
    seen = {"save": torch.tensor(0.25), "wait": torch.tensor(0.0), "stop": torch.tensor(0.0)}
    assert Notices().decide(seen) == "save"
    assert Notices().decide(seen | {"wait": torch.tensor(0.1)}) == "wait"
    assert Notices().decide({name: torch.tensor(1.0) for name in seen}) == "stop"


def test_orders_of_the_board():
    board = LineBoard()
    board.give("resize")
    assert board.order() == "resize"
    board.carried_out("resize")
    assert board.order() == ""
    board.give("stop")
    board.give("resize")
    board.carried_out("stop")
    assert board.order() == "stop"  # after an order to stop, workers that start later stop too


def test_rank_0_hears_the_board(ray_session):
    board = ray_session.remote(num_cpus=0)(LineBoard).remote()
    notice = Notices(board)
    assert decisions(notice) == [""]
    ray_session.get(board.give.remote("resize"))
    deadline = time.monotonic() + 20
    while decisions(notice) != ["wait"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    notice.carried_out()
    deadline = time.monotonic() + 20
    while ray_session.get(board.order.remote()):
        assert time.monotonic() < deadline
    notice.close()


def test_a_board_that_was_busy_is_heard_later(ray_session, monkeypatch):
    class Busy(LineBoard):
        def work(self, seconds):
            time.sleep(seconds)

    monkeypatch.setattr(notices, "ANSWER_S", 0.1)
    board = ray_session.remote(num_cpus=0)(Busy).remote()
    ray_session.get(board.order.remote())  # it has started
    working = board.work.remote(2.0)
    notice = Notices(board)
    ray_session.get([working, board.give.remote("stop")])
    deadline = time.monotonic() + 20
    while decisions(notice) != ["stop"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    notice.close()


def test_outside_train_there_is_no_preemption():
    assert notices.preemption() is None
