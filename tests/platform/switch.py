"""A network switch in a process, whose ports can be cut, slow or lossy; the kernel need not have netem.

    python -m tests.platform.switch PORT ...        # names of network interfaces, one for each host

It forwards Ethernet frames between the interfaces. Each line on standard input is a JSON object such as
{"port": 1, "up": false, "delay_s": 0.02, "loss": 0.01} and changes that port: frames from and to it are dropped, wait this long,
or are lost with this probability. It ends with its standard input.
"""

import array
import contextlib
import fcntl
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

ETH_P_ALL, SIOCETHTOOL, OUTGOING = 3, 0x8946, 4
SET_TX_CHECKSUM, SET_TSO, SET_GSO = 0x17, 0x1F, 0x24


@dataclass
class Port:
    """One interface of the switch."""

    socket: socket.socket
    up: bool = True
    delay_s: float = 0.0
    loss: float = 0.0


@dataclass
class Switch:
    ports: list[Port]
    places: dict[bytes, int] = field(default_factory=dict)
    """Hardware address -> port on which it was seen."""
    waiting: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    """Heap of (time, number, port, frame) of delayed frames."""
    number: int = 0

    def receive(self, source: int) -> None:
        """Forward all frames that have arrived at a port."""
        while True:
            try:
                frame, address = self.ports[source].socket.recvfrom(65535)
            except BlockingIOError:
                return
            if address[2] == OUTGOING:
                continue
            self.places[frame[6:12]] = source
            target = self.places.get(frame[:6])
            targets = [port for port in range(len(self.ports)) if port != source] if target is None else [target]
            for each in targets:
                self.pass_on(frame, source, each)

    def pass_on(self, frame: bytes, source: int, target: int) -> None:
        ends = self.ports[source], self.ports[target]
        if not all(end.up and random.random() >= end.loss for end in ends):
            return
        delay = sum(end.delay_s for end in ends)
        if not delay:
            self.send(target, frame)
            return
        self.number += 1
        heapq.heappush(self.waiting, (time.monotonic() + delay, self.number, target, frame))

    def send(self, target: int, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # its queue is full: the frame is lost, as in a real switch
            self.ports[target].socket.send(frame)

    def send_waiting(self) -> float | None:
        """Send the frames whose time has come. Returns the seconds until the next one; None if there is none."""
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, target, frame = heapq.heappop(self.waiting)
            self.send(target, frame)
        return None


def without_offload(interface: str) -> None:
    """Make the kernel write checksums and segments itself: frames that leave over a raw socket need them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (SET_TX_CHECKSUM, SET_TSO, SET_GSO):
            value = array.array("B", struct.pack("II", command, 0))
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP", interface.encode(), value.buffer_info()[0]))


def main(interfaces: list[str]) -> None:
    ports, selector = [], selectors.DefaultSelector()
    for number, interface in enumerate(interfaces):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        raw.bind((interface, 0))
        raw.setblocking(False)
        ports.append(Port(raw))
        selector.register(raw, selectors.EVENT_READ, number)
    selector.register(0, selectors.EVENT_READ)
    switch, orders = Switch(ports), b""
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(switch.send_waiting()):
            if key.data is not None:
                switch.receive(key.data)
                continue
            found = os.read(0, 65536)
            if not found:
                return
            *lines, orders = (orders + found).split(b"\n")
            for line in lines:
                order = json.loads(line)
                vars(ports[order.pop("port")]).update(order)


if __name__ == "__main__":
    main(sys.argv[1:])
