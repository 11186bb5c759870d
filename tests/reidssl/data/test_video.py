"""Crops of a small video that is encoded here; the gray level of every frame encodes its number."""

import io

import av
import numpy as np
import pytest

from reidssl.data.video import VideoError, VideoFacts, facts, frames

LEVELS = [20 + 10 * n for n in range(20)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames of 48x64 as Motion JPEG in AVI. Each frame is encoded alone, so damage affects one place."""
    path = tmp_path_factory.mktemp("video") / "levels.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for level in LEVELS:
            image = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def numbers_of(found):
    return [round((float(image.mean()) - 20) / 10) + 1 for _, image in found]


@pytest.mark.parametrize("as_file", [False, True])
def test_every_frame_once_in_order(video, as_file):
    found = list(frames(io.BytesIO(video.read_bytes()) if as_file else video))
    assert [number for number, _ in found] == list(range(1, 21)) == numbers_of(found)
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for _, image in found)


@pytest.mark.parametrize(
    ("turned", "size", "corner"),
    [(0, (48, 64), (0, 0)), (90, (64, 48), (1, 0)), (180, (48, 64), (1, 1)), (-90, (64, 48), (0, 1))],
)
def test_frames_are_turned_as_players_turn_them(turned, size, corner):
    """A stored frame whose upper left quarter is white; `corner` is (row, column) of that quarter on the screen."""
    image, sink = np.zeros((48, 64, 3), np.uint8), io.BytesIO()
    image[:24, :32] = 255
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    if turned == -90:  # the matrix of a phone that is held upright, as in the specification of QuickTime: clockwise
        assert np.array([0, 65536, 0, -65536, 0, 0], ">i4").tobytes() in sink.getvalue()
    assert facts(io.BytesIO(sink.getvalue())) == VideoFacts(*size, frames=2)
    found = [each for _, each in frames(io.BytesIO(sink.getvalue()))]
    assert [each.shape for each in found] == [(*size, 3)] * 2
    for each in found:
        white = each.reshape(2, size[0] // 2, 2, size[1] // 2, 3).mean((1, 3, 4)) > 127
        assert white[corner] and white.sum() == 1


def test_only_the_wanted_frames(video):
    found = list(frames(str(video), [7, 2, 20]))
    assert [number for number, _ in found] == [2, 7, 20] == numbers_of(found)
    assert list(frames(video, [])) == []


def test_reads_no_further_than_needed(video):
    """A video that is cut off after the last needed frame is read without an error."""
    data = video.read_bytes()
    assert [number for number, _ in frames(io.BytesIO(data[: len(data) // 2]), {1, 3})] == [1, 3]


def test_a_cut_off_video_gives_its_frames_and_then_says_so(video):
    data, found = video.read_bytes(), []
    with pytest.raises(VideoError) as caught:
        for number, image in frames(io.BytesIO(data[: len(data) // 2])):
            found.append((number, image))
    assert 3 < len(found) < 20 and numbers_of(found) == list(range(1, len(found) + 1))
    assert caught.value.frames_read == len(found)
    assert "damaged" in str(caught.value) or "cut off" in str(caught.value)


def test_a_wanted_frame_behind_the_end_is_reported_after_the_others(video):
    found = []
    with pytest.raises(VideoError, match="ends after frame 20; frame 21 is wanted") as caught:
        for number, _ in frames(video, {5, 21}):
            found.append(number)
    assert found == [5] and caught.value.frames_read == 20


@pytest.mark.parametrize("content", [b"", b"not a video at all\n" * 50, bytes(5000)])
def test_files_that_are_no_video_are_refused_by_name(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"notes.txt (cannot be read as a video|holds no video stream)") as caught:
        list(frames(path))
    assert caught.value.frames_read == 0


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"missing.avi cannot be read as a video: .*No such file"):
        list(frames(tmp_path / "missing.avi"))


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound.wav holds no video stream"):
        list(frames(path))
