"""Stages side by side: which may start, and what happens to the others when one fails or a signal comes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from platform.engine.config.compose import ROOT
from platform.engine.errors import UserError
from platform.engine.pipeline.results import Results
from platform.engine.pipeline.stages import Stage, run_in_order
from platform.engine.pipeline.together import run_together
from platform.engine.runtime.ray_session import is_own, threads_of_worker
from platform.engine.runtime.run_name import run_name
from platform.engine.storage.location import open_storage


def noted(file, name, seconds=0.5):
    """A stage that writes when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    with open(file, "a") as out:
        out.write(json.dumps([name, began, time.time()]) + "\n")


def refusing():
    raise UserError("the images are gone")


def dying():
    os._exit(1)


def about_this_process(file):
    """A stage that writes what its process knows of the Ray that it is part of."""
    with open(file, "w") as out:
        json.dump([is_own(), threads_of_worker(1), threads_of_worker(1000), run_name()], out)


def times(file):
    return {name: (began, ended) for name, began, ended in map(json.loads, file.read_text().splitlines())}


def statuses(folder):
    return {name: stage["status"] for name, stage in json.loads((folder / "results.json").read_text())["stages"].items()}


def test_stages_start_when_what_they_need_is_complete(tmp_path, ray_session):
    file = tmp_path / "times"

    def stage(name, *needs, pool=False, seconds=0.5):
        return Stage(name, partial(noted, str(file), name, seconds), needs, pool)

    stages = [
        stage("a", seconds=3.0),
        stage("b", "a"),
        stage("c"),
        stage("d", "c", pool=True, seconds=1.5),
        stage("e", pool=True),
        stage("f", "b", "e"),
    ]
    run_together(stages, Results(open_storage(str(tmp_path))), 2)
    found = times(file)
    assert found.keys() == {"a", "b", "c", "d", "e", "f"}
    for one in stages:
        for needed in one.needs:
            assert found[one.name][0] >= found[needed][1], (one.name, needed)
    assert found["c"][0] < found["a"][1], "side by side"
    assert found["d"][1] <= found["e"][0] or found["e"][1] <= found["d"][0], "two pools are never side by side"
    for began, _ in found.values():
        assert sum(one <= began < other for one, other in found.values()) <= 2
    assert statuses(tmp_path) == dict.fromkeys(found, "complete")


@pytest.mark.parametrize(
    ("work", "message"),
    [(refusing, r"^bad: the images are gone$"), (dying, r"^the process of stage bad died; run the same command again")],
)
def test_a_failure_starts_nothing_more(tmp_path, ray_session, work, message):
    file = tmp_path / "times"
    note = partial(noted, str(file))
    stages = [Stage("good", partial(note, "good")), Stage("long", partial(note, "long", 60.0), ("good",))]
    stages += [Stage("bad", work, ("good",)), Stage("later", partial(note, "later"), ("good",))]
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        run_together(stages, Results(open_storage(str(tmp_path))), 2)
    assert time.monotonic() - began < 50 and list(times(file)) == ["good"]
    assert statuses(tmp_path) == {"good": "complete", "long": "failed", "bad": "failed"}


def test_a_stage_is_part_of_the_program_and_has_its_share_of_the_cores(tmp_path, ray_session):
    assert is_own() and threads_of_worker(1) == 0, "this process has the machine alone"
    stages = [Stage("about", partial(about_this_process, str(tmp_path / "about")))]
    run_together(stages, Results(open_storage(str(tmp_path))), 2)
    own, threads, fewest, _ = json.loads((tmp_path / "about").read_text())
    assert own and threads == max(1, os.cpu_count() // 2) and fewest == 1


def test_one_after_the_other_in_their_order(tmp_path):
    names = ["x", "y", "z"]
    run_in_order(
        [Stage(name, partial(noted, str(tmp_path / "times"), name, 0.0)) for name in names], Results(open_storage(str(tmp_path)))
    )
    assert list(times(tmp_path / "times")) == names and statuses(tmp_path) == dict.fromkeys(names, "complete")


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_the_run_begins_when_what_needs_nothing_is_complete(tmp_path, ray_session, at_a_time):
    """The configuration is stored then, once, and not if a set is refused."""
    file, results = tmp_path / "times", Results(open_storage(str(tmp_path)))
    note = partial(noted, str(file))
    sets = [Stage("a", partial(note, "a")), Stage("b", partial(note, "b"))]
    trainings = [Stage(name, partial(note, name), ("a", "b")) for name in ("c", "d")]
    begin = partial(noted, str(file), "begin", 0.0)
    run = run_in_order if at_a_time == 1 else partial(run_together, at_a_time=2)
    run([*sets, *trainings], results, begin=begin)
    began = [json.loads(line)[0] for line in file.read_text().splitlines()]
    assert set(began[:2]) == {"a", "b"} and began[2] == "begin" and set(began[3:]) == {"c", "d"} and len(began) == 5
    with pytest.raises(UserError, match="the images are gone"):
        trainings = [Stage(name, partial(note, name), ("a", "b", "bad")) for name in ("c", "d")]
        run([*sets, Stage("bad", refusing), *trainings], results, begin=partial(noted, str(tmp_path / "second"), "begin"))
    assert not (tmp_path / "second").exists()


PROGRAM = """
import sys
from functools import partial
from platform.engine.errors import StoppedError
from platform.engine.pipeline.results import Results
from platform.engine.pipeline.stages import Stage
from platform.engine.pipeline.together import run_together
from platform.engine.runtime.ray_session import RuntimeConfig, connect
from platform.engine.storage.location import open_storage
from tests.platform.engine.pipeline.test_together import noted

connect(RuntimeConfig(num_cpus=4, object_store_gib=0.5))
try:
    run_together([Stage("long", partial(noted, "", "long", 600.0))], Results(open_storage(sys.argv[1])), 2)
except StoppedError as error:
    sys.exit(error.status)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_cannot_write_a_checkpoint(tmp_path, ray_session, number):
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in program.stdout:
        if "stage 1/1: long" in line:
            break
    time.sleep(1)
    program.send_signal(number)
    told = program.stdout.read()
    assert program.wait(60) == 128 + number and "once more: stop at once" in told
    assert statuses(tmp_path) == {"long": "failed"}
