"""Walk local folders whose links lead elsewhere, in an order that does not depend on the file system."""

import os
from collections import deque
from collections.abc import Callable, Iterator


def walk_once(top: str, onerror: Callable[[OSError], object] | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, and links to folders are followed, but each folder is visited once, so that loops end.

    A folder is visited under its own path if that is below `top`; otherwise under that of the first link in sorted order, where
    links that lie in links come last. Folders that the caller removes from the list are not visited.
    """
    left, visited = deque([top]), set()
    while left:
        for folder, folders, files in os.walk(left.popleft(), onerror=onerror):
            real = os.path.realpath(folder)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders.sort()
            yield folder, folders, files
            left.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
