"""Read one window of the sample stream and decode its micro-batches. Unreadable samples are replaced and reported."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.data.set_aside import problems_of
from platform.engine.errors import NotFoundError, StorageError, UserError
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently
from platform.engine.storage.s3_errors import may_pass
from platform.engine.stream.order import StreamPlan, Task, Unit
from reidssl.data.decode import MAX_PIXELS, decode_batch


def read_window(plan: StreamPlan, task: Task, root: Location, threads: int = 4) -> pa.Table:
    """Table of the rows of `task` in stream order: key, image (encoded), epoch (int32), problem.

    problem: why the row was replaced by another sample; "" if it was not. Rows outside [low, high) are dropped after the
    shuffle, so a resumed stream equals the rest of the uninterrupted one.

    Raises UserError if no row group of the window can be read, StorageError if storage fails for longer than the retry timeout.
    """
    units = plan.window_units(task.epoch, task.window)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda unit: _read_unit(root, unit), units))
    whole = [table for table in found if isinstance(table, pa.Table)]
    if not whole:
        raise UserError(f"none of the {len(units)} row groups that are read together can be read: {found[0]}")
    table = pa.concat_tables(whole)
    random = np.random.default_rng([plan.seed, task.epoch, task.window, 2])
    sources, problems, start = [], [], 0
    for unit, part in zip(units, found, strict=True):
        if isinstance(part, str):
            sources.append(random.integers(0, table.num_rows, unit.num_rows))
        else:
            sources.append(np.arange(start, start + unit.num_rows))
            start += unit.num_rows
        problems += [part if isinstance(part, str) else ""] * unit.num_rows
    source = np.concatenate(sources)
    order = plan.window_order(task.epoch, task.window, len(source))[task.low : task.high]
    table = table.take(pa.array(source[order]))
    table = table.append_column("epoch", pa.array(np.full(len(order), task.epoch, np.int32)))
    return table.append_column("problem", pa.array([problems[index] for index in order], pa.string()))


def _read_unit(root: Location, unit: Unit) -> pa.Table | str:
    """The rows (key, image) of a unit, or the reason why it cannot be read. Raises StorageError after the retry timeout."""

    def read() -> pa.Table:
        location = root.joinpath(unit.file)
        with location.open_input() as file:
            try:
                return pq.ParquetFile(file).read_row_group(unit.row_group, columns=["key", "image"])
            except OSError as error:
                if location.is_s3 and may_pass(error):  # otherwise the file, or its place on the disk, is damaged
                    text = f"cannot read {location.uri}: {str(error).splitlines()[0][:200]}"
                    raise StorageError(text, transient=True) from None
                raise

    where = f"{unit.file} row group {unit.row_group}"
    try:
        table = patiently(read, root.config.retry_timeout_s)
        table = table if unit.rows is None else table.take(pa.array(unit.rows))
    except NotFoundError:
        return f"{where}: the file does not exist"
    except StorageError:
        raise
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        return f"{where}: {(str(error).splitlines() or [type(error).__name__])[0][:160]}"
    if table.num_rows != unit.num_rows:
        return f"{where}: {table.num_rows} rows instead of {unit.num_rows}"
    return table


class Decoder:
    """Decodes a micro-batch of encoded images into {"image": uint8 (B, 3, H, W), "shape", "key", "epoch", "problem"}.

    shape: int32 (B, 2), height and width of the images in their files. An undecodable image is replaced by the next decodable
    one of the micro-batch. If there is none, all images are gray and CorruptSamples decides whether the run continues.
    """

    def __init__(self, image_size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
        self.image_size, self.max_pixels = image_size, max_pixels

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count, keys, problems = len(batch["key"]), batch["key"].copy(), batch["problem"].astype(object)
        images, reasons, shapes = decode_batch(batch["image"].tolist(), self.image_size, self.max_pixels)
        whole = [index for index in range(count) if not reasons[index]]
        for index, problem in enumerate(problems_of(batch["key"].tolist(), reasons)):
            if problem:
                problems[index] = problem
                if whole:
                    other = min(whole, key=lambda place: (place - index) % count)
                    images[index], shapes[index], keys[index] = images[other], shapes[other], batch["key"][other]
        return {"image": images, "shape": shapes, "key": keys, "epoch": batch["epoch"], "problem": problems}
