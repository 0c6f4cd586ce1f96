"""The loaders and the image sets."""

import copy
import gzip
import hashlib
import pickle
import struct
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from required import need_package
from torch.utils.data import DataLoader, TensorDataset

from lsuvcb import data
from lsuvcb.data import DataLoaders, TensorLoader, collate_dict, inplace
from lsuvcb.idx import cache_folder, read_idx, read_images


def idx(values: torch.Tensor) -> bytes:
    """`values` as an idx file of bytes, from the format's definition."""
    head = b"\x00\x00\x08" + bytes([values.dim()])
    return head + b"".join(struct.pack(">i", n) for n in values.shape) + bytes(values.flatten().tolist())


def small_set(n: int = 6, n_test: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": n, "t10k": n_test}
    files = {}
    for name, size in sizes.items():
        files[f"{name}-images-idx3-ubyte"] = torch.randint(0, 256, (size, 28, 28), generator=generator)
        files[f"{name}-labels-idx1-ubyte"] = torch.arange(size) % 10
    return files


def write_set(folder, files, gz=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        raw = idx(values)
        path = folder / (f"{name}.gz" if gz else name)
        path.write_bytes(gzip.compress(raw) if gz else raw)


@pytest.fixture
def mnist_folder(no_data, tmp_path, monkeypatch):
    """A small set in the MNIST files of $LSUVCB_DATA; the folder of the files."""
    monkeypatch.setenv("LSUVCB_DATA", str(tmp_path / "data"))
    write_set(tmp_path / "data" / "MNIST" / "raw", small_set())
    return tmp_path / "data" / "MNIST" / "raw"


# TensorLoader


@pytest.mark.parametrize(("n", "bs"), [(1, 1), (1, 4), (6, 3), (7, 3), (8, 3)])
@pytest.mark.parametrize(("shuffle", "own"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_tensor_loader_gives_what_a_dataloader_gives_and_draws_as_much(n, bs, shuffle, drop_last, own):
    def two_epochs(make):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4) if own else None
        loader = make(generator)
        epochs = [[[t.tolist() for t in batch] for batch in loader] for _ in range(2)]
        return epochs, len(loader), torch.rand(1).item(), generator and torch.rand(1, generator=generator).item()

    x = torch.arange(n)
    ours = two_epochs(lambda g: TensorLoader(x, -x, bs=bs, shuffle=shuffle, drop_last=drop_last, generator=g))
    torchs = two_epochs(lambda g: DataLoader(TensorDataset(x, -x), bs, shuffle, drop_last=drop_last, generator=g))
    assert ours == torchs


def test_tensor_loader_batches_may_be_changed_in_place_without_a_trace():
    x = torch.arange(4.0)
    for shuffle in (False, True):
        loader = TensorLoader(x, bs=2, shuffle=shuffle)
        for (xb,) in loader:
            xb.zero_()
    assert x.tolist() == [0, 1, 2, 3]


def test_tensor_loader_order_comes_back_with_the_state_of_its_generator():
    generator = torch.Generator().manual_seed(0)
    loader = TensorLoader(torch.arange(50), bs=50, shuffle=True, generator=generator)
    state = generator.get_state()
    first, second = (next(iter(loader))[0] for _ in range(2))
    generator.set_state(state)
    assert torch.equal(next(iter(loader))[0], first)
    assert not torch.equal(first, second)


def test_tensor_loader_two_iterators_at_once_do_not_disturb_each_other():
    loader = TensorLoader(torch.arange(6), bs=2)
    assert [(a.tolist(), b.tolist()) for (a,), (b,) in zip(loader, loader, strict=True)] == [
        ([i, i + 1],) * 2 for i in (0, 2, 4)
    ]


def test_tensor_loader_has_the_attributes_of_a_dataloader_and_says_what_it_is():
    generator = torch.Generator()
    loader = TensorLoader(torch.zeros(5, 2), bs=2, drop_last=True, generator=generator)
    assert (loader.batch_size, loader.drop_last, loader.generator, len(loader.dataset)) == (2, True, generator, 5)
    assert loader.device == torch.device("cpu")
    assert repr(loader) == "TensorLoader((5, 2), bs=2, shuffle=False, batches=2, device=cpu)"


def test_tensor_loader_survives_pickle_and_a_shallow_copy():
    loader = TensorLoader(torch.arange(4), bs=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    for twin in (pickle.loads(pickle.dumps(loader)), copy.copy(loader)):
        assert sorted(next(iter(twin))[0].tolist()) == [0, 1, 2, 3]


def test_tensor_loader_moves_to_its_device_once():
    loader = TensorLoader(torch.zeros(4), bs=2, shuffle=True, device="meta")
    assert loader.dataset.tensors[0].device.type == "meta"
    assert all(xb.device.type == "meta" for (xb,) in loader)


@pytest.mark.gpu
def test_tensor_loader_cuts_batches_on_the_gpu_in_the_cpus_order():
    x = torch.arange(100)
    batches = {}
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(0)
        loader = TensorLoader(x, bs=32, shuffle=True, generator=generator, device=device)
        batches[device] = list(loader)
        assert all(xb.device.type == device for (xb,) in batches[device])
    assert all(torch.equal(a, b.cpu()) for (a,), (b,) in zip(batches["cpu"], batches["cuda"], strict=True))


def test_tensor_loader_without_rows_in_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"^`bs` must be >= 1, got 0\.$"):
        TensorLoader(torch.zeros(3), bs=0)


@pytest.mark.parametrize(("lengths", "text"), [((3, 2), r"\[3, 2\]"), ((), r"\[\]")])
def test_tensor_loader_of_unequal_lengths_or_of_nothing_is_an_error(lengths, text):
    with pytest.raises(ValueError, match=rf"^`tensors` must be one or more of the same length, got lengths {text}\.$"):
        TensorLoader(*(torch.zeros(n) for n in lengths))


# DataLoaders.from_dd


class Rows(list):
    """As much of a Hugging Face dataset as from_dd looks at."""

    def __init__(self, n, features=("image", "label")):
        super().__init__({"label": i, "image": torch.full((2,), float(i))} for i in range(n))
        self.features = dict.fromkeys(features)


def test_from_dd_shuffles_train_and_gives_tuples_in_the_order_of_the_features():
    torch.manual_seed(0)
    dls = DataLoaders.from_dd({"train": Rows(20), "test": Rows(10)}, batch_size=4)
    xb, yb = next(iter(dls.train))
    assert xb.shape == (4, 2)
    assert yb.shape == (4,)
    assert torch.equal(xb[:, 0], yb.float())
    seen = torch.cat([yb for _, yb in dls.train]).tolist()
    assert seen != list(range(20))
    assert sorted(seen) == list(range(20))
    assert [yb.tolist() for _, yb in dls.valid] == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("names", "chosen"), [(("train", "test", "validation"), 2), (("train", "test"), 1), (("held out", "train"), 0)]
)
def test_from_dd_validates_on_the_set_that_is_meant(names, chosen):
    dls = DataLoaders.from_dd({name: Rows(10 + i) for i, name in enumerate(names)}, 4)
    assert len(dls.valid.dataset) == 10 + chosen


def test_from_dd_as_tuple_false_gives_dicts_and_other_arguments_pass_through():
    dls = DataLoaders.from_dd({"train": Rows(6), "valid": Rows(6)}, 3, as_tuple=False, num_workers=0, drop_last=True)
    assert set(next(iter(dls.train))) == {"image", "label"}
    assert (dls.train.drop_last, dls.valid.batch_size) == (True, 6)


def test_from_dd_with_a_collate_function_of_the_callers_takes_that():
    dls = DataLoaders.from_dd({"train": Rows(4), "valid": Rows(4)}, 2, collate_fn=len)
    assert list(dls.train) == [2, 2]


@pytest.mark.parametrize("names", [("test",), ("train",), ()])
def test_from_dd_without_both_sets_is_an_error(names):
    with pytest.raises(ValueError, match=r"^`dd` must have a 'train' set and one to validate on .*, got \[.*\]\.$"):
        DataLoaders.from_dd({name: Rows(3) for name in names}, 2)


def test_collate_dict_names_the_columns_that_a_transform_lost():
    collate = collate_dict(Rows(1, ("image", "label", "id")))
    with pytest.raises(KeyError, match=r"must have the columns .* without \['id'\].*as_tuple=False"):
        collate(Rows(2))


def test_collate_dict_can_be_sent_to_another_process():
    rows = Rows(2)
    assert pickle.loads(pickle.dumps(collate_dict(rows)))(rows)[1].tolist() == [0, 1]


def test_inplace_returns_what_it_changed_and_keeps_the_name():
    @inplace
    def transform(b):
        b["x"] = b["x"] + 1

    assert transform({"x": 1}) == {"x": 2}
    assert transform.__name__ == "transform"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_from_dd_takes_a_real_datasetdict_with_a_transform(workers):
    datasets = need_package("datasets")
    rows = {"image": [[float(i)] * 3 for i in range(8)], "label": list(range(8))}
    dd = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows), test=datasets.Dataset.from_dict(rows))
    dls = DataLoaders.from_dd(dd.with_transform(add_one), 4, num_workers=workers)
    xb, yb = next(iter(dls.train))
    assert torch.equal(xb, yb[:, None].expand(4, 3) + 1.0)
    assert len(dls.valid) == 1


