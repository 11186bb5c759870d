"""LUPerson's released lists: names, sizes, and detections in pickles, which are read without running them."""

import io
import os
import pickle

import numpy as np
import pytest

from reidssl.data import luperson_videos as luperson
from reidssl.data.mot import Detections
from reidssl.data.records import LayoutError


def item(number, box, conf=0.9, kind=np.float32):
    """A detection as published, with the pose that is not used."""
    return [number, {"bbox": np.array(box, kind), "pose": np.zeros((17, 2), kind), "conf": conf, "prob": np.ones((17, 1), kind)}]


TABLE = {
    1819: [item(0, [618.625, 81.75, 1031.375, 709.25], np.float32(0.9488497))],
    3: [item(1, [5, 6, 7, 9]), item(0, [1, 2, 3, 5], 1)],
}


def read(data: bytes) -> tuple[Detections, dict[str, str]]:
    aside: dict[str, str] = {}
    return luperson.read_detections(data, aside), aside


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [np.float32, np.dtype(">f4"), np.float16, np.int64])
def test_detections_of_every_protocol_and_number_type(protocol, kind):
    table = {frame: [item(each[0], each[1]["bbox"], each[1]["conf"], kind) for each in found] for frame, found in TABLE.items()}
    found, aside = read(pickle.dumps(table, protocol))
    assert not aside and found.frames.tolist() == [3, 3, 1819] and found.tracks.tolist() == [0, 1, 0]
    box = np.array([618.625, 81.75, 1031.375, 709.25]).astype(kind).astype(float)
    np.testing.assert_array_equal(found.boxes, [[1, 2, 2, 3], [5, 6, 2, 3], [*box[:2], *(box[2:] - box[:2])]])
    np.testing.assert_allclose(found.scores, [1, 0.9, 0.9488497], atol=1e-6)


def test_a_pickle_of_an_old_numpy_and_of_python_2():
    new = pickle.dumps({7: [item(0, [1, 2, 3, 5])]}, 2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new and read(old)[0].boxes.tolist() == [[1, 2, 2, 3]]
    # Python 2 writes bytes as text: the numbers -1, 2, 3, 5 contain bytes that are no UTF-8.
    values = np.array([-1, 2, 3, 5], "<f4").tobytes()
    text = b"U" + bytes([len(values)]) + values
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I4\ntcnumpy\ndtype\n(U\x02f4I0\nI1\ntR"
        b"(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\n" + text + b"tb."
    )
    assert luperson.unpickled(array).values.tolist() == [-1, 2, 3, 5]


class Code:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_code_is_refused_as_dangerous_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ({1: [item(0, [1, 2, 3, 4]), Code()]}, Code(), np.array([Code()], object), np.array([1], object)):
        with pytest.raises(LayoutError, match=r"refused as dangerous|only plain numbers are"):
            luperson.unpickled(pickle.dumps(value))
    for reference in (b"cbuiltins\neval\n(V1\ntR.", b"cnumpy\nload\n(Vx\ntR.", b"cnumpy.core\nmultiarray\n."):
        with pytest.raises(LayoutError, match="refused as dangerous"):
            luperson.unpickled(reference)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"words", pickle.dumps(TABLE)[:-40], b"\x80\x04]q\x01."[:-1], b"(lp0\nPx\n."])
def test_damaged_files(data):
    with pytest.raises(LayoutError, match=r"not a readable pickle|refused"):
        read(data)


def test_unusable_detections_are_set_aside_with_their_reason():
    bad = {
        0: [item(0, [1, 2, 3, 4])],
        True: [item(0, [1, 2, 3, 4])],
        4: [item(-1, [1, 2, 3, 4])],
        5: [item(0, [1, 2, 3])],
        6: [item(0, [1, 2, np.nan, 4])],
        7: [item(0, [3, 2, 1, 4])],
        8: [item(0, [1, 2, 3, 4], np.inf)],
        9: [[0]],
        10: "text",
        11: [[0, {"bbox": "text"}]],
        12: [[0, {"conf": 1.0}]],
    }
    good = {frame: [item(0, [1, 2, 3, 4])] for frame in range(100, 120)}
    found, aside = read(pickle.dumps(bad | good))
    assert found.frames.tolist() == list(range(100, 120))
    assert len(aside) == len(bad) and all(reason.startswith("detection not understood: ") for reason in aside.values())
    assert aside["frame 7, number 0"].endswith("left, top, right, bottom: got [3.0, 2.0, 1.0, 4.0]")
    with pytest.raises(LayoutError, match="11 of 12 like this"):
        read(pickle.dumps(bad | {100: [item(0, [1, 2, 3, 4])]}))
    for table in ([1], {"name": {}}, 3):
        with pytest.raises(LayoutError):
            read(pickle.dumps(table))
    assert len(read(pickle.dumps({}))[0].frames) == 0


def test_the_list():
    aside: dict[str, str] = {}
    text = "\ufeffItaly+Rome+a-_1\n\nJapan+Tokyo+b\r\nItaly+Rome+a-_1\nno plus\nItaly+../..+c\nx+y+\n"
    found = luperson.read_names(text, aside)
    assert [video.key for video in found] == ["Italy/Rome/Italy+Rome+a-_1", "Japan/Tokyo/Japan+Tokyo+b"]
    assert {place: reason.partition(":")[0] for place, reason in aside.items()} == {
        "vnames, line 4": "listed twice",
        "vnames, line 5": "line not understood",
        "vnames, line 6": "line not understood",
        "vnames, line 7": "line not understood",
    }
    with pytest.raises(LayoutError, match=r"country\+city\+key: got 'a' \(2 of 3 like this\)"):
        luperson.read_names("a\nb\nx+y+z", {})


def test_sizes():
    assert luperson.read_sizes("name,height,width\n# mine\nx+y+z, 720 ,1280\n\n") == {"x+y+z": (720, 1280)}
    for text in ("x,720", "x,720,0", "x,7.5,3", "x,-1,3", ",1,2", "x,720,1280\nx,360,640", "x,²,3"):
        with pytest.raises(ValueError, match=r"line [12]: "):
            luperson.read_sizes(text)


def test_the_estimated_size_is_the_smallest_that_holds_all_boxes():
    def boxes(*box):
        return Detections(np.array([1]), np.array([0]), np.array([box], float), np.array([1.0]))

    assert luperson.estimated_size(boxes(100, 20, 60, 330), (720, 1280)) == (360, 640)
    assert luperson.estimated_size(boxes(600, 20, 300, 330), (720, 1280)) == (720, 1280)  # too far to the right for 640
    assert luperson.estimated_size(boxes(0, 0, 100, 900), (1080, 1920)) is None
    assert luperson.estimated_size(boxes(0, 0, 100, 240 * 1.01), (480, 640)) == (240, 320)


def test_large_numbers_cost_nothing():
    """A shape that the data do not fill allocates no memory."""
    sink = io.BytesIO()
    pickle.dump(np.zeros(4, np.float32), sink, 4)
    array = luperson.unpickled(sink.getvalue().replace(b"K\x04\x85", b"K\xff\x85"))
    assert array.values.shape == (4,)
