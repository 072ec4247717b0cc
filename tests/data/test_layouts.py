"""Each official layout, as a tiny tree with the sources' own warts."""

import gzip
import hashlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from dml import data
from dml.data import torchvision_sets

pytestmark = pytest.mark.filterwarnings("ignore:.*published protocol")


def save(path, mode="RGB", size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 90).save(path)


def write(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


@pytest.fixture
def cub(tmp_path):
    base = tmp_path / "CUB_200_2011"
    images, labels = [], []
    for class_id in (1, 2, 101, 200):
        for i in range(2):
            name = f"{class_id:03d}.Black footed_Gull/Gull_{i}_{class_id}.JPG"
            save(base / "images" / name, mode="RGB" if i else "L")
            images.append(f"{len(images) + 1} {name}")
            labels.append(f"{len(labels) + 1} {class_id}")
    save(base / "images" / "001.Black footed_Gull" / "._Gull_0_1.JPG".replace("JPG", "png"))
    write(base / "images.txt", *images, end="\r\n")
    write(base / "image_class_labels.txt", *labels, end="\r\n")
    return tmp_path


@pytest.fixture
def cars(tmp_path):
    base = tmp_path / "cars196"
    rows = [(f"car_ims/{i:06d}.jpg", c) for i, c in enumerate((1, 98, 1, 99, 196, 196, 98), 1)]
    for path, _ in rows:
        save(base / path)
    kind = [("relative_im_path", object), ("class", object), ("test", object)]
    annotations = np.array([(path, c, 0) for path, c in rows], dtype=kind)
    names = np.array([f"Make {i}" for i in range(1, 197)], dtype=object)
    savemat(base / "cars_annos.mat", {"annotations": annotations, "class_names": names})
    return tmp_path


@pytest.fixture
def cars_in_parts(tmp_path):
    base = tmp_path / "cars196"
    kind = [("fname", object), ("class", object)]
    for file, folder, classes in (
        ("devkit/cars_train_annos.mat", "cars_train", (1, 98, 99, 196)),
        ("cars_test_annos_withlabels.mat", "cars_test", (1, 98, 196)),
    ):
        rows = [(f"{i:05d}.jpg", c) for i, c in enumerate(classes, 1)]
        for name, _ in rows:
            save(base / folder / name)
        (base / "devkit").mkdir(exist_ok=True)
        savemat(base / file, {"annotations": np.array(rows, dtype=kind)})
    names = np.array([f"Make {i}" for i in range(1, 197)], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    return tmp_path


@pytest.fixture
def sop(tmp_path):
    base = tmp_path / "Stanford_Online_Products"
    for part, classes in (("train", (1, 5)), ("test", (11319, 11320))):
        rows = ["image_id class_id super_class_id path"]
        for class_id in classes:
            for i in range(2):
                name = f"bicycle_final/{class_id}_{i}.JPG"
                save(base / name)
                rows.append(f"{len(rows)} {class_id} 1 {name}")
        write(base / f"Ebay_{part}.txt", *rows)
    return tmp_path


@pytest.fixture
def inshop(tmp_path):
    base = tmp_path / "Inshop_Clothes"
    rows = []
    for part, products in (("train", (1, 2)), ("query", (7, 9)), ("gallery", (9, 7, 7))):
        for i, product in enumerate(products):
            name = f"img/WOMEN/Tees_Tanks/id_{product:08d}/{part}_{i}_front.jpg"
            save(base / "Img" / name)
            rows.append(f"{name}      id_{product:08d} {part}")
    write(
        base / "Eval" / "list_eval_partition.txt",
        str(len(rows)),
        "image_name item_id evaluation_status",
        *rows,
    )
    return tmp_path


def test_cub_trains_on_classes_to_100_and_searches_those_above(cub):
    sets = data.load("cub", cub)
    assert len(sets.train) == len(sets.query) == 4 and sets.gallery is None
    assert sets.train.classes == ["Black footed_Gull"] * 2
    assert sets.query.labels.tolist() == [0, 0, 1, 1]
    assert sets.query[0][0].shape == (3, 20, 30)  # grey, and yet of three channels


@pytest.mark.parametrize("layout", ["cars", "cars_in_parts"])
def test_cars_merges_the_sources_halves_and_divides_by_class(layout, request):
    sets = data.load("cars", request.getfixturevalue(layout))
    assert sets.train.classes == ["Make 1", "Make 98"]
    assert sets.query.classes == ["Make 99", "Make 196"]
    assert len(sets.train) == 4 and len(sets.query) == 3
    assert sets.query[0][0].shape == (3, 20, 30)


def test_sop_has_lists_of_its_own(sop):
    sets = data.load("sop", sop)
    assert sets.train.classes == ["bicycle 1", "bicycle 5"]
    assert sets.query.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("inner", [True, False], ids=["Img/img", "Img"])
def test_inshop_searches_a_gallery_whose_labels_are_the_queries(inshop, inner):
    img = inshop / "Inshop_Clothes" / "Img"
    if not inner:
        (img / "img" / "WOMEN").rename(img / "WOMEN")
        (img / "img").rmdir()
    sets = data.load("inshop", inshop)
    assert sets.query.classes == sets.gallery.classes == ["id_00000007", "id_00000009"]
    assert sets.query.labels.tolist() == [0, 1] and sets.gallery.labels.tolist() == [1, 0, 0]
    assert sets.gallery[2][0].shape == (3, 20, 30)


def test_flowers17_are_80_of_each_in_order(tmp_path):
    jpg = tmp_path / "flowers17" / "jpg"
    for i in range(1, 1361):
        save(jpg / f"image_{i:04d}.jpg", size=(2, 2))
    sets = data.load("flowers17", tmp_path)
    for split in (sets.train, sets.query):
        assert split.labels.bincount().tolist() == [40] * 17
    assert not set(sets.train.images.paths) & set(sets.query.images.paths)
    numbers = torch.tensor([int(path[-8:-4]) for path in sets.train.images.paths])
    assert torch.equal((numbers - 1) // 80, sets.train.labels)
    quarter = data.load("flowers17", tmp_path, train=0.25, seed=3)
    assert quarter.train.labels.bincount().tolist() == [20] * 17


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_read_from_torchvisions_files(tmp_path, name):
    raw = tmp_path / {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name] / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    expected = {}
    for part, n in (("train", 20), ("t10k", 10)):
        pixels = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim])
            header += b"".join(size.to_bytes(4, "big") for size in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
        expected[part] = torch.from_numpy(pixels)[:, None]
    sets = data.load(name, tmp_path)
    assert torch.equal(sets.train.images, expected["train"])
    assert torch.equal(sets.query.images, expected["t10k"])
    assert len(sets.query.classes) == 10 and sets.query.labels.tolist() == list(range(10))


def test_cifar_is_read_from_torchvisions_files(tmp_path):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    sums, rng = {}, np.random.default_rng(0)
    pixels = rng.integers(256, size=(10, 3072), dtype=np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        entry = {"data": pixels, "labels": list(range(10)), "label_names": list("abcdefghij")}
        (base / name).write_bytes(pickle.dumps(entry))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()

    class Tiny(datasets.CIFAR10):  # torchvision knows the real files by their checksums
        train_list = tuple((f"data_batch_{i}", sums[f"data_batch_{i}"]) for i in range(1, 6))
        test_list = (("test_batch", sums["test_batch"]),)
        meta = {  # noqa: RUF012
            "filename": "batches.meta",
            "key": "label_names",
            "md5": sums["batches.meta"],
        }

    sets = torchvision_sets.read(tmp_path, source=Tiny)
    assert sets.train.images.shape == (50, 3, 32, 32) and sets.query.classes == list("abcdefghij")
    assert np.array_equal(sets.query.images.reshape(10, -1), pixels)


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
def test_a_size_brings_images_into_memory(name, request):
    sets = data.load(name, request.getfixturevalue(name), size=16)
    assert sets.train.images.shape == (len(sets.train), 3, 16, 16)
    assert sets.train.images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["cub", "cars", "sop", "inshop"])
def test_every_layout_serves_batches_and_is_verified(name, request):
    root = request.getfixturevalue(name)
    sets = data.load(name, root)
    crop = data.transforms.random_crop(24)
    images, labels = next(iter(data.loader(sets.train, 2, train=True, transform=crop)))
    assert images.shape == (2, 3, 24, 24) and labels.shape == (2,)
    counts = data.verify(name, root)
    assert counts["train"] == {"images": len(sets.train), "classes": 2}
    assert ("gallery" in counts) == (name == "inshop")


@pytest.mark.filterwarnings("default:.*published protocol")
def test_counts_unlike_the_published_ones_are_said_in_words(cub):
    with pytest.warns(UserWarning) as said:
        data.load("cub", cub)
    assert "train has 4 images of 2 classes, the published protocol 5,864 of 100" in str(
        said[0].message
    )


@pytest.mark.parametrize("name", [*data.PUBLISHED, "flowers17"])
def test_a_set_that_is_not_there_says_how_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"To get {name}: "):
        data.load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cub", "CUB_200_2011/images/101.Black footed_Gull/Gull_1_101.JPG"),
        ("cars", "cars196/car_ims/000002.jpg"),
        ("sop", "Stanford_Online_Products/bicycle_final/11319_0.JPG"),
        ("inshop", "Inshop_Clothes/Img/img/WOMEN/Tees_Tanks/id_00000007/gallery_1_front.jpg"),
    ],
)
def test_a_missing_image_is_named(name, file, request):
    root = request.getfixturevalue(name)
    (root / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.rsplit("/", 1)[1]):
        data.load(name, root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cub", "CUB_200_2011/image_class_labels.txt"),
        ("cars_in_parts", "cars196/cars_test_annos_withlabels.mat"),
        ("cars_in_parts", "cars196/devkit/cars_meta.mat"),
        ("sop", "Stanford_Online_Products/Ebay_test.txt"),
        ("inshop", "Inshop_Clothes/Eval/list_eval_partition.txt"),
    ],
)
def test_a_missing_list_is_named(name, file, request):
    root = request.getfixturevalue(name)
    (root / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.rsplit("/", 1)[1]):
        data.load(name.removesuffix("_in_parts"), root)


