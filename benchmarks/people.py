"""Synthetic inputs: random features with the structure of a re-ID model's features, and shards of drawn people."""

import subprocess
import sys

import numpy as np

Labeled = tuple[np.ndarray, np.ndarray, np.ndarray]


def features_of(identities: np.ndarray, cameras: np.ndarray, seed: int, width: int = 384, noise: float = 1.0) -> np.ndarray:
    """float32 (N, width), rows of length one: identity + 0.5 x camera + noise of each image.

    The variation is in 32 directions, as in a trained network, so that the distances to the neighbors differ.
    """
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(width, 32)))[0].T.astype(np.float32)
    people = random.normal(size=(identities.max() + 1, 32)).astype(np.float32)
    places = random.normal(size=(cameras.max() + 1, 32)).astype(np.float32)
    out = np.empty((len(identities), width), np.float32)
    for start in range(0, len(out), 65536):
        rows = slice(start, start + 65536)
        own = random.standard_normal((len(identities[rows]), 32), np.float32)
        inner = people[identities[rows]] + 0.5 * places[cameras[rows]] + noise * 0.6 * own
        out[rows] = inner @ basis + 0.02 * random.standard_normal((len(inner), width), np.float32)
        out[rows] /= np.linalg.norm(out[rows], axis=1, keepdims=True)
    return out


def unlabeled(num: int, images_per_identity: int, num_cameras: int, seed: int = 0, noise: float = 1.0) -> Labeled:
    """(features (num, 384), identities, cameras) of a training set."""
    random = np.random.default_rng(seed)
    identities = random.integers(max(num // images_per_identity, 1), size=num)
    cameras = random.integers(num_cameras, size=num)
    return features_of(identities, cameras, seed, noise=noise), identities, cameras


def query_and_gallery(
    num_query: int, num_gallery: int, num_identities: int, num_cameras: int, seed: int = 0, noise: float = 1.0
) -> list[np.ndarray]:
    """Arguments of the ranking metrics: features, identities and cameras of queries, then of the gallery."""
    random = np.random.default_rng(seed)
    identities = random.integers(num_identities, size=num_query + num_gallery)
    cameras = random.integers(num_cameras, size=num_query + num_gallery)
    features = features_of(identities, cameras, seed, noise=noise)
    parts = slice(None, num_query), slice(num_query, None)
    return [array[part] for part in parts for array in (features, identities, cameras)]


def write_shards(uri: str, image_size: str, num: int, *overrides: str) -> None:
    """Write `num` unlabeled synthetic people of `image_size` ("[height,width]") with platform.ingest, in a process of its own."""
    settings = ["raw.kind=synthetic", "raw.part=pretrain", f"raw.synthetic.image_size={image_size}"]
    settings += [f"raw.synthetic.num_pretrain={num}", f"output={uri}", *overrides]
    subprocess.run([sys.executable, "-m", "platform.ingest", *settings], check=True, stdout=subprocess.DEVNULL)
