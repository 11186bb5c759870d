"""Watches the cloud's metadata service of a spot machine and drains the Ray node when it is about to be taken away.

    python cluster/drain_on_notice.py --cloud aws --address HEAD:6379    # started on workers by aws.yaml and gcp.yaml

Ray does not read these notices on virtual machines. A node that is drained with the reason PREEMPTION gets no new work.
The training loop learns of the drain from `ray.train.get_preemption_info()` and writes a checkpoint in time.
Only the standard library is used, so that the script does not depend on what a job installs.

Sources: "Spot Instance interruption notices" (Amazon EC2 User Guide), "Preemption selection" (Compute Engine docs).
"""

import argparse
import fcntl
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

AWS_ENDPOINT = "http://169.254.169.254"
GCP_ENDPOINT = "http://metadata.google.internal"
GCP_NOTICE_S = 30.0
# Subtracted from the deadline: the command needs seconds to reach the head, and Ray needs seconds to stop.
MARGIN_S = 10.0
LOCK = Path("/tmp/drain_on_notice.lock")


def aws_notice(endpoint: str = AWS_ENDPOINT) -> float | None:
    """Seconds until EC2 takes the instance, or None while there is no notice. Raises OSError if nothing answers."""
    token = _fetch(f"{endpoint}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
    try:
        text = _fetch(f"{endpoint}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # the document exists only once there is a notice
            return None
        raise
    moment = datetime.strptime(json.loads(text)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def gcp_notice(endpoint: str = GCP_ENDPOINT) -> float | None:
    """Seconds until Compute Engine takes the machine, or None. Raises OSError if nothing answers."""
    text = _fetch(f"{endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if text.strip().upper() == "TRUE" else None


def drain_command(seconds_left: float) -> list[str]:
    """The command that drains the node it runs on, with the time that is left as the deadline."""
    return [
        "ray", "drain-node",
        "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "the cloud announced that it takes this spot machine back",
        "--deadline-remaining-seconds", str(max(1, int(seconds_left - MARGIN_S))),
    ]  # fmt: skip


def watch(notice: Callable[[], float | None], address: str, interval_s: float) -> int:
    """Poll `notice` every `interval_s` seconds until there is a notice, then drain the node.

    A failed drain is retried every second until the deadline. Returns 0 after a drain, 1 if none worked in time.
    The command gets the address of the cluster in RAY_ADDRESS. Without it `ray drain-node` may start its own Ray to find
    out which node it is on, drain that other node and report success (seen with Ray 2.60).
    """
    while True:
        try:
            seconds_left = notice()
        except (OSError, ValueError, KeyError) as error:  # a temporary failure of the metadata service must not end the watch
            print(f"metadata service: {error}", flush=True)
            seconds_left = None
        if seconds_left is not None:
            break
        time.sleep(interval_s)
    print(f"notice: {seconds_left:.0f} s left, draining this node", flush=True)
    deadline = time.monotonic() + seconds_left
    environment = os.environ | {"RAY_ADDRESS": address}
    while True:
        finished = subprocess.run(drain_command(deadline - time.monotonic()), env=environment, check=False)
        if finished.returncode == 0:
            return 0
        if time.monotonic() >= deadline:
            return 1
        time.sleep(1.0)


def _fetch(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=2.0) as response:
        return response.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cloud", choices=("aws", "gcp"), required=True)
    parser.add_argument("--address", required=True, help="the head of the cluster, host:port")
    parser.add_argument("--endpoint", default="", help="another address of the metadata service")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("--lock", type=Path, default=LOCK, help="only one watcher per machine holds this file")
    arguments = parser.parse_args()
    with arguments.lock.open("w") as lock:
        try:  # `ray up` runs the start commands again on a node that already has a watcher
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another watcher is running", flush=True)
            return 0
        if arguments.cloud == "aws":
            notice, endpoint = aws_notice, arguments.endpoint or AWS_ENDPOINT
        else:
            notice, endpoint = gcp_notice, arguments.endpoint or GCP_ENDPOINT
        return watch(lambda: notice(endpoint), arguments.address, arguments.interval)


if __name__ == "__main__":
    raise SystemExit(main())