def test_verify_names_a_truncated_image(sop):
    file = sop / "Stanford_Online_Products" / "bicycle_final" / "5_1.JPG"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"5_1\.JPG is not an image that can be read"):
        data.verify("sop", sop)


def test_an_image_without_a_class_is_named(cub):
    path = cub / "CUB_200_2011" / "image_class_labels.txt"
    write(path, *path.read_text().splitlines()[:-1])
    with pytest.raises(ValueError, match=r"no class for 200\.Black footed_Gull/Gull_1_200"):
        data.load("cub", cub)


def test_a_line_that_cannot_be_read_is_named(cub, sop, inshop):
    write(cub / "CUB_200_2011" / "image_class_labels.txt", "1 1", "2")
    with pytest.raises(ValueError, match=r"labels\.txt, line 2: 2 columns expected, got '2'"):
        data.load("cub", cub)
    path = sop / "Stanford_Online_Products" / "Ebay_test.txt"
    write(path, "image_id class_id super_class_id path", "1 x 1 bicycle_final/5_1.JPG")
    with pytest.raises(ValueError, match=r"Ebay_test\.txt: 'x' should be a whole number"):
        data.load("sop", sop)
    path = inshop / "Inshop_Clothes" / "Eval" / "list_eval_partition.txt"
    write(path, "1", "header", "img/a.jpg id_1 trian")
    with pytest.raises(ValueError, match=r"'img/a\.jpg id_1 trian'"):
        data.load("inshop", inshop)


def test_a_product_that_only_the_query_has_is_named(inshop):
    path = inshop / "Inshop_Clothes" / "Eval" / "list_eval_partition.txt"
    kept = [line for line in path.read_text().splitlines() if "id_00000009/gallery" not in line]
    write(path, *kept)
    with pytest.raises(ValueError, match="id_00000009 is in the query or the gallery alone"):
        data.load("inshop", inshop)


def test_annotations_that_are_none_are_named(cars):
    (cars / "cars196" / "cars_annos.mat").write_bytes(b"not a mat file" * 40)
    with pytest.raises(ValueError, match=r"cars_annos\.mat is not an annotation file"):
        data.load("cars", cars)


def test_a_protocol_without_test_classes_is_refused(cub):
    base = cub / "CUB_200_2011"
    write(base / "images.txt", *(base / "images.txt").read_text().splitlines()[:4])
    with pytest.raises(ValueError, match="no class above 100"):
        data.load("cub", cub)


def test_in_memory_sets_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load("digits")