@inplace
def add_one(b):
    b["image"] = [torch.tensor(image) + 1 for image in b["image"]]


# The image sets


@pytest.mark.usefixtures("digits_data")
def test_digits_are_whole_normalised_by_the_training_part_and_always_split_alike():
    raw, dls = data.digits(normalize=False), data.digits(bs=32)
    (x, y), (xv, yv) = raw.train.dataset.tensors, raw.valid.dataset.tensors
    assert (x.shape, xv.shape, y.dtype) == ((1437, 1, 8, 8), (360, 1, 8, 8), torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert min(torch.bincount(yv, minlength=10)) >= 20
    normal = dls.train.dataset.tensors[0]
    assert torch.std_mean(normal, correction=0) == pytest.approx((1, 0), abs=1e-6)
    mean, std = x.mean(), x.std(correction=0)
    torch.testing.assert_close(dls.valid.dataset.tensors[0], (xv - mean) / std)
    assert (dls.train.bs, dls.valid.bs, dls.train.shuffle, dls.valid.shuffle) == (32, 64, True, False)
    torch.manual_seed(1)
    assert torch.equal(data.digits().valid.dataset.tensors[1], yv)


def test_digits_without_sklearn_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lsuvcb\[demo\]'$"):
        data.digits()


@pytest.mark.parametrize("gz", [True, False])
def test_mnist_reads_plain_and_gzipped_files_as_they_are(mnist_folder, gz):
    for path in mnist_folder.iterdir():
        path.unlink()
    files = small_set()
    write_set(mnist_folder, files, gz)
    dls = data.mnist(bs=6, normalize=False, device="cpu", generator=torch.Generator().manual_seed(0))
    xb, yb = next(iter(dls.valid))
    torch.testing.assert_close(xb, files["t10k-images-idx3-ubyte"].unsqueeze(1) / 255)
    assert yb.tolist() == [0, 1, 2, 3]
    xb, yb = next(iter(dls.train))
    torch.testing.assert_close(xb, files["train-images-idx3-ubyte"][yb].unsqueeze(1) / 255)


def test_mnist_normalises_both_parts_with_the_training_parts_moments(mnist_folder):
    files = small_set()
    train = files["train-images-idx3-ubyte"].double() / 255
    (x, _), (xv, _) = (dl.dataset.tensors for dl in vars(data.mnist()).values())
    torch.testing.assert_close(x[:, 0].double(), (train - train.mean()) / train.std(correction=0), atol=1e-5, rtol=0)
    valid = files["t10k-images-idx3-ubyte"].double() / 255
    torch.testing.assert_close(xv[:, 0].double(), (valid - train.mean()) / train.std(correction=0), atol=1e-5, rtol=0)


def test_mnist_split_validates_on_the_rest_of_the_training_images(mnist_folder):
    dls = data.mnist(split=4)
    assert dls.train.dataset.tensors[1].tolist() == [0, 1, 2, 3]
    assert dls.valid.dataset.tensors[1].tolist() == [4, 5]
    assert torch.std_mean(dls.train.dataset.tensors[0], correction=0) == pytest.approx((1, 0), abs=1e-5)


@pytest.mark.parametrize("split", [0, 6, -1])
def test_mnist_split_that_leaves_a_part_empty_is_an_error(mnist_folder, split):
    with pytest.raises(
        ValueError, match=rf"^`split` must be > 0 and < 6, the number of training images, got {split}\.$"
    ):
        data.mnist(split=split)


def test_a_file_in_lsuvcb_data_comes_before_the_cache_and_the_cache_before_a_download(mnist_folder):
    cache = cache_folder() / "MNIST" / "raw"
    write_set(cache, small_set(n=8))
    assert len(read_images("MNIST", download=False)["train"][0]) == 6
    next(mnist_folder.iterdir()).unlink()
    assert len(read_images("MNIST", download=False)["train"][0]) == 8


def test_a_set_that_is_nowhere_is_one_error_with_the_folders_and_the_way_to_get_it(mnist_folder):
    (mnist_folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.mnist(download=False)
    text = str(caught.value)
    assert f"{mnist_folder} lacks train-labels-idx1-ubyte;" in text
    assert f"{cache_folder() / 'MNIST' / 'raw'} lacks train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k" in text
    assert "set LSUVCB_DATA=FOLDER" in text
    assert f"torchvision.datasets.MNIST('{cache_folder()}', download=True)" in text
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine with a small Fashion-MNIST: its address and the sums of its files."""
    folder = tmp_path / "server"
    write_set(folder, small_set())
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = Thread(target=httpd.serve_forever)
    thread.start()
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    yield f"http://127.0.0.1:{httpd.server_port}/", sums
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_download_goes_into_the_cache_and_is_not_repeated(no_data, server, monkeypatch):
    from torchvision.datasets import FashionMNIST

    address, sums = server
    monkeypatch.setattr(FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    assert len(data.fashion_mnist().train.dataset) == 6
    assert (no_data / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").is_file()
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    assert len(data.fashion_mnist().train.dataset) == 6


def test_a_download_that_fails_is_the_same_one_error_with_its_reason(no_data, tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(
        FileNotFoundError, match=r"Download: failed \(RuntimeError: Error downloading .*nowhere.*\)\. Put"
    ):
        data.fashion_mnist()


GOOD = idx(torch.arange(6).view(2, 3))


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_read_idx_gives_bytes_in_their_shape(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(GOOD) if name.endswith("gz") else GOOD)
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(idx(torch.empty(0, 3))) if name.endswith("gz") else idx(torch.empty(0, 3)))
    assert read_idx(path).shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "raw", "text"),
    [
        ("a", b"", r"it must begin with the bytes 00 00 08, got nothing\."),
        ("a", b"<!DOCTYPE html>", r"it must begin with the bytes 00 00 08, got 3c 21 44\."),
        ("a", b"\0\0\x0d\x01" + GOOD[4:], r"it must begin with the bytes 00 00 08, got 00 00 0d\."),
        ("a", GOOD[:9], r"its header must have 12 bytes, got 9\."),
        ("a", GOOD[:-1], r"its header promises \[2, 3\] values of one byte, got 5 bytes\."),
        ("a", GOOD + b"\0", r"its header promises \[2, 3\] values of one byte, got 7 bytes\."),
        ("a", b"\0\0\x08\x02" + b"\xff" * 8 + b"\0", r"its header promises \[-1, -1\] values"),
        ("a.gz", GOOD, r"it cannot be read \(BadGzipFile: "),
        ("a.gz", gzip.compress(GOOD)[:-10], r"it cannot be read \(EOFError: "),
        ("a.gz", gzip.compress(GOOD)[:10] + b"\xff" * 20, r"it cannot be read \(error: "),
    ],
)
def test_read_idx_of_a_corrupt_file_names_it_and_says_what_to_do(tmp_path, name, raw, text):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(OSError, match=rf"^{name} in {tmp_path} is no valid idx file: {text}") as caught:
        read_idx(tmp_path / name)
    assert "delete it and run again, or point LSUVCB_DATA at a folder with good files." in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "text"),
    [
        (
            "train-images-idx3-ubyte",
            torch.zeros(6, 8, 8),
            r"images must have the shape \(n, 28, 28\) .* got \(6, 8, 8\)",
        ),
        ("train-images-idx3-ubyte", torch.zeros(0, 28, 28), r"images must have the shape .* got \(0, 28, 28\)"),
        ("t10k-images-idx3-ubyte", torch.zeros(6), r"images must have the shape \(n, 28, 28\) .* got \(6,\)"),
        ("t10k-labels-idx1-ubyte", torch.zeros(5), r"labels must have the shape \(4,\), as the images do, got \(5,\)"),
        ("train-labels-idx1-ubyte", torch.full((6,), 10), r"labels must be 0 to 9, got 10"),
    ],
)
def test_files_that_do_not_fit_each_other_are_an_error(mnist_folder, file, values, text):
    write_set(mnist_folder, {file: values.int()})
    with pytest.raises(OSError, match=rf"^{file}.gz in .* is no valid idx file: {text}"):
        data.mnist()


@pytest.mark.usefixtures("fashion_mnist_data")
def test_fashion_mnist_is_the_real_one():
    raw = data.fashion_mnist(normalize=False, device="cpu", download=False)
    (x, y), (xv, yv) = raw.train.dataset.tensors, raw.valid.dataset.tensors
    assert (x.shape, xv.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert torch.bincount(y).tolist() == [6000] * 10
    assert torch.bincount(yv).tolist() == [1000] * 10
    assert (x.mean().item(), x.std(correction=0).item()) == pytest.approx((0.2860, 0.3530), abs=1e-4)


@pytest.mark.usefixtures("mnist_data")
def test_mnist_is_the_real_one_also_in_the_split_of_the_course():
    raw = data.mnist(512, split=50_000, normalize=False, device="cpu", download=False)
    (x, _), (xv, _) = raw.train.dataset.tensors, raw.valid.dataset.tensors
    assert (x.shape, xv.shape, len(raw.train)) == ((50_000, 1, 28, 28), (10_000, 1, 28, 28), 98)
    everything = torch.cat([x, xv])
    assert (everything.mean().item(), everything.std(correction=0).item()) == pytest.approx((0.1307, 0.3081), abs=1e-4)
