"""The progress of a job: a job that stands still says so, once."""

import time

import ray

from platform.engine.runtime.progress import progress

SILENCE = "ingest: nothing new for 1 s. Either storage does not answer"


def test_a_job_that_stands_still_says_so_once_until_it_goes_on(ray_session, capsys):
    with progress("ingest", "images", 10, every_s=0.1, silent_s=1.0) as counter:
        printed = ""
        for count in (4, 3):
            ray.get(counter.add.remote(images=count))
            end = time.monotonic() + 30
            while SILENCE not in (new := capsys.readouterr().out) and time.monotonic() < end:
                printed += new
                time.sleep(0.2)
            assert new.count(SILENCE) == 1
            printed += new
            time.sleep(1.5)
            new = capsys.readouterr().out
            assert SILENCE not in new and "of 10 images" in new
    assert "ingest: 4 of 10 images" in printed and "ingest: 7 of 10 images" in printed
