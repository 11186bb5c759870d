"""What an autoscaling cluster did while programs ran on it: nodes and busy CPUs over time, as a chart.

  RAY_AUTH_TOKEN_PATH=... python -m benchmarks.growing record ADDRESS timeline.jsonl      (until it is ended)
  python -m benchmarks.growing draw timeline.jsonl docs/growing.svg

`tests/platform/test_growing.py` records one while it runs every program from no node, and draws it if GROWING_SVG names a file.
A line of the file is {"time": seconds since 1970, "nodes": worker nodes, "cpus": their CPUs, "busy": CPUs in use} or
{"time", "program", "running": true | false}.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from platform.engine.report.plots.svg import COLORS, axes, axis, document, line, text, text_width


def record(address: str, file: Path, interval_s: float = 1.0) -> None:
    """Append what the cluster has, once per interval, until this process is ended. The head counts only if it has CPUs."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    while True:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = sum(resources.get("CPU", 0) for resources in alive)
        note(
            file,
            nodes=sum(resources.get("CPU", 0) > 0 for resources in alive),
            cpus=cpus,
            busy=max(0.0, cpus - ray.available_resources().get("CPU", 0)),
        )
        time.sleep(interval_s)


def note(file: Path, **values: Any) -> None:
    """Append a line with the time."""
    with file.open("a") as opened:
        opened.write(json.dumps({"time": round(time.time(), 2), **values}) + "\n")


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The complete lines of the file, oldest first; [] if it does not exist."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(one) for one in text[: text.rfind("\n") + 1].splitlines()]


SIZE = (860, 300)
LANE = 15  # height of a program's bar with its name


def chart(lines: list[dict[str, Any]]) -> str:
    """The timeline as an SVG: the CPUs that exist and those in use, and below them when each program ran.

    Raises ValueError if nothing was recorded.
    """
    samples = [one for one in lines if "nodes" in one]
    if not samples:
        raise ValueError("nothing was recorded: the file has no line with nodes")
    start, end = samples[0]["time"], samples[-1]["time"]
    x_axis = axis(0, end - start, 40, SIZE[0] - 12, num_ticks=9, snap=False, whole=True)
    y_axis = axis(0, max(one["cpus"] for one in samples) or 1, SIZE[1] - 40, 48, whole=True)
    parts = [text(4, 14, "Worker nodes come for a program and go after it", size=13, weight=600)]
    parts += axes(x_axis, y_axis, "seconds")
    for name, label, style, x in (("cpus", "CPUs of the worker nodes", 2, 4.0), ("busy", "CPUs in use", 1, 210.0)):
        path = " ".join(f"{x_axis(t):.1f},{y_axis(value):.1f}" for t, value in steps(samples, name, start))
        parts.append(f'<polyline points="{path}" style="fill:none;stroke:{COLORS[style]};stroke-width:2"/>')
        parts += [line(x, 29, x + 20, 29, COLORS[style], 2.4), text(x + 26, 33, label)]
    for lane, (name, began, ended) in enumerate(runs_of(lines, end)):
        first, last, y = x_axis(max(began - start, 0)), x_axis(min(ended, end) - start), SIZE[1] + LANE * lane
        before = last + 6 + text_width(name, 10.5) > SIZE[0]  # no room behind the bar
        label = text(first - 6, y + 4, name, size=10.5, anchor="end") if before else text(last + 6, y + 4, name, size=10.5)
        parts += [line(first, y, last, y, COLORS[3], 5), label]
    lanes = len(runs_of(lines, end))
    return document(SIZE[0], SIZE[1] + LANE * lanes + 4, parts, "CPUs of an autoscaling cluster over time, and its programs")


def steps(samples: list[dict[str, Any]], name: str, start: float) -> list[tuple[float, float]]:
    """The samples as corners of a step function: (seconds since `start`, value)."""
    points: list[tuple[float, float]] = []
    for one in samples:
        x, y = one["time"] - start, float(one[name])
        if points and points[-1][1] != y:
            points.append((x, points[-1][1]))
        if not points or points[-1][1] != y:
            points.append((x, y))
    return [*points, (samples[-1]["time"] - start, float(samples[-1][name]))]


def runs_of(lines: list[dict[str, Any]], end: float) -> list[tuple[str, float, float]]:
    """(program, first, last moment) of each run, by its start. A run without an end lasts until `end`."""
    found: list[tuple[str, float, float]] = []
    for one in lines:
        if one.get("running"):
            found.append((one["program"], one["time"], end))
        elif "program" in one:
            place = max(at for at, run in enumerate(found) if run[0] == one["program"])
            found[place] = (*found[place][:2], one["time"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "draw"])
    parser.add_argument("source", help="record: address of the cluster, host:port; draw: the recorded file")
    parser.add_argument("target", type=Path, help="record: the file; draw: the SVG")
    arguments = parser.parse_args()
    if arguments.what == "record":
        record(arguments.source, arguments.target)
    else:
        arguments.target.write_text(chart(lines_of(Path(arguments.source))))


if __name__ == "__main__":
    main()
